"""The newest swap of the database is taken back, for as long as the database that was replaced is kept.

What was written since the swap stays, in the database that is replaced now: taking it back once more is the same
command. Carried out as a journaled run of its own; one that died is gone on with by the next command.
"""

from __future__ import annotations

from dataclasses import replace

from lastgood.core.errors import NeedsHuman, Refused
from lastgood.core.facts import DatabaseFacts
from lastgood.core.history import History, RunHistory
from lastgood.core.plan import LiftFence, Plan, Role, SwapDatabase
from lastgood.core.record import RunStarted
from lastgood.core.report import TerminalState
from lastgood.core.returning import World, make_swap_back_plan, replaced_by
from lastgood.core.run import Stop, outcomes
from lastgood.runbook.rollback import COMPENSATION, finish_compensation, new_run_id
from lastgood.runbook.rooms import Rooms
from lastgood.runbook.tell import tell
from lastgood.runbook.verify import verify


def look(rooms: Rooms) -> Plan:
    """Plan to put back what the newest swap replaced. Changes nothing.

    Raises Refused when there was none, what it replaced is not kept any more, a run is under way, or a release was
    deployed since, whose schema would be taken from under it; Retryable when nobody can look.
    """
    if rooms.database is None:
        raise Refused("no database is configured, so none was swapped", hint="lastgood doctor")
    history = rooms.memory.history()
    if (run := history.open_run) is not None:
        raise Refused(f"run {run.started.run} is not over", hint="lastgood status")
    facts = rooms.database.observe()
    newest = next((known for known in reversed(history.runs.values()) if _has_swapped(known, facts)), None)
    if newest is None:
        raise Refused(f"no swap of {facts.database} is known", hint="lastgood history")
    replaced = replaced_by(newest.plan)
    if replaced not in facts.databases:
        raise Refused(f"{replaced}, which run {newest.plan.id} replaced, is not kept any more", hint="lastgood history")
    if not facts.exists:
        raise Refused(f"{facts.database} itself is not there", hint="lastgood doctor")
    if since := _deployed_since(history, newest):
        raise Refused(f"{since} was deployed since the swap of run {newest.plan.id}", hint="lastgood history")
    return make_swap_back_plan(
        newest.plan,
        World(containers=rooms.containers.observe(), rung=rooms.containers.rung(), database=facts),
        at=newest.record.at,
        name=facts.database,
        serving=history.serving,
        plan_id=new_run_id(history),
        now=rooms.clock.now(),
        deadlines=rooms.deadlines,
    )


def comes_back(plan: Plan) -> str:
    """Name of the database that takes the live one's."""
    return next(step.action.kept_as for step in plan.steps if isinstance(step.action, LiftFence))


def swap_back(rooms: Rooms, plan: Plan) -> None:
    """Carry out what a person agreed to, look whether what serves is well on it, and tell the team.

    Raises Refused when another process holds the right to, or the databases are others by now: nothing changed;
    NeedsHuman when it stopped, with whoever waited let in again as far as that could be, and when what serves is not
    well.
    """
    with rooms.memory.journal.claim(rooms.who):
        if comes_back(look(rooms)) != comes_back(plan):
            raise Refused("the databases are not what they were when this was planned", hint="lastgood swap-back")
        sentence = f"{rooms.who} asked for it"
        rooms.memory.note(RunStarted(run=plan.id, plan=plan, trigger=COMPENSATION, sentence=sentence, by=rooms.who))
        _conclude(rooms, plan, finish_compensation(rooms, plan))


def go_on(rooms: Rooms) -> bool:
    """Carry one whose process died to its end, with what it had begun to put right. Whether there was one. Raises as
    `swap_back` does."""
    with rooms.memory.journal.claim(rooms.who):
        died = False
        while (run := rooms.memory.history().open_run) is not None and run.started.trigger == COMPENSATION:
            rooms.story(f"taking up {run.started.run}, begun at {run.record.at:%H:%M:%S} UTC by {run.started.by}")
            stopped = finish_compensation(rooms, run.plan)
            if any(isinstance(s.action, LiftFence) and s.action.go_on_from for s in run.plan.steps):
                _conclude(rooms, run.plan, stopped)
                died = True
        return died


def _conclude(rooms: Rooms, plan: Plan, stopped: Stop | None) -> None:
    if stopped is not None:
        raise NeedsHuman(stopped.reason, hint=stopped.hint or f"lastgood explain {plan.id}")
    said = f"ℹ️ The database is what it was before its last swap again ({comes_back(plan)}), by {rooms.who}."
    tell(rooms, plan.id, said, event_id=f"{plan.id}-swapped-back")
    history = rooms.memory.history()
    if (serving := history.releases.get(history.serving)) is None:
        return
    looked = verify(rooms, replace(plan, scope=(Role.CONTAINERS, Role.DATABASE)), serving, None)
    if failed := [check.name for check in looked if not check.passed]:
        raise NeedsHuman(
            f"the swap is taken back, and on that schema {history.serving} is not well: {', '.join(failed)}",
            hint="lastgood swap-back   (takes it back), or deploy the release that this schema is for",
        )


def _has_swapped(run: RunHistory, facts: DatabaseFacts) -> bool:
    """Whether a run gave the live name to another database."""
    if any(isinstance(s.action, SwapDatabase) and s.action.swap in facts.swaps for s in run.plan.steps):
        return True
    done = {outcome.name for outcome in outcomes(run.plan, run.records) if outcome.state == "done"}
    return any(isinstance(s.action, LiftFence) and s.action.go_on_from and s.name in done for s in run.plan.steps)


def _deployed_since(history: History, swapped: RunHistory) -> str:
    """The release of a deployment that began after the swap, empty for none. One that was refused changed nothing."""
    for known in reversed(history.deployments.values()):
        refused = known.ended is not None and known.ended.terminal is TerminalState.REFUSED
        if known.deployment.started_at > swapped.record.at and not refused:
            return known.deployment.release
    return ""
