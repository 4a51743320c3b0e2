"""Which releases are let go of: kept by count, and never one that somebody may still need.

A release costs disk: its images, its files. It is let go of only when nothing under way names it, it is no way back
from what serves, and enough newer ones are kept.
"""

from __future__ import annotations

from lastgood.core.history import History


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


def _newest_first(history: History) -> list[str]:
    """By their newest deployment; those that never had one come last, the newest recorded first."""
    deployed = [d.deployment.release for d in reversed(history.deployments.values())]
    return list(dict.fromkeys(name for name in (*deployed, *reversed(history.releases)) if name in history.releases))
