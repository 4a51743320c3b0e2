"""Which release this process is: the file VERSION at the root of the tree, read once when the process starts.

Read once on purpose: a checkout that changes under a running process must not change what the process says it is.
"""

from pathlib import Path
from typing import Final

TREE: Final = Path(__file__).resolve().parents[2]
"""Root of the source tree; `/app` in the images."""

RELEASE: Final = (TREE / "VERSION").read_text(encoding="utf-8").strip()
"""Name of the release, for example `v2.0.3`."""
