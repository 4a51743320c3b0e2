"""YAML text as a tree of values that know where they stand, so that a fault can be shown with its line and column.

Only what a configuration needs, made straight from the parser's events: no aliases (332 bytes of them can hold 10^9
leaves), no tags (they name what to construct), no key twice. A date is a text; what is a number, YAML 1.2 says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)

from lastgood.core.errors import ConfigError

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 40
"""Levels below each other. The deepest of ours is 7; what a probe sends may be deeper."""

Place = tuple[int, int]
"""Line and column, both from 1."""
START: Final[Place] = (1, 1)

# YAML 1.2.2, 5.1: what a text may consist of. A surrogate is half a character.
_NOT_PRINTABLE: Final = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# YAML 1.2.2, 10.3.2: the core schema. Longer whole numbers are nobody's setting and stay a text.
_PLAIN: Final[tuple[tuple[re.Pattern[str], Callable[[str], object]], ...]] = (
    (re.compile("~|null|Null|NULL|"), lambda _text: None),
    (re.compile("true|True|TRUE"), lambda _text: True),
    (re.compile("false|False|FALSE"), lambda _text: False),
    (re.compile("[-+]?[0-9]{1,18}"), int),
    (re.compile("0o[0-7]{1,18}"), lambda text: int(text, 0)),
    (re.compile("0x[0-9a-fA-F]{1,15}"), lambda text: int(text, 0)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]{1,18}(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)"), lambda text: float(text.replace(".", ""))),
    (re.compile(r"\.(nan|NaN|NAN)"), lambda _text: float("nan")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A mapping (`members`), a list (`items`) or a single `value`, and where it stands.

    at: where it begins. key_at: where its key stands, `at` where it has none.
    """

    at: Place
    key_at: Place
    value: object = None
    members: Mapping[str, Node] | None = None
    items: tuple[Node, ...] | None = None

    def below(self, key: int | str) -> Node | None:
        """Return what stands under a key or at an index, None when there is no such thing."""
        if self.members is not None:
            return self.members.get(str(key))
        if self.items is not None and isinstance(key, int) and key < len(self.items):
            return self.items[key]
        return None


def place_of(node: Node, keys: Sequence[str]) -> Place:
    """Return where the value under these keys begins; of the deepest one that is there."""
    for key in keys:
        node = node.below(key) or node
    return node.at


class _Mark(Protocol):
    """What is used of a ruamel mark, which has no types. From 0."""

    line: int
    column: int


class _Event(Protocol):
    """What is used of a ruamel event, which has no types. tag, anchor: of a value that is written with one."""

    start_mark: _Mark
    tag: object
    value: str
    style: str | None


class _Reader(Protocol):
    """What is used of ruamel.yaml.YAML, with the types that it leaves open."""

    def parse(self, stream: str) -> Iterator[_Event]: ...


def read(text: str, *, file: str) -> Node:
    """Read a text whose top is a mapping. file: named in errors. Raises ConfigError: `file:line:column: what`."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ConfigError(f"{file}: larger than 1 MiB")
    if found := _NOT_PRINTABLE.search(text):
        line, column = text.count("\n", 0, found.start()) + 1, found.start() - text.rfind("\n", 0, found.start())
        raise ConfigError(f"{file}:{line}:{column}: {_no_text(found[0])}")
    try:
        return _Builder(file, cast("_Reader", YAML(typ="safe", pure=True)).parse(text)).tree()
    except MarkedYAMLError as error:
        raise ConfigError(_not_yaml(file, error)) from None
    except (ValueError, OverflowError) as error:  # a %YAML with 5,000 digits, the escape of a character that is none
        raise ConfigError(f"{file}: not YAML: {error}") from None


def _not_yaml(file: str, error: MarkedYAMLError) -> str:
    said = cast("Any", error)
    mark: _Mark | None = said.problem_mark or said.context_mark
    where = ":".join(map(str, (file, *_place(mark)))) if mark else file
    problem: str = said.problem or "not YAML"
    return f"{where}: {problem.splitlines()[0]}"


class _Builder:
    """Takes the parser's events one by one; whatever is not wanted is refused where it stands."""

    def __init__(self, file: str, events: Iterator[_Event]) -> None:
        self._file, self._events = file, events

    def tree(self) -> Node:
        """Return the one document."""
        first = self._next(StreamStartEvent, DocumentStartEvent)
        if not isinstance(first, MappingStartEvent):
            raise self._fault(START, "expected settings like `version: 1`")
        node = self._node(first, depth=1, key_at=START, at=START)
        last = self._next(DocumentEndEvent)
        if not isinstance(last, StreamEndEvent):
            raise self._fault(_place(last.start_mark), "expected one document")
        return node

    def _next(self, *passed_over: type) -> _Event:
        return next(event for event in self._events if not isinstance(event, passed_over))

    def _node(self, event: _Event, *, depth: int, key_at: Place | None = None, at: Place | None = None) -> Node:
        at = at or _place(event.start_mark)
        key_at = key_at or at
        if isinstance(event, AliasEvent):
            raise self._fault(at, "aliases are not read here; write the value out")
        if event.tag is not None:
            raise self._fault(at, "tags are not read here; write the plain value")
        if depth > MAX_DEPTH:
            raise self._fault(at, f"more than {MAX_DEPTH} levels below each other")
        if isinstance(event, MappingStartEvent):
            return Node(at=at, key_at=key_at, members=dict(self._members(depth)))
        if isinstance(event, SequenceStartEvent):
            return Node(at=at, key_at=key_at, items=tuple(self._items(depth)))
        text = self._text(event.value, at)
        return Node(at=at, key_at=key_at, value=text if event.style else _plain(text))

    def _members(self, depth: int) -> Iterator[tuple[str, Node]]:
        known: set[str] = set()
        while not isinstance(key := self._next(), MappingEndEvent):
            key_at = _place(key.start_mark)
            if not isinstance(key, ScalarEvent) or key.tag is not None:
                raise self._fault(key_at, "expected a key that is one word")
            name = self._text(key.value, key_at)
            if name in known:
                raise self._fault(key_at, f"found duplicate key {name!r}")
            known.add(name)
            yield name, self._node(self._next(), depth=depth + 1, key_at=key_at)

    def _items(self, depth: int) -> Iterator[Node]:
        while not isinstance(item := self._next(), SequenceEndEvent):
            yield self._node(item, depth=depth + 1)

    def _text(self, text: str, at: Place) -> str:
        """The text of a scalar, whose escapes may have made what may not be written."""
        if found := _NOT_PRINTABLE.search(text):
            raise self._fault(at, _no_text(found[0]))
        return text

    def _fault(self, at: Place, what: str) -> ConfigError:
        return ConfigError(f"{self._file}:{at[0]}:{at[1]}: {what}")


def _no_text(character: str) -> str:
    return f"expected a text, not the character U+{ord(character):04X}"


def _plain(text: str) -> object:
    """The value of a scalar without quotes."""
    return next((made(text) for pattern, made in _PLAIN if pattern.fullmatch(text)), text)


def _place(mark: _Mark) -> Place:
    return mark.line + 1, mark.column + 1
