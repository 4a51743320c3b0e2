"""What the core needs to know from outside, read from the environment once at the start."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`chat_deadline_s`: how long one chat may wait for the orchestrator, seconds."""

    database_url: str = field(repr=False)
    token_secret: bytes = field(repr=False)
    orchestrator_url: str
    chat_deadline_s: float

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Raises SystemExit, with the name of the variable, when a required one is missing."""
        return cls(
            database_url=_required(environment, "DATABASE_URL"),
            token_secret=_required(environment, "TOKEN_SECRET").encode(),
            orchestrator_url=environment.get("ORCHESTRATOR_URL", "http://127.0.0.1:8081"),
            chat_deadline_s=float(environment.get("CHAT_DEADLINE_S", "4")),
        )


def _required(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise SystemExit(f"{name} is not set")
    return value
