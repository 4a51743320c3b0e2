"""Ask the orchestrator for a plan and its reply."""

from dataclasses import dataclass
from typing import Self, cast

import httpx
from starlette.exceptions import HTTPException

from hypercode_http import note_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`steps`: titles, in order."""

    reply: str
    steps: tuple[str, ...]


class Orchestrator:
    """A client of the orchestrator. `deadline_s` bounds one question, seconds."""

    def __init__(self, url: str, *, deadline_s: float) -> None:
        # Idle connections are dropped after 2 s, well before the other side would close them under a request.
        limits = httpx.Limits(max_connections=50, max_keepalive_connections=8, keepalive_expiry=2.0)
        hooks = {"response": [note_path]}
        self._client = httpx.AsyncClient(
            base_url=url, timeout=deadline_s, limits=limits, trust_env=False, event_hooks=hooks
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(self, message: str) -> Answer:
        """Raises HTTPException 504 when the orchestrator does not answer in time, 502 when it fails."""
        try:
            response = await self._client.post("/plan", json={"goal": message})
            response.raise_for_status()
            body = cast("dict[str, object]", response.json())
            steps = cast("list[dict[str, str]]", body["steps"])
            return Answer(reply=str(body["reply"]), steps=tuple(step["title"] for step in steps))
        except httpx.TimeoutException as error:
            raise HTTPException(504, "the orchestrator did not answer in time") from error
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise HTTPException(502, "the orchestrator could not make a plan") from error
