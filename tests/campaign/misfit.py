"""That a transaction does not fit, and why: what a reason in quarantine must name."""

from __future__ import annotations

from typing import Final

DEPENDS: Final = "depends on one in quarantine"


class DoesNotFit(Exception):
    """The old schema does not take a transaction. str(): what its reason must name."""


def check(fits: object, why_not: str) -> None:
    """Raises DoesNotFit."""
    if not fits:
        raise DoesNotFit(why_not)
