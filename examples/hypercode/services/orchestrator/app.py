"""`POST /plan {goal}`: the steps, and a reply that holds what the coder agent wrote. Nothing is stored."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from hypercode_http import json_object, note_path, service_app, text_field
from orchestrator.coder import CoderAgent
from orchestrator.planning import PlanStep, plan_steps


def orchestrator_app(*, coder_agent_url: str, execute_deadline_s: float) -> ASGIApp:
    """`execute_deadline_s`: how long one task may take the coder agent, seconds."""
    # Idle connections are dropped after 2 s, well before the other side would close them under a request.
    limits = httpx.Limits(max_connections=50, max_keepalive_connections=8, keepalive_expiry=2.0)
    hooks = {"response": [note_path]}
    client = httpx.AsyncClient(
        base_url=coder_agent_url, timeout=execute_deadline_s, limits=limits, trust_env=False, event_hooks=hooks
    )
    planner = _Planner(CoderAgent(client))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncGenerator[None]:
        async with client:
            yield

    return service_app(
        service="orchestrator", routes=[Route("/plan", planner.plan, methods=["POST"])], lifespan=lifespan
    )


class _Planner:
    def __init__(self, coder: CoderAgent) -> None:
        self._coder = coder

    async def plan(self, request: Request) -> Response:
        goal = text_field(await json_object(request), "goal", longest=2000)
        steps = plan_steps(goal)
        try:
            results = await self._execute(steps)
        except httpx.TimeoutException as error:
            raise HTTPException(504, "the coder agent did not answer in time") from error
        except (httpx.HTTPError, ValueError) as error:
            raise HTTPException(502, "the coder agent could not do the task") from error
        reply = f"{len(steps)} steps for: {goal}\n\n" + "\n\n".join(results)
        return JSONResponse({"steps": [step.as_json() for step in steps], "reply": reply})

    async def _execute(self, steps: Sequence[PlanStep]) -> list[str]:
        """Raises httpx.HTTPError or ValueError when one fails; the others end by their own deadline."""
        return await asyncio.gather(*(self._coder.execute(step.task) for step in steps if step.task is not None))
