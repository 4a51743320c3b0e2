"""`POST /execute {task}`: code for one task, checked before it is handed out. Nothing is stored."""

import ast
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from coder_agent.model import Model, ModelFailed
from hypercode_http import json_object, service_app, text_field


def coder_agent_app(model: Model) -> ASGIApp:
    """The whole service, writing with `model`."""
    agent = _Agent(model)
    return service_app(
        service="coder-agent", routes=[Route("/execute", agent.execute, methods=["POST"])], lifespan=_lifespan
    )


@asynccontextmanager
async def _lifespan(_app: Starlette) -> AsyncGenerator[None]:
    yield


class _Agent:
    def __init__(self, model: Model) -> None:
        self._model = model

    async def execute(self, request: Request) -> Response:
        task = text_field(await json_object(request), "task", longest=2000)
        return JSONResponse({"status": "completed", "result": await self._code(task)})

    async def _code(self, task: str) -> str:
        try:
            code = await self._model.write(task)
            ast.parse(code)
        except ModelFailed as error:
            raise HTTPException(502, str(error)) from error
        except SyntaxError as error:
            raise HTTPException(502, "the model's answer is not Python") from error
        return code
