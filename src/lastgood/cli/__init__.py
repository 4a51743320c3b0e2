"""The doors for people and scripts: parse, call a runbook, print. Decide nothing."""

from __future__ import annotations

from lastgood.cli.app import main

__all__ = ["main"]
