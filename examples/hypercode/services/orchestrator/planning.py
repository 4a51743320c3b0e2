"""Turn a goal into steps. Pure: the same goal gives the same steps."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_JOINTS: Final = re.compile(r"\s*(?:;|\n|,?\s+(?:and then|then|and)\s+|\.\s+)\s*", re.IGNORECASE)
_MOST_PARTS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStep:
    """`task` is what the coder agent is asked to do; None for a step that needs no code."""

    title: str
    task: str | None

    def as_json(self) -> dict[str, object]:
        """With the names the API uses."""
        return {"title": self.title, "needs_code": self.task is not None}


def plan_steps(goal: str) -> Sequence[PlanStep]:
    """`goal`: not empty. One coding step for each part of the goal, at most five, between a first look and a check."""
    parts = [part.strip(" .!?") for part in _JOINTS.split(goal)]
    wanted = [part for part in parts if part][:_MOST_PARTS] or [goal]
    return [
        PlanStep(title=f"Clarify: {goal}", task=None),
        *(PlanStep(title=f"Write: {part}", task=part) for part in wanted),
        PlanStep(title=f"Check: {goal}", task=None),
    ]
