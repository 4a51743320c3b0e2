"""The eyes on the stack in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from lastgood.core.reading import Reading, Window
from lastgood.testing.stack import (
    SERVICES,
    MemoryContainers,
    MemorySource,
    Stack,
    artifact_of,
    see_data,
    see_feature,
    see_instances,
    see_traffic,
)
from lastgood.testing.world import SteppedClock
from tests.contract.rigs.sources import BEGAN, Rigs, SourceRig

NEEDS_SERVER = False


def memory_rig(see: Callable[[Stack, Window], Reading]) -> AbstractContextManager[SourceRig]:
    """An eye on the stack in memory."""
    stack = Stack(SteppedClock())
    MemoryContainers(stack).prepare("v1", BEGAN)
    for service in SERVICES:
        stack.put(service, artifact_of(service, "v1"))
    return nullcontext(
        SourceRig(
            source=MemorySource("the source", stack, see),
            troubles={"away": lambda: stack.blindfold("the source")},
            footprint=lambda: (dict(stack.effects), stack.containers, stack.database, dict(stack.broken)),
        )
    )


RIGS: Rigs = {
    "memory-traffic": lambda: memory_rig(see_traffic),
    "memory-feature": lambda: memory_rig(see_feature),
    "memory-data": lambda: memory_rig(see_data),
    "memory-instances": lambda: memory_rig(see_instances),
}
