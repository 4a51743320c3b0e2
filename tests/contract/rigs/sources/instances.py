"""What an engine says of its instances. The engines themselves are under the contract of targets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lastgood.core.errors import Retryable
from lastgood.core.facts import ContainerFacts, Health, InstanceFacts
from lastgood.signals.instances import InstanceStates
from tests.contract.rigs.sources import BEGAN, Rigs, SourceRig

NEEDS_SERVER = False


@contextmanager
def instances_rig() -> Iterator[SourceRig]:
    answers = True

    def observe() -> ContainerFacts:
        if not answers:
            raise Retryable("the engine does not answer", delay_s=1)
        core = InstanceFacts(service="core", instance="1", artifact="a", running=True, health=Health.HEALTHY)
        return ContainerFacts(observed_at=BEGAN, serving=(core,))

    def away() -> None:
        nonlocal answers
        answers = False

    yield SourceRig(source=InstanceStates("the source", observe), troubles={"away": away}, footprint=lambda: None)


RIGS: Rigs = {"instances": instances_rig}
