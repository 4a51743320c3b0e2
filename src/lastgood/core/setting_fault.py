"""What is wrong with a setting: its place in the file, and what was expected there, in the words of this house.

Pydantic finds the faults of a configuration; its location is walked down the tree for the line and column, and down the
sections for the keys that would be known there. Nothing here knows a single setting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import UnionType
from typing import Annotated, Final, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails, PydanticCustomError

from lastgood.core.errors import ConfigError
from lastgood.core.yaml_tree import Node, Place

MOST_FAULTS: Final = 20
"""More are counted, not shown: 1 MiB of unknown keys would be 13 MB of words."""


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """Something that is wrong, in the order of the file. what: its place in the tree, and what was expected."""

    at: Place
    what: str


# Pydantic's kinds of errors; each is formatted with what pydantic knows of it.
_EXPECTED: Final = {
    "missing": "expected, but not there",
    "extra_forbidden": "unknown key",
    "literal_error": "expected {expected}",
    "enum": "expected {expected}",
    "string_type": "expected a text",
    "tuple_type": "expected a list",
    "dict_type": "expected keys and values below it",
    "mapping_type": "expected keys and values below it",
    "model_type": "expected keys and values below it",
    "model_attributes_type": "expected keys and values below it",
    "greater_than_equal": "expected at least {ge}",
    "less_than_equal": "expected at most {le}",
    "too_short": "expected at least {min_length} entry",
    "union_tag_invalid": "expected a kind: {kinds}",
    "union_tag_not_found": "expected a kind: {kinds}",
}


def refusal(file: str, faults: Iterable[Fault]) -> ConfigError:
    """The error that lists the faults of a file, one line each, in its order."""
    lines = [f"{file}:{found.at[0]}:{found.at[1]}: {found.what}" for found in sorted(set(faults))]
    if len(lines) > MOST_FAULTS:
        lines[MOST_FAULTS:] = [f"{file}: and {len(lines) - MOST_FAULTS} more"]
    return ConfigError("\n".join(lines))


def misfit(below: tuple[int | str, ...], expected: str) -> PydanticCustomError:
    """What a section raises when one of its settings does not fit another. below: where it is, from the section on."""
    return PydanticCustomError("misfit", "{expected}", {"expected": expected, "below": below})


def fault(tree: Node, root: type[BaseModel], error: ErrorDetails) -> Fault:
    """Say one of pydantic's errors. tree: of the file. root: the section that it was read as."""
    loc, kind = (*error["loc"], *error.get("ctx", {}).get("below", ())), error["type"]
    node, place = _walk(tree, loc, missing=kind == "missing")
    said = _EXPECTED.get(kind)
    knows = {**error.get("ctx", {}), "kinds": ", ".join(sorted(_kinds(_setting_at(root, loc))))}
    expected = said.format_map(knows) if said else error["msg"].removeprefix("Value error, ")
    if kind != "extra_forbidden":
        return Fault(node.at, f"{place}: {expected}")
    keys = sorted(
        field.alias or name
        for section in _sections(_setting_at(root, loc[:-1]))
        for name, field in section.model_fields.items()
    )
    return Fault(node.key_at, f"{place}: {expected}" + (f"; known here: {', '.join(keys)}" if keys else ""))


def _walk(tree: Node, loc: tuple[int | str, ...], *, missing: bool) -> tuple[Node, str]:
    """Walk a location down the tree, past the tags that pydantic adds for unions; return its end, and its name."""
    node, walked = tree, list[str]()
    for part in loc:
        if part == "[key]":
            return replace(node, at=node.key_at), ".".join(walked)
        if (below := node.below(part)) is not None:
            node = below
        elif part != loc[-1] or not missing:
            continue
        walked.append(shown(str(part)))
    return node, ".".join(walked) or "file"


def shown(text: str) -> str:
    """A text of the file as part of one line on a terminal."""
    return text if text.isprintable() else repr(text)


def _setting_at(root: type[BaseModel], loc: tuple[int | str, ...]) -> object:
    """Walk a location down the sections: through lists, mappings and kinds; return the type of what it names."""
    at: object = root
    for part in loc:
        at = _below(at, part)
    return at


def _below(annotation: object, part: int | str) -> object:
    """The type of what stands under a key or an index, or of the one of several kinds."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Mapping:
        return arguments[1]
    if get_origin(annotation) is tuple:
        return arguments[0]
    for section in _sections(annotation):
        if part in _kinds(section):
            return section
        for name, field in section.model_fields.items():
            if part == (field.alias or name):
                return field.annotation
    return None


def _sections(annotation: object) -> Iterator[type[BaseModel]]:
    """The sections that a setting may be: itself, or some of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, UnionType):
        for part in get_args(annotation):
            yield from _sections(part)


def _kinds(annotation: object) -> set[str]:
    """The words by which one of several sections is chosen."""
    found = (section.model_fields.get("kind") for section in _sections(annotation))
    return {word for kind in found if kind for word in get_args(kind.annotation)}
