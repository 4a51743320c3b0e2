"""The smoke tests are the team's own: whatever lies above their checkout has no say in how they run."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.examples.hypercode_stack import HYPERCODE


def test_the_smoke_tests_take_no_configuration_from_a_folder_above(tmp_path: Path) -> None:
    """The demo's checkout lies inside of lastgood's, whose pytest has plugins that a newcomer's has not."""
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-config\nno_such_option = 1\n")
    shutil.copytree(HYPERCODE / "smoke", tmp_path / "checkout" / "smoke")
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "smoke"],
        cwd=tmp_path / "checkout",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert collected.returncode == 0, collected.stdout + collected.stderr
    assert "test_login.py" in collected.stdout
