"""YAML text as a tree of values that know where they stand, so that a fault can be shown with its line and column.

Aliases and duplicate keys are refused before the tree is walked: 332 bytes of aliases can hold 10^9 leaves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import AliasEvent

from lastgood.core.errors import ConfigError

MAX_BYTES: Final = 1 << 20

Place = tuple[int, int]
"""Line and column, both from 1."""
START: Final[Place] = (1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A mapping (`members`), a list (`items`) or a single `value`, and where it stands.

    at: where it begins. key_at: where its key stands, `at` where it has none.
    """

    at: Place
    key_at: Place
    value: object = None
    members: Mapping[object, Node] | None = None
    items: tuple[Node, ...] | None = None

    def below(self, key: int | str) -> Node | None:
        """Return what stands under a key or at an index, None when there is no such thing."""
        if self.members is not None:
            return self.members.get(key)
        if self.items is not None and isinstance(key, int) and key < len(self.items):
            return self.items[key]
        return None


class _Mark(Protocol):
    """What is used of a ruamel mark, which has no types. From 0."""

    line: int
    column: int


class _Places(Protocol):
    """What is used of ruamel's `lc`, which has no types. From 0."""

    def key(self, key: object) -> Place: ...
    def value(self, key: object) -> Place: ...
    def item(self, index: int) -> Place: ...


class _Reader(Protocol):
    """What is used of ruamel.yaml.YAML, with the types that it leaves open."""

    def parse(self, stream: str) -> Iterable[object]: ...
    def load(self, stream: str) -> object: ...


def read(text: str, *, file: str) -> Node:
    """Read a text whose top is a mapping. file: named in errors. Raises ConfigError: `file:line:column: what`."""
    if len(text.encode()) > MAX_BYTES:
        raise ConfigError(f"{file}: larger than 1 MiB")
    try:
        for event in _reader().parse(text):
            if isinstance(event, AliasEvent):
                line, column = _place(cast("Any", event).start_mark)
                raise ConfigError(f"{file}:{line}:{column}: aliases are not read here; write the value out")
        tree = _reader().load(text)
    except MarkedYAMLError as error:
        raise ConfigError(_not_yaml(file, error)) from None
    if not isinstance(tree, CommentedMap):
        raise ConfigError(f"{file}:1:1: expected settings like `version: 1`")
    return _node(tree, at=START, key_at=START)


def _reader() -> _Reader:
    return cast("_Reader", YAML(typ="rt"))


def _place(mark: _Mark) -> Place:
    return mark.line + 1, mark.column + 1


def _not_yaml(file: str, error: MarkedYAMLError) -> str:
    said = cast("Any", error)
    mark: _Mark | None = said.problem_mark or said.context_mark
    where = ":".join(map(str, (file, *_place(mark)))) if mark else file
    problem: str = said.problem or "not YAML"
    return f"{where}: {problem.splitlines()[0]}"


def _node(value: object, *, at: Place, key_at: Place) -> Node:
    if isinstance(value, CommentedMap):
        places, members = _places(value), cast("Mapping[object, object]", value)
        return Node(
            at=at,
            key_at=key_at,
            members={
                key: _node(member, at=_from_one(places.value(key)), key_at=_from_one(places.key(key)))
                for key, member in members.items()
            },
        )
    if isinstance(value, CommentedSeq):
        places = _places(value)
        items = [(item, _from_one(places.item(i))) for i, item in enumerate(cast("Iterable[object]", value))]
        return Node(at=at, key_at=key_at, items=tuple(_node(item, at=place, key_at=place) for item, place in items))
    return Node(at=at, key_at=key_at, value=value)


def _places(node: CommentedMap | CommentedSeq) -> _Places:
    return cast("_Places", cast("Any", node).lc)


def _from_one(place: Place) -> Place:
    return place[0] + 1, place[1] + 1
