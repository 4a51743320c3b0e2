"""What the gate calls what it starts."""

from __future__ import annotations

import pytest

from lastgood.targets.compose.gate import twin_name

SHA = "5d41402abc4b2a76b9719d911017c592aa11bb22"


def test_a_container_is_called_after_its_project_service_and_release() -> None:
    assert twin_name("hypercode", "hypercode-core", "v2.0.6") == "hypercode-hypercode-core-v2.0.6"


@pytest.mark.parametrize("release", [SHA, f"{SHA[:-1]}3", "v1." + "9" * 60, "a" * 35 + "." + "b" * 27])
def test_a_name_that_no_name_server_takes_is_cut_and_stays_one_of_its_own(release: str) -> None:
    name = twin_name("hypercode", "hypercode-core", release)
    assert len(f"{name}-4") <= 63
    assert name.startswith("hypercode-hypercode-core-")
    assert name != twin_name("hypercode", "hypercode-core", f"{release[:-1]}0")
    assert all(part and not part.startswith("-") and not part.endswith("-") for part in name.split("."))
