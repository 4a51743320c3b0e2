"""What Vercel's API answers, as far as a rollback needs it. What else it says is not read.

Shapes: Vercel's REST reference and the types of its command line tool (github.com/vercel/vercel, packages/cli, 60.1.3),
read 2026-11. A list names a deployment `uid`, everything else names it `id`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import AliasChoices, Field, TypeAdapter

SETTLED: Final = ("succeeded", "failed", "skipped")
"""A status that is not one of these may still become one: pending, in-progress, and what Vercel may yet invent."""
READY: Final = "READY"
PRODUCTION: Final = "production"
MAX_MS: Final = 253_402_300_799_000
"""The end of the year 9999, beyond which there is no datetime."""
COMMIT_KEYS: Final = ("githubCommitSha", "gitlabCommitSha", "bitbucketCommitSha", "gitCommitSha")


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasRequest:
    """The last time somebody asked for production to move. requested_ms: since 1970, tells one request from another."""

    to: Annotated[str, Field(validation_alias="toDeploymentId")]
    status: Annotated[str, Field(validation_alias="jobStatus")]
    requested_ms: Annotated[float, Field(validation_alias="requestedAt")] = 0.0

    @property
    def under_way(self) -> bool:
        return self.status not in SETTLED


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One deployment. host: its own, which never moves. candidate: whether a rollback may go there; None: not said."""

    id: Annotated[str, Field(validation_alias=AliasChoices("id", "uid"))]
    state: Annotated[str, Field(validation_alias=AliasChoices("readyState", "state"))] = ""
    created_ms: Annotated[float, Field(validation_alias=AliasChoices("createdAt", "created"), ge=0, le=MAX_MS)] = 0.0
    host: Annotated[str | None, Field(validation_alias="url")] = None
    target: str | None = None
    project: Annotated[str | None, Field(validation_alias="projectId")] = None
    candidate: Annotated[bool | None, Field(validation_alias="isRollbackCandidate")] = None
    meta: Mapping[str, object] | None = None

    @property
    def commit(self) -> str:
        """Full git id, empty when the deployment was not made from a repository."""
        meta = self.meta or {}
        return next((str(meta[key]) for key in COMMIT_KEYS if meta.get(key)), "")

    @property
    def created_at(self) -> datetime:
        return datetime.fromtimestamp(self.created_ms / 1000, UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What each environment serves. production: None before the first deployment."""

    production: Deployment | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A project as it is now. auto_assign: whether the next push goes live by itself; a rollback turns that off."""

    id: str
    auto_assign: Annotated[bool, Field(validation_alias="autoAssignCustomDomains")] = True
    targets: Targets | None = None
    request: Annotated[AliasRequest | None, Field(validation_alias="lastAliasRequest")] = None

    @property
    def production(self) -> Deployment | None:
        return self.targets.production if self.targets else None

    @property
    def production_id(self) -> str:
        return self.production.id if self.production else ""

    @property
    def busy(self) -> bool:
        """A promotion or a rollback is under way."""
        return self.request is not None and self.request.under_way


@dataclass(frozen=True, slots=True, kw_only=True)
class Pagination:
    """next: value of `until` for the page after this one, None on the last."""

    next: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentPage:
    """Deployments, newest first."""

    deployments: tuple[Deployment, ...]
    pagination: Pagination = field(default_factory=Pagination)


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedAlias:
    """A domain. name: its host."""

    name: Annotated[str, Field(validation_alias="alias")]


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasOutcome:
    """What the last rollback did to one domain. status: completed, in-progress, pending or failed."""

    alias: MovedAlias
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasPage:
    """Domains of the last rollback."""

    aliases: tuple[AliasOutcome, ...]
    pagination: Pagination = field(default_factory=Pagination)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """reset: when calls are answered again, in seconds since 1970."""

    reset: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why Vercel said no. invalid_token: the token itself, not what it may do."""

    code: str = ""
    message: str = ""
    invalid_token: Annotated[bool, Field(validation_alias="invalidToken")] = False
    limit: Limit = field(default_factory=Limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorAnswer:
    """The body of every answer that is not a success."""

    error: Refusal = field(default_factory=Refusal)


PROJECT: Final = TypeAdapter(Project)
DEPLOYMENT: Final = TypeAdapter(Deployment)
DEPLOYMENT_PAGE: Final = TypeAdapter(DeploymentPage)
ALIAS_PAGE: Final = TypeAdapter(AliasPage)
ERROR: Final = TypeAdapter(ErrorAnswer)
