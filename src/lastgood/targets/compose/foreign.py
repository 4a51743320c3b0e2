"""What other programs made of the project, and this one does not touch."""

from __future__ import annotations

from lastgood.core.errors import Refused
from lastgood.targets.compose.engine import COMPOSE_VERSION, Engine
from lastgood.targets.compose.stack import Stack


def refuse_compose_1(engine: Engine, stack: Stack) -> None:
    """Raise Refused when docker-compose 1 made a container of the project: each of the two takes the other's containers
    for outdated, and recreates them all, databases included."""
    for container in engine.of_project():
        if (version := container.labels.get(COMPOSE_VERSION, "")).startswith("1."):
            raise Refused(
                f"{container.name} was made by docker-compose {version}; compose 2 would recreate every container of "
                f"{stack.name}, databases included",
                hint=f"{stack.by_hand()}   (once, at a quiet hour)",
            )
