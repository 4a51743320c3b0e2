"""Whether a dump and a clone have room: each on its own filesystem, or both on one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lastgood.targets.postgres.preflight import Space, space, too_small

SIZE = 1_000_000_000


@pytest.mark.parametrize(
    "dumps,data,said",
    [
        pytest.param(Space(fsid="a", free=1_300_000_000), Space(fsid="b", free=1_300_000_000), [], id="apart"),
        pytest.param(Space(fsid="a", free=1_300_000_000), None, [], id="far-away"),
        pytest.param(
            Space(fsid="a", free=1_300_000_000),
            Space(fsid="a", free=1_300_000_000),
            ["points and the server's data share 1300 MB free for a dump and a clone, which need 2400 MB"],
            id="one-filesystem",
        ),
        pytest.param(
            Space(fsid="a", free=1),
            Space(fsid="b", free=2),
            [
                "points has 0 MB free; a dump may need 1200 MB",
                "the server's volume has 0 MB free; a clone needs 1200 MB",
            ],
            id="both-full",
        ),
        pytest.param(Space(fsid="a", free=2_400_000_000), Space(fsid="a", free=2_400_000_000), [], id="just-enough"),
    ],
)
def test_what_is_too_small_is_named(dumps: Space, data: Space | None, said: list[str]) -> None:
    assert too_small(SIZE, dumps, data, folder="points") == said


def test_the_log_of_a_restore_needs_room_beside_the_clone() -> None:
    dumps, data = Space(fsid="a", free=1_300_000_000), Space(fsid="b", free=1_300_000_000)
    assert too_small(SIZE, dumps, data, folder="points", log=SIZE) == [
        "the server's volume has 1300 MB free; a clone needs 2200 MB"
    ]


def test_a_filesystem_is_known_by_the_same_id_from_inside_a_container(tmp_path: Path) -> None:
    shown = subprocess.run(["stat", "-f", "-c", "%i", tmp_path], capture_output=True, text=True, check=True, timeout=10)
    here = space(None, str(tmp_path))
    assert here is not None
    assert here.fsid == shown.stdout.strip()
    assert here.free > 0
