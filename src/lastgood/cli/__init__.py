"""The doors for people and scripts: parse, call a runbook, print. Decide nothing."""

from __future__ import annotations

import gc

__all__ = ["main"]


def main() -> None:
    """Do what was typed."""
    # While modules are read hundreds of thousands of objects are made and none is garbage: to look for some again and
    # again took a third of the time until a command begins.
    gc.disable()
    from lastgood.cli.app import main as typed  # noqa: PLC0415 # what is read here is read before anybody looks

    gc.freeze()
    gc.enable()
    typed()
