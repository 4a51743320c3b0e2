"""Named points at which this process kills itself, so that everybody can see a run resume:
LASTGOOD_DIE_AT=after-intent:fence.

Points: before-intent, after-intent, after-act, after-seen, each of any step; after-plan:rollback, before-end:rollback.
"""

from __future__ import annotations

import os
import signal
from typing import Final

VARIABLE: Final = "LASTGOOD_DIE_AT"


def killpoint(moment: str, what: str) -> None:
    """Die here, as by kill -9, when the environment names this point; else nothing."""
    if os.environ.get(VARIABLE) == f"{moment}:{what}":
        os.kill(os.getpid(), signal.SIGKILL)
