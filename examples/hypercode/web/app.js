// Log in, create missions, chat. Talks to hypercode-core with a bearer token that lives as long as the page.
"use strict";

const core = document.querySelector('meta[name="hypercode-core"]').content;
const part = (id) => document.getElementById(id);
let token = "";
let chosen = null; // the mission that the chat belongs to

async function call(method, path, body) {
  const headers = { "Content-Type": "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  const options = { method, headers, signal: AbortSignal.timeout(10_000) };
  if (body) options.body = JSON.stringify(body);
  const response = await fetch(core + path, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function onSubmit(id, act) {
  part(id).addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = event.target.querySelector("button");
    button.disabled = true;
    part("problem").textContent = "";
    try {
      await act(Object.fromEntries(new FormData(event.target)));
    } catch (error) {
      part("problem").textContent = error.message;
    } finally {
      button.disabled = false;
    }
  });
}

function choose(mission) {
  chosen = mission;
  part("about").textContent = `About: ${mission.title}`;
}

async function showMissions() {
  const { missions } = await call("GET", "/missions?limit=20");
  part("missions").replaceChildren(...missions.map((mission) => {
    const item = document.createElement("li");
    const detail = document.createElement("small");
    item.append(mission.title, detail);
    detail.textContent = `${mission.credits} credits · ${mission.priority} · ${mission.status.toLowerCase()}`;
    item.ariaSelected = String(chosen?.id === mission.id);
    item.addEventListener("click", () => { choose(mission); showMissions(); });
    return item;
  }));
}

onSubmit("login", async (fields) => {
  token = (await call("POST", "/login", fields)).token;
  part("login").hidden = true;
  part("work").hidden = false;
  await showMissions();
});

onSubmit("create", async (fields) => {
  choose(await call("POST", "/missions", { ...fields, credits: Number(fields.credits) }));
  await showMissions();
});

onSubmit("chat", async ({ message }) => {
  const answer = await call("POST", "/chat", { message, mission_id: chosen?.id });
  part("reply").hidden = false;
  part("reply").textContent = answer.reply;
});

async function showReleases() {
  const page = await fetch("VERSION");
  part("web-release").textContent = page.ok ? (await page.text()).trim() : "unknown";
  part("core-release").textContent = (await call("GET", "/health")).release;
}

showReleases().catch((error) => { part("problem").textContent = error.message; });
