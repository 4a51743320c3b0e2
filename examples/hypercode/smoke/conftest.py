"""The core under test, and a session on it. CORE_URL names it; the default is the port of the compose file."""

import os
from collections.abc import Generator
from typing import Final

import httpx
import pytest

DEADLINE_S: Final = 5.0  # for one request; a release that needs longer is not working


@pytest.fixture
def core() -> Generator[httpx.Client]:
    url = os.environ.get("CORE_URL", "http://localhost:8000")
    with httpx.Client(base_url=url, timeout=DEADLINE_S, trust_env=False) as client:
        yield client


@pytest.fixture
def session(core: httpx.Client) -> httpx.Client:
    """The core, logged in as the demo user."""
    answer = core.post("/login", json={"user": "ada", "password": "lovelace"})
    assert answer.status_code == 200, answer.text
    core.headers["Authorization"] = f"Bearer {answer.json()['token']}"
    return core
