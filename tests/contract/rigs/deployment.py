"""The plan by which a rig puts a release into its world; going back to an older one is the same plan."""

from __future__ import annotations

from typing import Final

from lastgood.core.deploying import make_deploy_plan
from lastgood.core.plan import Plan
from lastgood.core.ports import Containers
from lastgood.core.release import Release
from tests.contract.rigs.clock import CLOCK

BOOT_S: Final = 20.0
NO_DATABASE_S: Final = 60.0


def deployment_of(release: Release, containers: Containers) -> Plan:
    """Plan the deployment of a release by what is there now. There is no database."""
    return make_deploy_plan(
        release,
        plan_id="r1",
        now=CLOCK.now(),
        serving="",
        containers=containers.observe(),
        database=None,
        restore_point="",
        rung=containers.rung(),
        boot_s=BOOT_S,
        restore_s=NO_DATABASE_S,
        migrate_s=NO_DATABASE_S,
    )
