"""The newest swap of the database is taken back, for as long as the database that was replaced is kept.

What was written since the swap stays, in the database that is replaced now: taking it back once more is the same
command. Carried out as a journaled run of its own; one that died is gone on with by the next command.
"""

from __future__ import annotations

from lastgood.core.errors import NeedsHuman, Refused
from lastgood.core.facts import DatabaseFacts
from lastgood.core.history import RunHistory
from lastgood.core.plan import Fence, LiftFence, Plan
from lastgood.core.record import RunStarted
from lastgood.core.returning import World, make_swap_back_plan
from lastgood.runbook.rollback import BY_LASTGOOD, COMPENSATION, finish_compensation, new_run_id
from lastgood.runbook.rooms import Rooms


def look(rooms: Rooms) -> Plan:
    """Plan to put back what the newest swap replaced. Changes nothing. Raises Refused when there is none, when what
    it replaced is not kept any more, or a run or a watch is under way; Retryable when nobody can look."""
    if rooms.database is None:
        raise Refused("no database is configured, so none was swapped", hint="lastgood doctor")
    history = rooms.memory.history()
    if (run := history.open_run) is not None:
        raise Refused(f"run {run.started.run} is not over", hint="lastgood status")
    if (under := history.open_deployment) is not None:
        raise Refused(f"{under.deployment.release} is watched: not before that is over", hint="lastgood status")
    facts, containers = rooms.database.observe(), rooms.containers.observe()
    newest = next((known for known in reversed(history.runs.values()) if _swapped(known, facts)), None)
    if newest is None or not facts.exists:
        raise Refused(f"no database that was replaced is kept beside {facts.database}", hint="lastgood history")
    return make_swap_back_plan(
        newest.plan,
        World(containers=containers, rung=rooms.containers.rung(), database=facts),
        name=facts.database,
        serving=history.serving,
        plan_id=new_run_id(history),
        now=rooms.clock.now(),
        deadlines=rooms.deadlines,
    )


def go_on(rooms: Rooms) -> bool:
    """Carry one whose process died to its end. Whether there was one. Raises as `swap_back` does."""
    with rooms.memory.journal.claim(rooms.who):
        run = rooms.memory.history().open_run
        if run is None or run.started.trigger != COMPENSATION or run.started.by == BY_LASTGOOD:
            return False
        rooms.story(f"taking up {run.started.run}, begun at {run.record.at:%H:%M:%S} UTC by {run.started.by}")
        _finish(rooms, run.plan)
        return True


def _swapped(run: RunHistory, facts: DatabaseFacts) -> bool:
    return any(isinstance(s.action, Fence) and s.action.kept_as in facts.databases for s in run.plan.steps)


def comes_back(plan: Plan) -> str:
    """Name of the database that takes the live one's."""
    return next(step.action.kept_as for step in plan.steps if isinstance(step.action, LiftFence))


def swap_back(rooms: Rooms, plan: Plan) -> None:
    """Carry out what a person agreed to. Raises Refused when another process holds the right to, or the databases are
    others by now: nothing changed; NeedsHuman when it stopped: then the fence was lifted again, as far as it could be.
    """
    with rooms.memory.journal.claim(rooms.who):
        if comes_back(look(rooms)) != comes_back(plan):
            raise Refused("the databases are not what they were when this was planned", hint="lastgood swap-back")
        sentence = f"{rooms.who} asked for it"
        rooms.memory.note(RunStarted(run=plan.id, plan=plan, trigger=COMPENSATION, sentence=sentence, by=rooms.who))
        _finish(rooms, plan)


def _finish(rooms: Rooms, plan: Plan) -> None:
    if (stopped := finish_compensation(rooms, plan)) is not None:
        raise NeedsHuman(stopped.reason, hint=stopped.hint or f"lastgood explain {plan.id}")
