"""The watch window: read, journal, judge, every few seconds, until a verdict ends it.

The hour is counted from the journal, so a watch that was interrupted is taken up where it was. Watching takes no run
lease; when a verdict asks for a rollback, the lease is claimed for that.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from lastgood.core.config import Mode, WatchConfig
from lastgood.core.errors import LastgoodError, OutcomeUnknown, Refused, Retryable
from lastgood.core.history import DeploymentHistory, RunHistory
from lastgood.core.plan import Purpose
from lastgood.core.ports import Right
from lastgood.core.record import BucketSeen, DeploymentEnded, ReleaseJudged, WatchStarted
from lastgood.core.report import Report, TerminalState, announcement
from lastgood.core.verdict import Healthy, Inconclusive, Unhealthy, Verdict, Watch, Watching
from lastgood.runbook.frontend import learn_frontend
from lastgood.runbook.looking import DEADLINE_S, Eyes
from lastgood.runbook.rollback import BY_LASTGOOD, Cause, automatic_allowed, roll_back, take_up
from lastgood.runbook.rooms import Rooms
from lastgood.runbook.tell import tell


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOutcome:
    """How the watch of a deployment ended. report: of the rollback, when there was one."""

    terminal: TerminalState
    sentence: str
    report: Report | None = None


def state_of(rules: WatchConfig, deployment: DeploymentHistory) -> Watch | None:
    """Rebuild the watch from the journal; None when it never began."""
    if deployment.watch is None:
        return None
    rules = rules.model_copy(update={"window": deployment.watch.window_s})
    baseline = () if deployment.watch.bake else deployment.baseline
    watch = Watch.begin(rules, started_at=deployment.watch.at, baseline=baseline)
    for bucket in deployment.buckets:
        watch = watch.after(bucket)
    return watch


def start_watch(rooms: Rooms, deployment: str) -> None:
    """Begin the window of a deployment. A bake is begun by the rollback that it belongs to."""
    window_s = rooms.config.watch.window
    rooms.memory.note(WatchStarted(deployment=deployment, at=rooms.clock.now(), window_s=window_s))


def baking(rooms: Rooms) -> DeploymentHistory | None:
    """Return the deployment whose rollback is watched again now; None outside of that time."""
    deployments = rooms.memory.history().deployments.values()
    newest = next((d for d in reversed(deployments) if d.watch is not None), None)
    if newest is None or newest.ended is None or newest.watch is None or not newest.watch.bake:
        return None
    return newest if left_s(rooms, newest) > 0 else None


def watch_on(rooms: Rooms, deployment: str) -> WatchOutcome:
    """Watch until the window ends or a rollback ended. Interruptible at any moment; call again to take it up.

    Raises Refused when another process watches this stack already.
    """
    with ExitStack() as right, Eyes(rooms.sources, rooms.clock) as eyes:
        _claim(rooms, right)
        under = rooms.memory.history().deployments[deployment]
        watch, began = state_of(rooms.config.watch, under), under.watch
        if watch is None or began is None:
            raise Refused(f"deployment {deployment} has no watch yet", hint="lastgood status")
        told_blind = proposed = False
        frontend_known = began.bake
        eyes.look()
        while True:
            bucket = eyes.look_after(rooms.config.watch.interval)
            under = rooms.memory.history().deployments[deployment]
            # another watch that began on it is the bake of a rollback, and what was seen before it is not its evidence
            newest = next(reversed(rooms.memory.history().deployments.values()))
            if under.ended and (newest is not under or not (began.bake and under.watch == began)):
                return WatchOutcome(terminal=under.ended.terminal, sentence=under.ended.sentence)
            rooms.memory.note(BucketSeen(deployment=deployment, bucket=bucket))
            watch = watch.after(bucket)
            if (run := rooms.memory.history().open_run) is not None and run.plan.purpose is Purpose.ROLLBACK:
                if (joined := _join(rooms, run)) is not None:
                    return joined
                continue
            verdict = watch.judge(rooms.clock.now())
            match verdict:
                case Watching():
                    rooms.story(watching_line(under, verdict, warm_up_s=rooms.config.watch.warm_up))
                    frontend_known = frontend_known or learn_frontend(rooms, under)
                    if verdict.blind_to and not told_blind:
                        told_blind = True
                        _say_blind(rooms, under, verdict)
                case Unhealthy() if began.bake:
                    return _bake_failed(rooms, under, verdict)
                case Unhealthy():
                    if rooms.config.mode is Mode.OBSERVE:
                        if not proposed:
                            proposed = True
                            _say_only(rooms, under, verdict)
                        if left_s(rooms, under) <= 0:
                            return _kept(
                                rooms, under, Inconclusive(reasons=tuple(e.sentence for e in verdict.evidence))
                            )
                        continue
                    if (acted := _act(rooms, under, verdict, watch)) is not None:
                        return acted
                case Healthy() | Inconclusive():
                    return _kept(rooms, under, verdict)


def _claim(rooms: Rooms, right: ExitStack) -> None:
    """Take the right to watch. The watch of a deployment that this one superseded lets go at its next look."""
    began, patience_s = rooms.clock.now(), rooms.config.watch.interval + DEADLINE_S
    while True:
        try:
            right.enter_context(rooms.memory.journal.claim(rooms.who, Right.WATCH))
        except Refused:
            if (rooms.clock.now() - began).total_seconds() > patience_s:
                raise
            rooms.clock.sleep(1.0)
        else:
            return


def watching_line(under: DeploymentHistory, verdict: Watching, *, warm_up_s: float) -> str:
    """One line: what is seen now beside its limits, and how long the window still is. In the warm-up, which counts as
    one look, it says so: a red number there decides nothing yet."""
    bake = under.watch is not None and under.watch.bake
    passed_s = (under.watch.window_s if under.watch else 0.0) - verdict.left_s
    left = f"{verdict.left_s / 60:.0f} min left" if verdict.left_s > 90 else f"{verdict.left_s:.0f} s left"
    if passed_s < warm_up_s:
        left = f"warm-up, {warm_up_s - passed_s:.0f} s left"
    blind = f"   blind to: {'; '.join(verdict.blind_to)}" if verdict.blind_to else ""
    return f"{'baking' if bake else 'watching'}  {' · '.join(verdict.lines)}   {left}{blind}"


def left_s(rooms: Rooms, under: DeploymentHistory) -> float:
    """Seconds that the window of a watch is still open; 0 or less when it is over. One that never began has
    none left."""
    if under.watch is None:
        return 0.0
    return under.watch.window_s - (rooms.clock.now() - under.watch.at).total_seconds()


def _act(rooms: Rooms, under: DeploymentHistory, verdict: Unhealthy, watch: Watch) -> WatchOutcome | None:
    """Roll back as far as the mode allows. None when it could not be planned now: the watch goes on and tries again."""
    first = verdict.evidence[0]
    for evidence in verdict.evidence:
        rooms.story(f"UNHEALTHY  {evidence.sentence}")
        if evidence.proof:
            rooms.story(f"  {evidence.proof}")
    cause = Cause(
        trigger=first.trigger,
        sentence=first.sentence,
        proof=first.proof,
        by=BY_LASTGOOD,
        deployment=under.deployment.id,
        invalid_rows=watch.invalid_rows(),
    )
    with ExitStack() as right:
        try:
            right.enter_context(rooms.memory.journal.claim(rooms.who))
        except Refused as held:
            _not_now(rooms, under, cause, held)
            return None
        # somebody may have rolled back, or begun to, while this process read its signals
        if (ended := rooms.memory.history().deployments[under.deployment.id].ended) is not None:
            return WatchOutcome(terminal=ended.terminal, sentence=ended.sentence)
        report = take_up(rooms)
        if report is None:
            why_ask = automatic_allowed(rooms, rooms.memory.history())
            if why_ask:
                rooms.story(f"asking first: {why_ask}")
            try:
                report = roll_back(rooms, cause, confirm=bool(why_ask))
            except Refused as refused:
                return _refused(rooms, under, cause, refused)
            except (Retryable, OutcomeUnknown) as error:
                _not_now(rooms, under, cause, error)
                return None
    return WatchOutcome(terminal=report.terminal, sentence=report.sentence, report=report)


def _join(rooms: Rooms, run: RunHistory) -> WatchOutcome | None:
    """A rollback is under way: nothing is judged beside it. One whose process died is taken up. None while it lives."""
    with ExitStack() as right:
        try:
            right.enter_context(rooms.memory.journal.claim(rooms.who))
        except Refused:
            rooms.story(f"watching  rollback {run.started.run} is under way by {rooms.memory.journal.holder()}")
            return None
        report = take_up(rooms)
    if report is None:
        return None
    return WatchOutcome(terminal=report.terminal, sentence=report.sentence, report=report)


def _say_blind(rooms: Rooms, under: DeploymentHistory, verdict: Watching) -> None:
    """A bake that is blind is another event than its deployment's watch that was, and another release serves."""
    bake = under.watch is not None and under.watch.bake
    doing = f"baking {rooms.memory.history().serving}" if bake else f"watching {under.deployment.release}"
    event_id = f"{under.deployment.id}-{'bake-' if bake else ''}blind"
    tell(rooms, "", f"👁 {doing}, blind to {'; '.join(verdict.blind_to)}", event_id=event_id)


def _not_now(rooms: Rooms, under: DeploymentHistory, cause: Cause, error: LastgoodError) -> None:
    """The engine does not answer, or another process has the right to run: a person is told once, and the next look
    tries again."""
    tell(
        rooms,
        "",
        f"⚠️ {under.deployment.release} is bad ({cause.sentence}), and no way back can be planned now: "
        f"{error.message}. Trying again. {rooms.config.notify.owner} is needed.",
        event_id=f"{under.deployment.id}-not-now",
    )


def _refused(rooms: Rooms, under: DeploymentHistory, cause: Cause, refused: LastgoodError) -> WatchOutcome:
    """No plan could be made: nothing was touched, the bad release still serves, and a person must know."""
    sentence = f"{cause.sentence}; rollback refused: {refused.message}"
    tell(
        rooms,
        "",
        f"⚠️ {under.deployment.release} is bad ({cause.sentence}). Rollback refused, nothing was touched: "
        f"{refused.message}. {rooms.config.notify.owner} is needed.",
        event_id=f"{under.deployment.id}-refused",
    )
    rooms.memory.note(
        DeploymentEnded(deployment=under.deployment.id, terminal=TerminalState.REFUSED, sentence=sentence)
    )
    return WatchOutcome(terminal=TerminalState.REFUSED, sentence=sentence)


def _say_only(rooms: Rooms, under: DeploymentHistory, verdict: Unhealthy) -> None:
    sentence = "; ".join(e.sentence for e in verdict.evidence)
    rooms.story(f"UNHEALTHY  {sentence}")
    bad = under.deployment.release
    text = f"👁 {bad} is bad ({sentence}). Mode observe: nothing is done. To go back: lastgood rollback"
    tell(rooms, "", text, event_id=f"{under.deployment.id}-observed")


def _bake_failed(rooms: Rooms, under: DeploymentHistory, verdict: Unhealthy) -> WatchOutcome:
    """Never a rollback of a rollback: the release that was put back is bad too, or the deployment was not the cause."""
    sentence = "; ".join(e.sentence for e in verdict.evidence)
    text = (
        f"🚨 after the rollback of {under.deployment.release} the system is bad still or again: {sentence}. "
        f"{rooms.config.notify.owner} is needed."
    )
    tell(rooms, "", text, event_id=f"{under.deployment.id}-bake")
    rooms.memory.note(
        DeploymentEnded(deployment=under.deployment.id, terminal=TerminalState.ROLLED_BACK_DEGRADED, sentence=sentence)
    )
    return WatchOutcome(terminal=TerminalState.ROLLED_BACK_DEGRADED, sentence=sentence)


def _kept(rooms: Rooms, under: DeploymentHistory, verdict: Verdict) -> WatchOutcome:
    release, bake = under.deployment.release, bool(under.watch and under.watch.bake)
    if bake:
        said = "the bake after the rollback ended without a trigger"
        if isinstance(verdict, Inconclusive):
            said += f", but: {'; '.join(verdict.reasons)}"
        rooms.memory.note(
            DeploymentEnded(deployment=under.deployment.id, terminal=TerminalState.ROLLED_BACK_VERIFIED, sentence=said)
        )
        rooms.story(said)
        return WatchOutcome(terminal=TerminalState.ROLLED_BACK_VERIFIED, sentence=said)
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
    return WatchOutcome(terminal=terminal, sentence=sentence)
