"""A deploy that nobody carries on, and that users noticed nothing of: it is ended before a rollback to something else.

Left open it would be what the next rollback undoes, and what serves, and is bad, would be its target.
"""

from __future__ import annotations

from lastgood.core.errors import LastgoodError
from lastgood.core.plan import Plan, Purpose, TakeRestorePoint
from lastgood.core.record import DeploymentEnded, RunEnded
from lastgood.core.report import TerminalState
from lastgood.runbook.looking import patiently
from lastgood.runbook.rollback import keep_restore_point
from lastgood.runbook.rooms import Rooms


def give_up(rooms: Rooms, why: str) -> None:
    """End a deploy that died before it changed what serves, so that a rollback can undo it. Needs the RUN lease."""
    run = rooms.memory.history().open_run
    if run is not None and run.plan.purpose is Purpose.DEPLOY:
        keep_restore_points(rooms, run.plan)
        rooms.memory.note(RunEnded(run=run.started.run, terminal=None, serving=run.plan.from_release, stopped=why))


def pass_over(rooms: Rooms, deployment: str, why: str) -> Plan | None:
    """Give up a deploy, and end its deployment as refused: what is left by the rollback that follows is the release
    that serves. What its gate started is that rollback's to remove, once the traffic is where it belongs. Returns the
    deploy's plan, None where it had none yet. Needs the RUN lease."""
    history = rooms.memory.history()
    run, release = history.deploy_run(deployment), history.deployments[deployment].deployment.release
    give_up(rooms, why)
    sentence = f"{release} never served: {run.ended.stopped if run and run.ended else why}"
    rooms.memory.note(DeploymentEnded(deployment=deployment, terminal=TerminalState.REFUSED, sentence=sentence))
    rooms.story(f"  the deploy of {release}, which nobody carries on, is given up")
    return run.plan if run else None


def keep_restore_points(rooms: Rooms, plan: Plan) -> None:
    """Journal what a plan took and proved, whether or not the plan came to its end: going back may need it."""
    known = rooms.memory.history().restore_points
    taken = [s.action.restore_point for s in plan.steps if isinstance(s.action, TakeRestorePoint)]
    taken = [restore_point for restore_point in taken if restore_point not in known]
    if rooms.database is None or not taken:
        return
    try:
        proved = patiently(rooms.clock, rooms.database.observe).restore_points
        for restore_point in taken:
            if restore_point in proved:
                keep_restore_point(rooms, restore_point)
    except LastgoodError as error:
        rooms.story(f"  the restore point could not be looked at: {error.message}")
