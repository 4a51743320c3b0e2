"""What a campaign found, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from tests.campaign.case import NAMES, STEPS, Case, Kill, Outcome

COUNTED: Final = ("acknowledged", "unknown", "replayed", "quarantined", "unaccounted", "twice")
COLUMNS: Final = ("runs", "counted", *COUNTED, "wrong")


def table(cases: Sequence[Case], outcomes: Sequence[Outcome]) -> str:
    """Lines for each kind of kill, each step, each migration, and for all. runs: all that were played; counted: in
    which the kill fell inside of the step; wrong: in which anything was not as it must be."""
    width = max(map(len, NAMES)) + 2
    lines = [" " * width + "".join(f"{name:>{len(name) + 2}}" for name in COLUMNS)]

    def add(name: str, of: Callable[[Case], bool] = lambda _case: True) -> None:
        mine = [outcome for outcome in outcomes if of(outcome.case)]
        found = Counter[str](
            runs=len(mine), counted=sum(o.landed for o in mine), wrong=sum(bool(o.wrong) for o in mine)
        )
        for outcome in mine:
            found.update(outcome.counts)
        lines.append(f"{name:<{width}}" + "".join(f"{found[name]:>{len(name) + 2},}" for name in COLUMNS))

    for kill in Kill:
        add(kill, lambda case, kill=kill: case.kill is kill)  # type: ignore[misc] # bound now
    for step in STEPS:
        add(step, lambda case, step=step: case.step == step)  # type: ignore[misc] # bound now
    for shape in NAMES:
        add(shape, lambda case, shape=shape: case.shape_name == shape)  # type: ignore[misc] # bound now
    add("all")
    missed = {case.number for case in cases} - {outcome.case.number for outcome in outcomes if outcome.landed}
    if missed:
        lines.append(f"not counted, whatever was drawn: {', '.join(map(str, sorted(missed)))}")
    return "\n".join(lines) + "\n"
