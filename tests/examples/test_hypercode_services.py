"""The services of HyperCode v2.0.3: what they check, what they count, and how they begin and end."""

import hashlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.examples.hypercode_stack import (
    HYPERCODE,
    USER,
    RunningStack,
    migrate,
    running_stack,
)


@pytest.fixture
def stack(database_url: str, tmp_path: Path) -> Generator[RunningStack]:
    assert migrate(HYPERCODE, database_url).returncode == 0
    with running_stack(HYPERCODE, database_url, tmp_path / "log") as running:
        yield running


def _requests(stack: RunningStack) -> dict[tuple[str, str, str], float]:
    page = httpx.get(f"{stack.core}/metrics").text
    return {
        (sample.labels["handler"], sample.labels["method"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "http_requests_total"
    }


def test_every_answer_names_its_release(stack: RunningStack) -> None:
    for url in (stack.core, stack.orchestrator, stack.coder_agent):
        answer = httpx.get(f"{url}/health")
        assert answer.json() == {"status": "ok", "release": "v2.0.3"}
        assert answer.headers["X-Release"] == "v2.0.3"
        assert httpx.get(f"{url}/nowhere").headers["X-Release"] == "v2.0.3"


def test_an_answer_names_every_release_that_had_a_part_in_it(
    stack: RunningStack, database_url: str, tree_of: Callable[[str], Path], tmp_path: Path
) -> None:
    with stack.session() as client:
        assert client.post("/chat", json={"message": "hello"}).headers["X-Releases"] == "v2.0.3"
    # its own core and orchestrator, and somebody else's agent, which answers 503
    with (
        running_stack(tree_of("v2.0.8"), database_url, tmp_path / "other") as other,
        running_stack(
            HYPERCODE, database_url, tmp_path / "crossed", environment={"CODER_AGENT_URL": other.coder_agent}
        ) as crossed,
        crossed.session() as client,
    ):
        answers = [client.post("/chat", json={"message": "hello"}) for _ in range(2)]
        assert [(a.status_code, a.headers["X-Releases"]) for a in answers] == [(502, "v2.0.3, v2.0.8")] * 2
        assert client.get("/missions").headers["X-Releases"] == "v2.0.3"


def test_feature_probes_do_real_work_and_leave_no_rows(stack: RunningStack, database_url: str) -> None:
    plan = httpx.post(f"{stack.orchestrator}/plan", json={"goal": "ping"}).json()
    assert [step["title"] for step in plan["steps"]] == ["Clarify: ping", "Write: ping", "Check: ping"]
    assert "def do_ping() -> str:" in plan["reply"]
    done = httpx.post(f"{stack.coder_agent}/execute", json={"task": "ping"}).json()
    assert done == {"status": "completed", "result": "def do_ping() -> str:\n    return 'ping'\n"}
    with psycopg.connect(database_url) as db:
        assert db.execute("SELECT (SELECT count(*) FROM missions), (SELECT count(*) FROM messages)").fetchone() == (
            0,
            0,
        )


def test_a_chat_about_a_mission_is_stored_with_it(stack: RunningStack, database_url: str) -> None:
    with stack.session() as client:
        mission = client.post("/missions", json={"title": "Orbit", "credits": 5}).json()["id"]
        reply = client.post("/chat", json={"message": "plot a course", "mission_id": mission}).json()["reply"]
        client.post("/chat", json={"message": "nothing to keep"})
    with psycopg.connect(database_url) as db:
        rows = db.execute("SELECT mission_id, author::text, body FROM messages ORDER BY id").fetchall()
    assert rows == [(mission, "user", "plot a course"), (mission, "agent", reply)]


@pytest.mark.parametrize(
    "body,field",
    [
        ({"credits": 5}, "title"),
        ({"title": " ", "credits": 5}, "title"),
        ({"title": "a\0b", "credits": 5}, "title"),
        ({"title": "Orbit", "credits": 0}, "credits"),
        ({"title": "Orbit", "credits": True}, "credits"),
        ({"title": "Orbit", "credits": 5, "priority": "soon"}, "priority"),
    ],
)
def test_a_mission_with_a_wrong_field_is_refused_by_name(
    stack: RunningStack, body: dict[str, object], field: str
) -> None:
    with stack.session() as client:
        answer = client.post("/missions", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(f"{field}: ")


def test_a_body_that_is_not_json_or_too_large_is_refused(stack: RunningStack) -> None:
    with stack.session() as client:
        assert client.post("/missions", content=b"{").status_code == 400
        assert client.post("/missions", content=b"[]").status_code == 400
        assert client.post("/missions", content=b" " * 70_000).status_code == 413


def test_missions_of_another_user_cannot_be_seen(stack: RunningStack, database_url: str) -> None:
    with psycopg.connect(database_url) as db:
        db.execute("INSERT INTO users (name, password_hash) SELECT 'grace', password_hash FROM users")
    with stack.session() as ada:
        mission = ada.post("/missions", json={"title": "Orbit", "credits": 5}).json()["id"]
    token = httpx.post(f"{stack.core}/login", json=USER | {"user": "grace"}).json()["token"]
    with httpx.Client(base_url=stack.core, headers={"Authorization": f"Bearer {token}"}) as grace:
        assert grace.get(f"/missions/{mission}").status_code == 404
        assert grace.post(f"/missions/{mission}/complete").status_code == 404
        assert grace.post("/chat", json={"message": "hello", "mission_id": mission}).status_code == 404
        assert grace.get("/missions").json() == {"missions": []}


def test_a_token_that_was_changed_is_refused(stack: RunningStack) -> None:
    token = httpx.post(f"{stack.core}/login", json=USER).json()["token"]
    changed = f"{'A' if token[0] != 'A' else 'B'}{token[1:]}"
    for each in (changed, token.split(".")[0], "ä.ö"):
        headers = {b"Authorization": f"Bearer {each}".encode()}
        assert httpx.get(f"{stack.core}/missions", headers=headers).status_code == 401


def test_completing_twice_keeps_the_first_time(stack: RunningStack) -> None:
    with stack.session() as client:
        mission = client.post("/missions", json={"title": "Orbit", "credits": 5}).json()["id"]
        first = client.post(f"/missions/{mission}/complete").json()
        assert first["status"] == "COMPLETED"
        assert client.post(f"/missions/{mission}/complete").json() == first


def test_metrics_count_by_route_and_status_exceptions_and_health_included(
    stack: RunningStack, database_url: str
) -> None:
    with stack.session() as client:
        client.get("/missions/1")
        client.get("/missions/2")
        with psycopg.connect(database_url) as db:
            db.execute("ALTER TABLE missions RENAME TO elsewhere")
        client.get("/missions")
    counted = _requests(stack)
    assert counted["/missions/{id}", "GET", "404"] == 2
    assert counted["/missions", "GET", "500"] == 1
    assert counted["/health", "GET", "200"] >= 1
    assert 'http_request_duration_seconds_bucket{handler="/login",le="0.5",method="POST"}' in (
        httpx.get(f"{stack.core}/metrics").text
    )


def test_a_database_error_is_logged_with_its_sqlstate(stack: RunningStack, database_url: str) -> None:
    with stack.session() as client:
        with psycopg.connect(database_url) as db:
            db.execute("ALTER TABLE missions RENAME TO elsewhere")
        assert client.get("/missions").status_code == 500
    line = stack.the_failure()
    assert (line["service"], line["release"], line["path"], line["status"], line["sqlstate"]) == (
        "hypercode-core",
        "v2.0.3",
        "/missions",
        500,
        "42P01",
    )


@pytest.mark.full
def test_the_core_starts_and_says_so_without_its_database(tmp_path: Path) -> None:
    with running_stack(HYPERCODE, f"postgresql://nobody@/none?host={tmp_path}", tmp_path / "log") as stack:
        assert httpx.get(f"{stack.core}/health").status_code == 200
        assert httpx.post(f"{stack.core}/login", json=USER, timeout=10.0).status_code == 500


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hypercode_core"],
        cwd=HYPERCODE / "services",
        env={"DATABASE_URL": f"postgresql:///none?host={tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (1, "TOKEN_SECRET is not set\n")


def test_a_terminated_service_finishes_what_it_is_answering(
    database_url: str, postgres_url: Callable[[str], str], tmp_path: Path
) -> None:
    migrate(HYPERCODE, database_url)
    answers: list[int] = []
    with (
        running_stack(HYPERCODE, database_url, tmp_path / "log") as stack,
        stack.session() as client,
        psycopg.connect(database_url) as db,
        psycopg.connect(postgres_url("postgres"), autocommit=True) as watcher,
    ):
        db.execute("LOCK TABLE missions")
        asking = threading.Thread(
            target=lambda: answers.append(client.post("/missions", json={"title": "Orbit", "credits": 5}).status_code)
        )
        asking.start()
        _wait_for_a_lock_waiter(watcher)
        stack.processes["hypercode_core"].send_signal(signal.SIGTERM)
        _wait_until_it_refuses_connections(stack.core)
        db.rollback()
        asking.join(10)
        assert answers == [201]
        assert stack.processes["hypercode_core"].wait(10) == 0


def test_migrations_leave_the_rows_that_prisma_leaves(database_url: str) -> None:
    first, second = migrate(HYPERCODE, database_url), migrate(HYPERCODE, database_url)
    assert (first.returncode, second.returncode, second.stdout) == (0, 0, "no pending migrations\n")
    with psycopg.connect(database_url) as db:
        rows = db.execute(
            """SELECT migration_name, checksum, applied_steps_count, finished_at >= started_at, rolled_back_at,
                      length(id)
               FROM _prisma_migrations ORDER BY migration_name"""
        ).fetchall()
    assert rows == [
        (script.parent.name, hashlib.sha256(script.read_bytes()).hexdigest(), 1, True, None, 36)
        for script in sorted((HYPERCODE / "prisma" / "migrations").glob("*/migration.sql"))
    ]


def test_a_failed_migration_is_undone_recorded_and_blocks_the_next_run(database_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "prisma" / "migrations" / "20260101000000_broken"
    folder.mkdir(parents=True)
    (tmp_path / "prisma" / "migrate.py").write_bytes((HYPERCODE / "prisma" / "migrate.py").read_bytes())
    (folder / "migration.sql").write_text('CREATE TABLE "a" (); SELECT * FROM "nowhere";', encoding="utf-8")
    first, second = migrate(tmp_path, database_url), migrate(tmp_path, database_url)
    assert (first.returncode, first.stderr[:5]) == (1, "P3018")
    assert (second.returncode, second.stderr[:5]) == (1, "P3009")
    with psycopg.connect(database_url) as db:
        assert db.execute("SELECT to_regclass('a')").fetchone() == (None,)
        row = db.execute("SELECT finished_at, applied_steps_count, logs FROM _prisma_migrations").fetchone()
    assert row is not None
    assert row[:2] == (None, 0)
    assert "Database error code: 42P01" in row[2]


def test_a_schema_without_history_is_not_migrated(database_url: str) -> None:
    with psycopg.connect(database_url) as db:
        db.execute("CREATE TABLE somebody_elses (id int)")
    done = migrate(HYPERCODE, database_url)
    assert (done.returncode, done.stderr[:5]) == (1, "P3005")


def _wait_for_a_lock_waiter(db: psycopg.Connection) -> None:
    for _ in range(100_000):
        if db.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchone():
            return
    raise AssertionError("nobody waits for the lock")


def _wait_until_it_refuses_connections(url: str) -> None:
    for _ in range(10_000):
        try:
            httpx.get(f"{url}/health", timeout=5.0)
        except httpx.TransportError:
            return
    raise AssertionError(f"{url} still answers")
