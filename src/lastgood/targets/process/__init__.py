"""The embedded engine: releases as processes of this machine, behind a holder that owns the public ports."""

from lastgood.targets.process.target import ProcessTarget, end_services

__all__ = ["ProcessTarget", "end_services"]
