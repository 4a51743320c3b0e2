"""What a plan stands on that a person is asked about. They are asked without the right to run, so that an open question
keeps nobody from a rollback; with it, this says whether the plan that was shown is still the one to carry out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from lastgood.core.history import History
from lastgood.runbook.rollback import COMPENSATION


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What the journal said. runs and deployments: how many. done: records of the run that lies open."""

    serving: str
    runs: int
    deployments: int
    done: int

    @classmethod
    def of(cls, history: History) -> Self:
        """Read it off. `history` goes on changing, this does not."""
        run = history.open_run
        return cls(
            serving=history.serving,
            runs=len(history.runs),
            deployments=len(history.deployments),
            done=len(run.records) if run else 0,
        )

    def lost(self, history: History) -> str:
        """Say what came between; empty when nothing did. How a watch ended is nothing: no plan is made of that."""
        now, newest = Ground.of(history), next(reversed(history.runs.values()), None)
        if newest is not None and now.runs > self.runs:
            if newest.started.trigger == COMPENSATION:
                return f"{newest.started.run} ran meanwhile: {newest.started.sentence}"
            return f"{newest.plan.purpose.value} {newest.started.run} of {newest.plan.to_release} began meanwhile"
        if now.deployments > self.deployments or now.serving != self.serving:
            return f"{now.serving or 'nothing'} was recorded meanwhile as what serves"
        if newest is not None and now.done != self.done:
            return f"{newest.plan.purpose.value} {newest.started.run} was carried on meanwhile"
        return ""
