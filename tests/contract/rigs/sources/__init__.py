"""One module per signal source: small real worlds that the source looks at, and how to bring each into trouble.

`tests/contract/test_signal_source.py` runs the same suite over RIGS of every module here: name of the rig -> how to
make it. A module whose worlds start no server says NEEDS_SERVER = False, and runs in `make check`, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime

from lastgood.core.ports import SignalSource

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
Act = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRig:
    """A world of its own for one source. It is well at first.

    troubles: what makes it unwell in one way each (away, slow, nonsense), by name. footprint: whatever a source that
    only reads must not change. counting: its first reading has nothing to compare with.
    """

    source: SignalSource
    troubles: Mapping[str, Act]
    footprint: Callable[[], object]
    counting: bool = False


Rigs = Mapping[str, Callable[[], AbstractContextManager[SourceRig]]]
