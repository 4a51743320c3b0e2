"""The routes of the core, and what each demands of its caller."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from hypercode_core.chat import Orchestrator
from hypercode_core.database import Pool, make_pool
from hypercode_core.metrics import Metrics
from hypercode_core.missions import (
    PRIORITIES,
    Mission,
    complete_mission,
    create_mission,
    find_mission,
    list_missions,
    store_exchange,
)
from hypercode_core.passwords import hash_password, password_matches
from hypercode_core.settings import Settings
from hypercode_core.tokens import InvalidToken, Session, Tokens
from hypercode_core.users import find_user
from hypercode_http import (
    TREE,
    integer_field,
    json_object,
    optional_field,
    service_app,
    text_field,
)

_MOST_CREDITS: Final = 1_000_000
_LARGEST_ID: Final = 2**63 - 1


def core_app(settings: Settings) -> ASGIApp:
    """The whole service. The pool opens in the background: the core starts, and says so, without its database."""
    pool = make_pool(settings.database_url)
    orchestrator = Orchestrator(settings.orchestrator_url, deadline_s=settings.chat_deadline_s)
    metrics = Metrics()
    core = _Core(pool=pool, orchestrator=orchestrator, tokens=Tokens(settings.token_secret))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncGenerator[None]:
        async with orchestrator:
            await pool.open(wait=False)
            try:
                yield
            finally:
                await pool.close()

    return service_app(
        service="hypercode-core",
        routes=[
            Route("/metrics", metrics.page),
            Route("/login", core.login, methods=["POST"]),
            Route("/missions", core.create, methods=["POST"]),
            Route("/missions", core.list),
            Route("/missions/{id:int}", core.get),
            Route("/missions/{id:int}/complete", core.complete, methods=["POST"]),
            Route("/chat", core.chat, methods=["POST"]),
            Route("/VERSION", _version),
            Mount("/", StaticFiles(directory=TREE / "web", html=True)),
        ],
        lifespan=lifespan,
        observe=metrics.observe,
        # The page is served from another domain in production. Sessions are bearer tokens, never cookies.
        middleware=[Middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])],
    )


async def _version(_request: Request) -> Response:
    return FileResponse(TREE / "VERSION", media_type="text/plain")


class _Core:
    def __init__(self, *, pool: Pool, orchestrator: Orchestrator, tokens: Tokens) -> None:
        self._pool = pool
        self._orchestrator = orchestrator
        self._tokens = tokens
        # Compared with when there is no such user, so that the time of the answer does not tell which names exist.
        self._nobody = hash_password("nobody has this password")

    async def login(self, request: Request) -> Response:
        fields = await json_object(request)
        name = text_field(fields, "user", longest=100)
        password = text_field(fields, "password", longest=200)
        user = await find_user(self._pool, name)
        stored = self._nobody if user is None else user.password_hash
        matches = await asyncio.to_thread(password_matches, password, stored)
        if user is None or not matches:
            raise HTTPException(401, "wrong user or password")
        return JSONResponse({"token": self._tokens.issue(user_id=user.id, user=user.name)})

    async def create(self, request: Request) -> Response:
        session = self._session(request)
        fields = await json_object(request)
        priority = text_field(fields, "priority", longest=10) if optional_field(fields, "priority") else "normal"
        if priority not in PRIORITIES:
            raise HTTPException(422, f"priority: expected one of {', '.join(PRIORITIES)}")
        mission = await create_mission(
            self._pool,
            owner_id=session.user_id,
            title=text_field(fields, "title", longest=200),
            credits_=integer_field(fields, "credits", least=1, most=_MOST_CREDITS),
            priority=priority,
        )
        return JSONResponse(mission.as_json(), status_code=201, headers={"Location": f"/missions/{mission.id}"})

    async def list(self, request: Request) -> Response:
        session = self._session(request)
        text = request.query_params.get("limit", "20")
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 100:
            raise HTTPException(422, "limit: expected a whole number from 1 to 100")
        missions = await list_missions(self._pool, owner_id=session.user_id, limit=int(text))
        return JSONResponse({"missions": [mission.as_json() for mission in missions]})

    async def get(self, request: Request) -> Response:
        session = self._session(request)
        mission = await find_mission(self._pool, owner_id=session.user_id, mission_id=_id(request))
        return JSONResponse(_found(mission).as_json())

    async def complete(self, request: Request) -> Response:
        session = self._session(request)
        mission = await complete_mission(self._pool, owner_id=session.user_id, mission_id=_id(request))
        return JSONResponse(_found(mission).as_json())

    async def chat(self, request: Request) -> Response:
        session = self._session(request)
        fields = await json_object(request)
        message = text_field(fields, "message", longest=2000)
        mission: Mission | None = None
        if optional_field(fields, "mission_id"):
            mission_id = integer_field(fields, "mission_id", least=1, most=_LARGEST_ID)
            mission = _found(await find_mission(self._pool, owner_id=session.user_id, mission_id=mission_id))
        answer = await self._orchestrator.ask(message)
        if mission is not None:
            await store_exchange(self._pool, mission_id=mission.id, question=message, answer=answer.reply)
        return JSONResponse({"reply": answer.reply, "steps": list(answer.steps)})

    def _session(self, request: Request) -> Session:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise HTTPException(401, "log in first", headers={"WWW-Authenticate": "Bearer"})
        try:
            return self._tokens.check(token)
        except InvalidToken as error:
            raise HTTPException(401, f"session: {error}", headers={"WWW-Authenticate": "Bearer"}) from error


def _id(request: Request) -> int:
    mission_id: int = request.path_params["id"]
    if mission_id > _LARGEST_ID:
        raise HTTPException(404, "no such mission")
    return mission_id


def _found(mission: Mission | None) -> Mission:
    if mission is None:
        raise HTTPException(404, "no such mission")
    return mission
