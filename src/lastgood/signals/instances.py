"""The state of the serving containers or processes, as their target shows it."""

from __future__ import annotations

from collections.abc import Callable

from lastgood.core.errors import LastgoodError
from lastgood.core.facts import ContainerFacts, Health
from lastgood.core.reading import Instances, InstanceState, Reading, SourceDown, Window


class InstanceStates:
    """core.ports.SignalSource over `observe` of the containers target."""

    def __init__(self, name: str, observe: Callable[[], ContainerFacts]) -> None:
        self._name = name
        self._observe = observe

    @property
    def name(self) -> str:
        return self._name

    def read(self, window: Window) -> Reading:
        del window  # restarts are counted since each instance was created
        try:
            facts = self._observe()
        except LastgoodError as error:
            return SourceDown(reason=error.message)
        return Instances(
            instances=tuple(
                InstanceState(
                    service=instance.service,
                    running=instance.running,
                    unhealthy=instance.health is Health.UNHEALTHY,
                    restarts=instance.restarts,
                    oom_killed=instance.oom_killed,
                )
                for instance in facts.serving
            )
        )
