"""The JSON Schema of lastgood.yaml for editors: types out of core/config.py, words and defaults out of the example.

    .venv/bin/python scripts/schema.py     writes docs/lastgood.schema.json (`make docs` does)

lastgood.example.yaml is the one place where a setting is explained. Its comments become the descriptions here, and
tests/test_docs.py holds it against the classes.
"""

# ruff: noqa: INP001  # a script, not a package

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast, get_args

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from pydantic import BaseModel  # noqa: E402  the package of this checkout comes first
from ruamel.yaml import YAML  # noqa: E402  same as above
from ruamel.yaml.comments import CommentedMap  # noqa: E402  same as above

from lastgood.core.config import Config  # noqa: E402  same as above

EXAMPLE: Final = ROOT / "lastgood.example.yaml"
WRITTEN: Final = ROOT / "docs" / "lastgood.schema.json"
# What yaml-language-server understands in full.
DIALECT: Final = "http://json-schema.org/draft-07/schema#"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One key of the example. field: its name in `section`. comment: at its line or right above. value: as YAML."""

    section: type[BaseModel]
    field: str
    key: str
    comment: str
    value: object


def variants(text: str) -> tuple[str, str]:
    """Return the example for each of the two engines: as it stands, and with `process` in place of `containers`,
    `access_log` of `metrics`, and `alembic` of `prisma` with a command for `down`."""
    taken = re.sub(r"^containers:.*\n(?:[ #].*\n)*", "", text, flags=re.MULTILINE)
    taken = re.sub(r"^    (?:metrics|prisma):.*\n", "\n", taken, flags=re.MULTILINE)
    block = re.compile(r"^( *)#(?:process|access_log|alembic|down):.*\n(?:\1#.*\n)*", flags=re.MULTILINE)
    return text, block.sub(lambda found: re.sub(r"^( *)#", r"\1", found[0], flags=re.MULTILINE), taken)


def settings(text: str) -> Iterator[Setting]:
    """Walk the example along the classes; keys that a person chooses (triggers, services, env) are no settings."""
    tree = YAML(typ="rt").load(text)
    yield from _walk(Config, cast("CommentedMap", tree), text.splitlines())


def _walk(section: type[BaseModel], node: CommentedMap, lines: list[str]) -> Iterator[Setting]:
    fields = {field.alias or name: (name, field) for name, field in section.model_fields.items()}
    for key, value in node.items():
        name, field = fields[key]
        at = int(node.lc.key(key)[0])  # pyright: ignore[reportUnknownMemberType] # ruamel's own
        yield Setting(section=section, field=name, key=key, comment=_comment(lines, at), value=value)
        sections = tuple(_sections(field.annotation))
        if not sections or not isinstance(value, CommentedMap):
            continue
        named = "Mapping" in str(field.annotation)
        for child in value.values() if named else (value,):
            kind = next((s for s in sections if _kind(s) == child.get("kind")), sections[0])
            yield from _walk(kind, child, lines)


def _sections(annotation: object) -> Iterator[type[BaseModel]]:
    """The sections that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def _kind(section: type[BaseModel]) -> str | None:
    """The word by which one of several sections is chosen."""
    kind = section.model_fields.get("kind")
    return str(get_args(kind.annotation)[0]) if kind else None


def _comment(lines: list[str], at: int) -> str:
    """What stands behind a key, or right above it with the same indentation."""
    found = [lines[at].partition(" # ")[2].strip()]
    indent = re.match(r" *", lines[at])
    above = f"{indent[0] if indent else ''}# "
    while at and lines[at - 1].startswith(above):
        at -= 1
        found.insert(0, lines[at].removeprefix(above).strip())
    return " ".join(filter(None, found))


def schema(example: str) -> dict[str, Any]:
    """Put together what an editor needs: the shape from the classes, the words from the example."""
    made = Config.model_json_schema(by_alias=True)
    sections = {"Config": made, **made["$defs"]}
    for part in sections.values():
        _plain(part)
    for variant in variants(example):
        for setting in settings(variant):
            place = sections[setting.section.__name__]["properties"][setting.key]
            place.setdefault("description", setting.comment)
            field = setting.section.model_fields[setting.field]
            if not field.is_required() and field.default and not isinstance(field.default, BaseModel):
                place.setdefault("default", setting.value)
    return {"$schema": DIALECT, "title": "lastgood.yaml", **{key: made[key] for key in made if key != "title"}}


def _plain(part: dict[str, Any]) -> None:
    """Leave out what pydantic made of names and of values that are written with a unit."""
    part.pop("title", None)
    for place in part.get("properties", {}).values():
        place.pop("title", None)
        place.pop("default", None)


def text() -> str:
    """The file's content."""
    return json.dumps(schema(EXAMPLE.read_text(encoding="utf-8")), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    WRITTEN.write_text(text(), encoding="utf-8")
