"""The calls of Vercel's REST API that a rollback needs, and what each failure of theirs means.

Looking that fails changed nothing: Retryable, or Refused where another try will not help. What changes something is
sent once, and an answer that is lost or comes from a gateway is OutcomeUnknown: Vercel's own tool sends again and then
meets a refusal, although the first one worked. Redirects are not followed: they would carry the token elsewhere.
The token is shown to nobody, and a foreign sentence that repeats it is masked.

Source of each call: vercel.com/docs/rest-api and github.com/vercel/vercel (packages/cli, 60.1.3), read 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeVar
from urllib.parse import quote, urlencode

from pydantic import TypeAdapter, ValidationError

from lastgood.core.config import VercelConfig
from lastgood.core.errors import ConfigError, LastgoodError, OutcomeUnknown, Refused, Retryable
from lastgood.core.ports import Clock
from lastgood.targets.vercel.shapes import (
    ALIAS_PAGE,
    DEPLOYMENT,
    DEPLOYMENT_PAGE,
    ERROR,
    PROJECT,
    AliasOutcome,
    Deployment,
    Project,
    Refusal,
)
from lastgood.targets.vercel.time_left import TimeLeft
from lastgood.wire.asking import Answer, NoAnswer, ask
from lastgood.wire.foreign_text import one_line

MAX_BYTES: Final = 8 << 20
"""A page of 100 deployments is about half a megabyte; the largest seen in public issues is two."""
PAGE: Final = 100
PAGES: Final = 5
AGAIN_S: Final = 2.0
LONGEST_WAIT_S: Final = 3600.0
"""No limit of Vercel's lasts longer than its hour; a clock that is wrong must not make it a year."""
SAID: Final = 160
DOCTOR: Final = "lastgood doctor"
NEW_TOKEN: Final = "put a new token of vercel.com/account/tokens into frontend.vercel.token"  # noqa: S105 # a sentence

# Status -> what it means, and one thing to do about it. 400 to 422: Vercel's reference, POST .../rollback/{deployment}.
MEANINGS: Final[Mapping[int, tuple[str, str]]] = {
    400: ("vercel does not understand the request", DOCTOR),
    401: ("vercel does not accept the token", NEW_TOKEN),
    402: (
        "the team's plan at vercel does not allow it (Hobby goes back to the previous production deployment only)",
        "git revert the bad commit and push: vercel builds it anew",
    ),
    403: ("vercel does not let this token do it", "check frontend.vercel.team and the scope of its token"),
    404: ("vercel does not know it", "check frontend.vercel.project and frontend.vercel.team"),
    409: ("vercel says that something else is in its way", "vercel rollback status"),
    410: ("it was deleted at vercel", "git revert the bad commit and push: vercel builds it anew"),
    422: ("vercel cannot return to it", "vercel list --prod"),
}
INVALID_TOKEN: Final = ("vercel does not accept the token: it expired, was revoked, or is mistyped", NEW_TOKEN)

T = TypeVar("T")


class VercelApi:
    """One project. Raises ConfigError when the token cannot be sent as one."""

    def __init__(self, config: VercelConfig, clock: Clock) -> None:
        # Checked here, since the library that would refuse it quotes what it refuses.
        if not re.fullmatch(r"[!-~]+", config.token.reveal()):
            raise ConfigError("frontend.vercel.token: expected printable characters without spaces")
        self._config, self._clock = config, clock
        self._name = f"project {config.project}" + (f" of team {config.team}" if config.team else "")

    def project(self, time: TimeLeft) -> Project:
        """Vercel: GET /v9/projects/{idOrName}."""
        return self._get(PROJECT, f"/v9/projects/{_part(self._config.project)}", {}, self._name, time)

    def deployment(self, id_or_host: str, time: TimeLeft) -> Deployment:
        """By id, by its own host, or by a domain: then the one that the domain's alias points at.

        Vercel: GET /v13/deployments/{idOrUrl}.
        """
        return self._get(DEPLOYMENT, f"/v13/deployments/{_part(id_or_host)}", {}, f"deployment {id_or_host}", time)

    def deployments(self, project_id: str, time: TimeLeft) -> tuple[Deployment, ...]:
        """Return the production deployments, newest first: the newest 500 where there are more.

        Vercel: GET /v7/deployments, paged by `until`.
        """
        found: list[Deployment] = []
        query = {"projectId": project_id, "target": "production", "limit": str(PAGE)}
        for _ in range(PAGES):
            page = self._get(DEPLOYMENT_PAGE, "/v7/deployments", query, f"deployments of {self._name}", time)
            found += page.deployments
            if not page.deployments or page.pagination.next is None:
                break
            query["until"] = f"{page.pagination.next:.0f}"
        return tuple(found)

    def aliases(self, project_id: str, time: TimeLeft) -> tuple[AliasOutcome, ...]:
        """Return what the last rollback did to each domain, 500 at most.

        Vercel: GET /v9/projects/{id}/rollback/aliases, as its tool asks after a rollback that failed.
        """
        found: list[AliasOutcome] = []
        query = {"limit": str(PAGE)}
        for _ in range(PAGES):
            path = f"/v9/projects/{_part(project_id)}/rollback/aliases"
            page = self._get(ALIAS_PAGE, path, query, f"domains of {self._name}", time)
            found += page.aliases
            if not page.aliases or page.pagination.next is None:
                break
            query["until"] = f"{page.pagination.next:.0f}"
        return tuple(found)

    def roll_back(self, project_id: str, deployment: str, time: TimeLeft) -> Refused | None:
        """Ask for production to go back. None: it was taken, and has not happened yet.

        Returns the refusal where it may mean that it is done already or under way: 409, and 422, which has been seen
        for a deployment that was in production already. The caller looks before it raises it.
        Vercel: POST /v1/projects/{id}/rollback/{deployment} -> 201 without a body.
        """
        path = f"/v1/projects/{_part(project_id)}/rollback/{_part(deployment)}"
        answer = self._change("POST", path, b"{}", f"rollback to {deployment}", time)
        if answer.status in (409, 422):
            return self._refused(answer, f"rollback to {deployment}")
        self._expect_taken(answer, f"rollback to {deployment}")
        return None

    def let_pushes_go_live(self, project_id: str, time: TimeLeft) -> None:
        """Turn on the setting that a rollback turns off. It moves nothing: the next push goes live again.

        Not a promote of what is production: Vercel answers that with 409 and leaves the setting as it is.
        Vercel: PATCH /v9/projects/{id}, as github.com/vercel/terraform-provider-vercel sends it, read 2026-11.
        """
        what = "turning on automatic assignment"
        path = f"/v9/projects/{_part(project_id)}"
        self._expect_taken(self._change("PATCH", path, b'{"autoAssignCustomDomains": true}', what, time), what)

    def _get(self, shape: TypeAdapter[T], path: str, query: Mapping[str, str], what: str, time: TimeLeft) -> T:
        answer = self._ask("GET", path, query, None, time)
        if isinstance(answer, NoAnswer):
            raise Retryable(f"vercel: {self._safe(answer.reason)}", delay_s=AGAIN_S, hint=DOCTOR)
        if not 200 <= answer.status < 300:
            raise self._failure(answer, what, sent=False)
        try:
            return shape.validate_json(answer.body)
        except ValidationError:
            # not chained: the library's sentence quotes what it was given
            raise Retryable(
                f"vercel: {what}: the answer is not of the documented shape", delay_s=AGAIN_S, hint=DOCTOR
            ) from None

    def _change(self, method: str, path: str, body: bytes, what: str, time: TimeLeft) -> Answer:
        if time.over:
            raise Retryable(f"vercel: no time was left for the {what}", delay_s=AGAIN_S)
        answer = self._ask(method, path, {}, body, time)
        if isinstance(answer, Answer):
            return answer
        if answer.sent:
            raise OutcomeUnknown(f"vercel: the {what} was sent, and its answer was lost: {self._safe(answer.reason)}")
        raise Retryable(f"vercel: {self._safe(answer.reason)}", delay_s=AGAIN_S, hint=DOCTOR)

    def _expect_taken(self, answer: Answer, what: str) -> None:
        if not 200 <= answer.status < 300:
            raise self._failure(answer, what, sent=True)

    def _ask(
        self, method: str, path: str, query: Mapping[str, str], body: bytes | None, time: TimeLeft
    ) -> Answer | NoAnswer:
        scope = {"slug": self._config.team} if self._config.team else {}
        asked = urlencode({**query, **scope})
        return ask(
            method,
            f"{self._config.url.rstrip('/')}{path}" + (f"?{asked}" if asked else ""),
            deadline_s=time.for_a_call(),
            max_bytes=MAX_BYTES,
            json=body,
            headers={"authorization": f"Bearer {self._config.token.reveal()}"},
        )

    def _failure(self, answer: Answer, what: str, *, sent: bool) -> LastgoodError:
        """The error for an answer that is no success. sent: it answers a call that changes something."""
        if answer.status == 429:
            wait_s = self._wait_s(answer)
            return Retryable(f"vercel: {what}: too many requests, again in {wait_s:.0f} s", delay_s=wait_s)
        if answer.status >= 500 or answer.status == 408:
            # From a gateway or a crash: it may have been carried out behind it.
            if sent:
                return OutcomeUnknown(f"vercel: the {what} was answered {answer.status}, which says nothing of it")
            return Retryable(f"vercel: {what}: answered {answer.status}", delay_s=AGAIN_S, hint=DOCTOR)
        return self._refused(answer, what)

    def _refused(self, answer: Answer, what: str) -> Refused:
        refusal = _refusal(answer)
        unknown = (f"vercel answered {answer.status}", DOCTOR)
        meaning, hint = INVALID_TOKEN if refusal.invalid_token else MEANINGS.get(answer.status, unknown)
        said = self._safe(refusal.message or refusal.code)
        return Refused(f"{what}: {meaning} ({answer.status}{f': {said}' if said else ''})", hint=hint)

    def _wait_s(self, answer: Answer) -> float:
        """How long Vercel asks to wait: Retry-After in seconds, else until the limit's reset."""
        asked = answer.headers.get("retry-after", "")
        if asked.isdecimal():
            return min(max(float(asked), 1.0), LONGEST_WAIT_S)
        reset_s = _refusal(answer).limit.reset - self._clock.now().timestamp()
        return min(max(reset_s, AGAIN_S), LONGEST_WAIT_S)

    def _safe(self, text: str) -> str:
        return one_line(self._config.token.hidden_in(text), SAID)


def _part(text: str) -> str:
    """One segment of a path, whatever is in it."""
    return quote(text, safe="")


def _refusal(answer: Answer) -> Refusal:
    try:
        return ERROR.validate_json(answer.body).error
    except ValidationError:
        return Refusal()
