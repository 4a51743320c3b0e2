"""Making an earlier deployment production again: look, ask once, and wait until Vercel has settled it.

Nothing is sent while a promotion or a rollback is under way, nor when the deployment is production already. After the
one request every question is a look; what a look cannot tell is OutcomeUnknown and never sent again.
"""

from __future__ import annotations

from typing import Final

from lastgood.core.errors import LastgoodError, NeedsHuman, OutcomeUnknown, Refused, Retryable
from lastgood.targets.vercel.api import VercelApi
from lastgood.targets.vercel.shapes import PRODUCTION, READY, AliasRequest, Project
from lastgood.targets.vercel.time_left import TimeLeft

POLL_S: Final = 0.5
"""Vercel's own tool looks every 0.25 s; a rollback took about a second where it was published."""
LATER_S: Final = 5.0


def go_back(api: VercelApi, wanted: str, time: TimeLeft) -> None:
    """Make `wanted` production, or find that it is. Raises as core.ports.Target.apply."""
    project = api.project(time)
    if project.busy:
        project = _after_what_is_under_way(api, project, wanted, time)
    if project.production_id == wanted:
        return
    _require_eligible(api, project, wanted, time)
    contested = api.roll_back(project.id, wanted, time)
    _await_end(api, wanted, before=project.request, contested=contested, time=time)


def _after_what_is_under_way(api: VercelApi, project: Project, wanted: str, time: TimeLeft) -> Project:
    """Wait for a job that was there before: ours of an earlier attempt, or somebody else's. Nothing was sent."""
    while project.busy:
        if time.over:
            request = project.request
            to = request.to if request else ""
            if to == wanted:
                raise OutcomeUnknown(f"vercel has not finished the move to {wanted}", hint="vercel rollback status")
            raise Retryable(f"vercel is still moving production to {to}", delay_s=LATER_S)
        time.wait(POLL_S)
        project = api.project(time)
    return project


def _require_eligible(api: VercelApi, project: Project, wanted: str, time: TimeLeft) -> None:
    """Refuse by name, before anything is sent, what Vercel would refuse or take for another project."""
    found = api.deployment(wanted, time)
    if found.id != wanted or found.project not in (None, project.id):
        raise Refused(f"{wanted} is not a deployment of this project", hint="vercel list --prod")
    if found.state != READY:
        raise Refused(f"{wanted} is {found.state or 'in an unknown state'}, not {READY}", hint="vercel list --prod")
    if found.target != PRODUCTION:
        # A preview would be built anew, with other variables: another deployment under the name of this one.
        raise Refused(f"{wanted} was not built for production", hint="vercel list --prod")


def _await_end(
    api: VercelApi, wanted: str, *, before: AliasRequest | None, contested: Refused | None, time: TimeLeft
) -> None:
    """Look until the request is settled. before: the last one known before ours. contested: what ours was answered."""
    last: LastgoodError | None = None
    while True:
        try:
            project = api.project(time)
        except Retryable as error:
            last = error  # asked and not told: the request stands, so this is no reason to stop looking
        except Refused as error:
            raise OutcomeUnknown(f"the rollback to {wanted} was sent, and then: {error.message}") from error
        else:
            if _ended(api, project, wanted, before=before, contested=contested, time=time):
                return
        if time.over:
            seen = f": {last.message}" if last else ""
            raise OutcomeUnknown(f"vercel has not finished the move to {wanted}{seen}", hint="vercel rollback status")
        time.wait(POLL_S)


def _ended(
    api: VercelApi,
    project: Project,
    wanted: str,
    *,
    before: AliasRequest | None,
    contested: Refused | None,
    time: TimeLeft,
) -> bool:
    """Whether `wanted` is production and nothing moves. Raises when it ended otherwise."""
    if project.busy:
        return False
    request = project.request if project.request != before else None
    if request is not None and request.to == wanted and request.status == "failed":
        raise _failed(api, project, wanted, time)
    if project.production_id == wanted:
        return True
    if contested is not None:
        if request is None:
            raise contested
        raise Retryable(f"meanwhile vercel moved production to {request.to}", delay_s=LATER_S)
    if request is None:
        return False  # taken, and not yet to be seen
    if request.to != wanted:
        raise NeedsHuman(
            f"while {wanted} was made production, somebody moved it to {request.to}", hint="vercel list --prod"
        )
    if request.status == "skipped":
        raise Refused(f"vercel skipped the rollback to {wanted}", hint="vercel rollback status")
    return False  # succeeded, and production not yet to be seen there


def _failed(api: VercelApi, project: Project, wanted: str, time: TimeLeft) -> LastgoodError:
    """The job failed: nothing changed where no domain moved, a person is needed where some did or it cannot be told."""
    try:
        outcomes = api.aliases(project.id, time)
    except LastgoodError as error:
        return NeedsHuman(
            f"the rollback to {wanted} failed at vercel, and which domains moved is not known: {error.message}",
            hint="vercel rollback status",
        )
    behind = [one.alias.name for one in outcomes if one.status != "completed"]
    names = ", ".join(behind) or "none named"
    if outcomes and len(behind) == len(outcomes) and project.production_id != wanted:
        return Refused(f"the rollback to {wanted} failed at vercel, no domain moved: {names}", hint="lastgood rollback")
    hint = f"vercel alias set {wanted} {behind[0]}" if behind else "vercel rollback status"
    return NeedsHuman(f"the rollback to {wanted} failed half-way at vercel; left behind: {names}", hint=hint)
