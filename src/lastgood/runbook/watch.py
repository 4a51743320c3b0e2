"""The watch window: read, journal, judge, every few seconds, until a verdict ends it.

The hour is counted from the journal, so a watch that was interrupted is taken up where it was. Watching takes no run
lease; when a verdict asks for a rollback, the lease is claimed for that.
"""

from __future__ import annotations

from contextlib import ExitStack
from datetime import datetime
from typing import Final, Self

from lastgood.core.config import Mode, WatchConfig
from lastgood.core.errors import LastgoodError, OutcomeUnknown, Refused, Retryable
from lastgood.core.facts import ContainerFacts, DatabaseFacts
from lastgood.core.history import DeploymentHistory
from lastgood.core.plan import Purpose, strangers
from lastgood.core.ports import Right
from lastgood.core.record import BucketSeen, WatchStarted
from lastgood.core.release import Release
from lastgood.core.report import TerminalState
from lastgood.core.verdict import Healthy, Inconclusive, Unhealthy, Watch, Watching
from lastgood.runbook import endings
from lastgood.runbook.captures import let_grow
from lastgood.runbook.endings import WatchOutcome
from lastgood.runbook.frontend import learn_frontend
from lastgood.runbook.given_up import pass_over
from lastgood.runbook.holding import (
    CHECKED_S,
    back_from,
    look_through,
    tell_what_is_missing,
    tell_who_is_beside,
    ways_back,
)
from lastgood.runbook.looking import DEADLINE_S, Aside, Eyes, patiently
from lastgood.runbook.rollback import BY_LASTGOOD, Cause, automatic_allowed, clear_candidates, roll_back, take_up
from lastgood.runbook.rooms import Rooms
from lastgood.runbook.tell import tell, tell_again

BESIDE_S: Final = 15.0
"""How often the engine is asked whether what serves is still the release that is watched: sooner than a fault can fire
that begins now (four intervals of 5 s)."""
PATIENCE_S: Final = 900.0
"""How long after its window a bad release is still tried to be put back while the engine does not answer."""


def state_of(rules: WatchConfig, deployment: DeploymentHistory) -> Watch | None:
    """Rebuild the watch from the journal; None when it never began."""
    if deployment.watch is None:
        return None
    rules = rules.model_copy(update={"window": deployment.watch.window_s})
    watch = Watch.begin(rules, started_at=deployment.watch.at, baseline=deployment.baseline, known=deployment.watched)
    for bucket in deployment.buckets:
        watch = watch.after(bucket)
    return watch


def start_watch(rooms: Rooms, deployment: str) -> None:
    """Begin the window of a deployment. A bake is begun by the rollback that it belongs to.

    Raises Refused when the deploy stopped: then its release does not serve, and there is nothing to watch.
    """
    history = rooms.memory.history()
    under, run = history.deployments[deployment], history.deploy_run(deployment)
    stopped = bool(run.ended and run.ended.stopped) if run else not under.by_others
    if stopped:
        raise Refused(f"{under.deployment.release} never served: its deploy stopped", hint="lastgood rollback")
    window_s = rooms.config.watch.window
    rooms.memory.note(WatchStarted(deployment=deployment, at=rooms.clock.now(), window_s=window_s))


def baking(rooms: Rooms) -> DeploymentHistory | None:
    """Return the deployment whose rollback is watched again now; None outside of that time."""
    deployments = rooms.memory.history().deployments.values()
    newest = next((d for d in reversed(deployments) if d.watch is not None), None)
    if newest is None or newest.ended is None or newest.watch is None or not newest.watch.bake:
        return None
    return newest if left_s(rooms, newest) > 0 else None


def watchable(rooms: Rooms) -> DeploymentHistory | None:
    """Return the deployment whose release serves and is to be watched, or whose rollback is. A deploy at its gate, or
    left there, is not what serves."""
    history = rooms.memory.history()
    return history.open_beneath(history.unserved) or baking(rooms)


def watch_on(rooms: Rooms, deployment: str) -> WatchOutcome:
    """Watch until the window ends or a rollback ended. Interruptible at any moment; call again to take it up.

    Raises Refused when another process watches this stack already.
    """
    with ExitStack() as right, Eyes(rooms.sources, rooms.clock) as eyes:
        _claim(rooms, right)
        under = rooms.memory.history().deployments[deployment]
        begun, watch = under.watch, state_of(rooms.config.watch, under)
        if begun is None or watch is None:
            raise Refused(f"deployment {deployment} has no watch yet", hint="lastgood status")
        with _Beside(rooms, under) as beside:
            eyes.look()
            while True:
                bucket = eyes.look_after(rooms.config.watch.interval)
                found = beside.look()
                history = rooms.memory.history()
                under, run = history.deployments[deployment], history.open_run
                beside_a_rollback = run is not None and run.plan.purpose is Purpose.ROLLBACK
                if not beside_a_rollback and (under.watch != begun or _is_over(rooms, under)):
                    return endings.by_others(rooms, under)
                if found:
                    return endings.taken_over(rooms, under, found)
                if under.watch == begun:
                    rooms.memory.note(BucketSeen(deployment=deployment, bucket=bucket))
                    watch = watch.after(bucket)
                tell_again(rooms)
                outcome = _join(rooms) if beside_a_rollback else _conclude(rooms, under, watch)
                if outcome is not None:
                    return outcome


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


def _is_over(rooms: Rooms, under: DeploymentHistory) -> bool:
    """Somebody rolled back, vouched, or deployed something else. A bake goes on after the end that it belongs to, until
    something is deployed, after it began, that serves and was not refused."""
    if under.watch is None or not under.watch.bake:
        return under.ended is not None
    history = rooms.memory.history()
    newer = [d for d in [*history.deployments.values()][under.deployed :] if d is not history.unserved]
    return any(d.ended is None or d.ended.terminal is not TerminalState.REFUSED for d in newer)


def _join(rooms: Rooms) -> WatchOutcome | None:
    """A rollback is under way: nothing is judged beside it. One whose process died is taken up. None while it lives."""
    with ExitStack() as right:
        try:
            right.enter_context(rooms.memory.journal.claim(rooms.who))
        except Refused:
            rooms.story(f"watching  a rollback is under way by {rooms.memory.journal.holder()}")
            return None
        report = take_up(rooms)
    return WatchOutcome(terminal=report.terminal, sentence=report.sentence, report=report) if report else None


def _conclude(rooms: Rooms, under: DeploymentHistory, watch: Watch) -> WatchOutcome | None:
    """Judge, say what is seen, and act on it as far as the mode allows. None: the watch goes on."""
    bake = under.watch is not None and under.watch.bake
    match verdict := watch.judge(rooms.clock.now()):
        case Watching():
            rooms.story(watching_line(under, verdict, warm_up_s=rooms.config.watch.warm_up))
            if verdict.blind_to:
                _say_blind(rooms, under, verdict)
            return None
        case Unhealthy() if bake:
            return endings.bake_failed(rooms, under, verdict)
        case Unhealthy() if rooms.config.mode is Mode.OBSERVE:
            _say_only(rooms, under, verdict)
            if left_s(rooms, under) > 0:
                return None
            return endings.kept(rooms, under, Inconclusive(reasons=tuple(e.sentence for e in verdict.evidence)))
        case Unhealthy():
            return _act(rooms, under, verdict, watch)
        case Healthy() | Inconclusive():
            return endings.kept(rooms, under, verdict)


class _Beside:
    """What is looked at beside the watch, and never holds it up: whether what serves is still the release that is
    watched, and which frontend deployment belongs to it."""

    def __init__(self, rooms: Rooms, under: DeploymentHistory) -> None:
        self._rooms, self._under = rooms, under
        self._bake = under.watch is not None and under.watch.bake
        self._engine = Aside(rooms.containers.observe)
        self._host = Aside(rooms.frontend.observe) if rooms.frontend and not self._bake else None
        self._server = Aside(rooms.database.observe) if rooms.database else None
        self._looked_at = rooms.clock.now()
        self._ways: tuple[Release, ...] = ()
        self._needs = Aside(lambda: look_through(rooms, self._ways))
        self._checked_at: datetime | None = None
        self._told_gone = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()
        self._needs.close()
        for aside in (self._host, self._server):
            if aside is not None:
                aside.close()

    def look(self) -> tuple[str, ...]:
        """Return what serves in the place of the release, one line each; empty while nothing does or nobody knows."""
        if self._host is not None and (facts := self._host.answer()) is not None:
            under = self._rooms.memory.history().deployments[self._under.deployment.id]
            if learn_frontend(self._rooms, under, facts):
                self._host.close()
                self._host = None
        if (self._rooms.clock.now() - self._looked_at).total_seconds() < BESIDE_S:
            return ()
        shown = self._engine.answer()
        if not isinstance(shown, ContainerFacts):
            return ()
        self._looked_at = self._rooms.clock.now()
        history = self._rooms.memory.history()
        if history.open_run is not None:
            return ()
        self._say_what_is_gone(shown)
        tell_who_is_beside(self._rooms, shown)
        self._check_ways_back()
        self._mind_the_capture()
        watched = history.serving if self._bake else self._under.deployment.release
        return strangers(history.releases[watched].release, shown)

    def _say_what_is_gone(self, shown: ContainerFacts) -> None:
        """The way back may be cleaned away while nobody looks: better told now than when it is needed."""
        bad = self._under.deployment.release
        good = self._rooms.memory.history().last_good(before=bad)
        gone = [s.name for s in good.release.services if s.artifact not in shown.held] if good else []
        if good and gone and not self._bake:
            self._told_gone = good.release.id
            tell(
                self._rooms,
                "",
                f"👁 watching {bad}, and there is no way back: {', '.join(gone)} of {good.release.id} is not on this "
                "host any more. Next: lastgood doctor",
                event_id=f"{self._under.deployment.id}-gone",
            )

    def _mind_the_capture(self) -> None:
        """What the server keeps for a replay must not fill its disk: a person is told at half of the limit, and at the
        limit it is let go of."""
        facts = self._server.answer() if self._server else None
        if isinstance(facts, DatabaseFacts):
            let_grow(self._rooms, facts)

    def _check_ways_back(self) -> None:
        """Every good release that is kept, once an hour: each is told of once, with what to do."""
        now = self._rooms.clock.now()
        if self._checked_at is not None and (now - self._checked_at).total_seconds() < CHECKED_S:
            return
        history = self._rooms.memory.history()
        self._ways = tuple(known.release for known in ways_back(history))
        found = self._needs.answer()
        if found is None or isinstance(found, LastgoodError):
            return
        self._checked_at = now
        tell_what_is_missing(self._rooms, found, deployment=self._under.deployment.id, told=self._told_gone)


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
    with ExitStack() as held:
        try:
            held.enter_context(rooms.memory.journal.claim(rooms.who))
        except Refused as error:
            _not_now(rooms, under, cause, error)
            return None
        # somebody may have rolled back, or begun to, while this process read its signals
        if (report := take_up(rooms)) is not None:
            return WatchOutcome(terminal=report.terminal, sentence=report.sentence, report=report)
        if _is_over(rooms, rooms.memory.history().deployments[under.deployment.id]):
            return None
        return _roll_back(rooms, under, cause)


def _roll_back(rooms: Rooms, under: DeploymentHistory, cause: Cause) -> WatchOutcome | None:
    """Needs the RUN lease."""
    bad, given_up = under.deployment.release, None
    try:
        shown = patiently(rooms.clock, rooms.containers.observe)
        if found := strangers(rooms.memory.history().releases[bad].release, shown):
            return endings.taken_over(rooms, under, found)
        unserved = rooms.memory.history().unserved
        if unserved and unserved.deployment.id != under.deployment.id:
            given_up = pass_over(rooms, unserved.deployment.id, f"its process died, and {bad} goes back")
        if why_ask := automatic_allowed(rooms, rooms.memory.history()):
            rooms.story(f"asking first: {why_ask}")
        report = roll_back(rooms, cause, confirm=bool(why_ask))
    except Refused as error:
        if given_up and (left := clear_candidates(rooms, given_up)):
            rooms.story(f"  {left}")
        return endings.refused(rooms, under, cause, error)
    except (Retryable, OutcomeUnknown) as error:
        if left_s(rooms, under) < -PATIENCE_S:
            return endings.out_of_reach(rooms, under, cause, error)
        _not_now(rooms, under, cause, error)
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


def _say_only(rooms: Rooms, under: DeploymentHistory, verdict: Unhealthy) -> None:
    sentence = "; ".join(e.sentence for e in verdict.evidence)
    rooms.story(f"UNHEALTHY  {sentence}")
    bad = under.deployment.release
    back = back_from(rooms.memory.history(), bad)
    how = f"To go back: {back}" if back else "There is no good release to go back to"
    text = f"👁 {bad} is bad ({sentence}). Mode observe: nothing is done. {how}"
    tell(rooms, "", text, event_id=f"{under.deployment.id}-observed")
