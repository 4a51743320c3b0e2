"""How a watch ends: what is journaled, what the team is told, and what a person should type.

Every ending has a sentence of its own, and none of them begins a rollback.
"""

from __future__ import annotations

from dataclasses import dataclass

from lastgood.core.errors import LastgoodError
from lastgood.core.history import DeploymentHistory
from lastgood.core.plan import Purpose
from lastgood.core.record import DeploymentEnded, ReleaseJudged
from lastgood.core.report import Report, TerminalState, announcement
from lastgood.core.verdict import Healthy, Inconclusive, Unhealthy, Verdict
from lastgood.runbook.holding import back_from, put_back
from lastgood.runbook.rollback import BY_LASTGOOD, Cause, incident, save_evidence, stand_down
from lastgood.runbook.rooms import Rooms
from lastgood.runbook.tell import tell


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOutcome:
    """How the watch of a deployment ended. report: of the rollback, when there was one."""

    terminal: TerminalState
    sentence: str
    report: Report | None = None


def kept(rooms: Rooms, under: DeploymentHistory, verdict: Verdict) -> WatchOutcome:
    """The window is over and nothing fired: good, or neither good nor bad. A bake only says how it went."""
    release = under.deployment.release
    if under.watch and under.watch.bake:
        return _bake_over(rooms, under, verdict)
    if isinstance(verdict, Healthy):
        terminal, sentence = TerminalState.HEALTHY_KEPT, verdict.sentence
        if not verdict.proved:
            sentence += f"; not proved, {verdict.more_requests:,} more requests without an error would"
        rooms.memory.note(ReleaseJudged(release=release, good=True, by=BY_LASTGOOD, why="its watch ended healthy"))
    else:
        reasons = verdict.reasons if isinstance(verdict, Inconclusive) else ()
        terminal, sentence = TerminalState.INCONCLUSIVE_KEPT, "; ".join(reasons)
    rooms.memory.note(DeploymentEnded(deployment=under.deployment.id, terminal=terminal, sentence=sentence))
    report = Report(
        run="",
        terminal=terminal,
        trigger="",
        sentence=sentence,
        from_release=release,
        to_release=release,
        began_at=under.deployment.started_at,
        ended_at=rooms.clock.now(),
        owner=rooms.config.notify.owner,
    )
    tell(rooms, "", announcement(report), event_id=f"{under.deployment.id}-{terminal.value}")
    stand_down(rooms)
    return WatchOutcome(terminal=terminal, sentence=sentence)


def _bake_over(rooms: Rooms, under: DeploymentHistory, verdict: Verdict) -> WatchOutcome:
    said = "the bake after the rollback ended without a trigger"
    if isinstance(verdict, Inconclusive):
        said += f", and not everything was seen: {'; '.join(verdict.reasons)}"
        text = f"⚠️ {rooms.memory.history().serving} after the rollback of {under.deployment.release}: {said}"
        tell(rooms, "", text, event_id=f"{under.deployment.id}-bake-blind")
    rooms.memory.note(
        DeploymentEnded(deployment=under.deployment.id, terminal=TerminalState.ROLLED_BACK_VERIFIED, sentence=said)
    )
    rooms.story(said)
    stand_down(rooms)
    return WatchOutcome(terminal=TerminalState.ROLLED_BACK_VERIFIED, sentence=said)


def bake_failed(rooms: Rooms, under: DeploymentHistory, verdict: Unhealthy) -> WatchOutcome:
    """Never a rollback of a rollback: the release that was put back is bad too, or the deployment was not the cause.

    A linked incident is opened, with its evidence, and a person is told."""
    sentence = "; ".join(e.sentence for e in verdict.evidence)
    runs = [r for r in under.runs if rooms.memory.history().runs[r].plan.purpose is Purpose.ROLLBACK]
    name = f"{runs[-1] if runs else under.deployment.id}-bake"
    first = verdict.evidence[0]
    cause = Cause(trigger=first.trigger, sentence=sentence, by=BY_LASTGOOD, deployment=under.deployment.id)
    save_evidence(rooms, name, cause, linked_to=runs[-1] if runs else "")
    text = (
        f"🚨 after the rollback of {under.deployment.release} the system is bad still or again: {sentence}. "
        f"{rooms.config.notify.owner} is needed. Evidence: {incident(rooms, name)}"
    )
    tell(rooms, "", text, event_id=f"{under.deployment.id}-bake")
    return _ended(rooms, under, TerminalState.ROLLED_BACK_DEGRADED, sentence)


def refused(rooms: Rooms, under: DeploymentHistory, cause: Cause, error: LastgoodError) -> WatchOutcome:
    """No plan could be made: nothing was touched, the bad release still serves, and a person must know."""
    sentence = f"{cause.sentence}; rollback refused: {error.message}"
    tell(
        rooms,
        "",
        f"⚠️ {under.deployment.release} is bad ({cause.sentence}). Rollback refused, nothing was touched: "
        f"{error.message}. {rooms.config.notify.owner} is needed.",
        event_id=f"{under.deployment.id}-refused",
    )
    return _ended(rooms, under, TerminalState.REFUSED, sentence)


def taken_over(rooms: Rooms, under: DeploymentHistory, found: tuple[str, ...]) -> WatchOutcome:
    """Somebody else changed what serves, round this tool: what is read is no longer of the release that is watched."""
    sentence = f"somebody else changed what serves: {'; '.join(found)}"
    back = put_back(rooms.memory.history()) or "lastgood releases"
    tell(
        rooms,
        "",
        f"🚨 The watch of {under.deployment.release} stopped: {sentence}. Nothing was done. "
        f"{rooms.config.notify.owner} is needed. "
        f"If it is meant: lastgood record --release NAME; if not: {back}",
        event_id=f"{under.deployment.id}-taken-over",
    )
    return _ended(rooms, under, TerminalState.NEEDS_HUMAN, sentence)


def out_of_reach(rooms: Rooms, under: DeploymentHistory, cause: Cause, error: LastgoodError) -> WatchOutcome:
    """It is bad, the window is over, and nobody could plan a way back all that time."""
    sentence = f"{cause.sentence}; no way back could be planned: {error.message}"
    back = back_from(rooms.memory.history(), under.deployment.release) or "lastgood releases"
    text = (
        f"🚨 {under.deployment.release} is bad and serves still: {sentence}. {rooms.config.notify.owner} is needed. "
        f"Next: lastgood doctor; {back}"
    )
    tell(rooms, "", text, event_id=f"{under.deployment.id}-out-of-reach")
    return _ended(rooms, under, TerminalState.NEEDS_HUMAN, sentence)


def by_others(rooms: Rooms, under: DeploymentHistory) -> WatchOutcome:
    """Somebody else ended it: a rollback, a newer deployment, a person's word."""
    if under.ended is None:
        return WatchOutcome(terminal=TerminalState.SUPERSEDED, sentence="it is no longer what is watched")
    runs = [rooms.memory.history().runs[run].ended for run in under.runs]
    report = next((ended.report for ended in reversed(runs) if ended and ended.report), None)
    return WatchOutcome(terminal=under.ended.terminal, sentence=under.ended.sentence, report=report)


def _ended(rooms: Rooms, under: DeploymentHistory, terminal: TerminalState, sentence: str) -> WatchOutcome:
    rooms.memory.note(DeploymentEnded(deployment=under.deployment.id, terminal=terminal, sentence=sentence))
    return WatchOutcome(terminal=terminal, sentence=sentence)
