from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "needs_npm: installs a tool from npm once; not run without npm, and a failure where LASTGOOD_REQUIRE_ENGINE=1",
    )
