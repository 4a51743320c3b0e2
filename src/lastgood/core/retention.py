"""Which releases are let go of, by count, and never one that somebody may still need; and until when the server keeps
its log for a replay.

A release costs disk: its images, its files. It is let go of only when nothing under way names it, it is no way back
from what serves, and enough newer ones are kept. A log costs disk too, with every write, and it is production's.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from lastgood.core.facts import DatabaseFacts
from lastgood.core.history import DeploymentHistory, History
from lastgood.core.report import TerminalState

DECIDED_WITHIN_S: Final = 12 * 3600.0
"""How much longer the log is kept where a person is needed: as long as a run waits for one."""
_KEPT: Final = frozenset({TerminalState.HEALTHY_KEPT, TerminalState.INCONCLUSIVE_KEPT, TerminalState.SUPERSEDED})


def to_let_go(history: History, *, retain: int) -> tuple[str, ...]:
    """Return the names of the releases that need not be kept any more, oldest first.

    retain: how many good ones stay, newest first, and how many of all, so that a bad one can still be looked at.
    What `needed` names stays in any case.
    """
    kept = [name for name in _newest_first(history) if not history.releases[name].let_go]
    good = [name for name in kept if history.releases[name].is_way_back]
    stay = {*kept[:retain], *good[:retain], *needed(history)}
    return tuple(name for name in reversed(kept) if name not in stay)


def needed(history: History) -> frozenset[str]:
    """Names of the releases that must be kept whatever the count says: what serves and what is under way, what was
    there before, and the last good one to which each of them would go back."""
    deployments = list(history.deployments.values())
    # The newest one may be over and its bake not; an older one that is not over may be taken up.
    under_way = [*deployments[-1:], *(d for d in deployments if d.ended is None)]
    plans = [run.plan for run in history.runs.values() if run.ended is None]
    may_be_left = {history.serving, *(d.deployment.release for d in under_way), *(p.from_release for p in plans)}
    ways_back = {good.release.id for name in may_be_left if name and (good := history.last_good(before=name))}
    before = {d.deployment.previous or "" for d in under_way} | {p.to_release for p in plans}
    return frozenset((may_be_left | ways_back | before) & history.releases.keys())


def capture_until(history: History, *, window_s: float) -> datetime | None:
    """Return until when a rollback may need what was written since; None while a run is under way, and where nothing
    was deployed. In the past where it is over. window_s: of a watch that did not begin."""
    if history.open_run is not None:
        return None
    return max((_needed_until(d, window_s=window_s) for d in history.deployments.values()), default=None)


def _needed_until(under: DeploymentHistory, *, window_s: float) -> datetime:
    begun = under.watch.at if under.watch else under.deployment.started_at
    end = begun + timedelta(seconds=under.watch.window_s if under.watch else window_s)
    if under.ended is None or (under.watch and under.watch.bake):
        return end
    if under.ended.terminal in _KEPT:
        return begun
    return end + timedelta(seconds=DECIDED_WITHIN_S if under.watch else 0.0)


def capture_over(facts: DatabaseFacts, *, limit_bytes: int, until: datetime | None, now: datetime) -> str:
    """Say why what the server keeps for a replay must be let go of; empty while it may stay. until: None for no end."""
    if (since := facts.captured_since_bytes) > limit_bytes:
        return f"the server keeps {since >> 20} MiB of log for a replay, limit {limit_bytes >> 20} MiB"
    if until is not None and now > until:
        return f"the server keeps its log for a replay that could be needed until {until:%Y-%m-%d %H:%M} UTC"
    return ""


def _newest_first(history: History) -> list[str]:
    """By their newest deployment; those that never had one come last, the newest recorded first."""
    deployed = [d.deployment.release for d in reversed(history.deployments.values())]
    return list(dict.fromkeys(name for name in (*deployed, *reversed(history.releases)) if name in history.releases))
