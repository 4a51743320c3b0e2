"""The generated tables of the docs, for cog: what may import what, what each module is for, what each command does,
which stacks are tried.

Everything is read from the files, nothing is imported: the tables can be made while a module is broken.
"""

# ruff: noqa: INP001  # a script, not a package

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ruamel.yaml import YAML

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = ROOT / "src" / "lastgood"
STACKS: Final = ROOT / "tests" / "cases" / "stacks"


def layers() -> list[list[str]]:
    """The rooms of the import contract that are there, top to bottom."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    house = next(c for c in tool["importlinter"]["contracts"] if c["id"] == "house")
    named = [[room.strip(" ()") for room in layer.split("|")] for layer in house["layers"]]
    return [
        [room for room in rooms if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file()] for rooms in named
    ]


def rooms() -> Iterator[str]:
    """A table of the layers."""
    yield from ("| layer | rooms | may import |", "|---|---|---|")
    found = layers()
    for number, layer in enumerate(found):
        below = [room for lower in found[number + 1 :] for room in lower]
        yield f"| {number + 1} | {_named(layer)} | {_named(below) or 'nothing of the house'} |"


def modules() -> Iterator[str]:
    """A table for each room: its modules and the first sentence of what each says of itself."""
    for layer in layers():
        for room in layer:
            path = PACKAGE / room
            files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
            yield from ("", f"### `{room}`", "", "| module | what it knows or does |", "|---|---|")
            for file in files:
                yield f"| `{_module(file)}` | {_first_sentence(file).replace('|', '&#124;')} |"


def stacks() -> Iterator[str]:
    """A table of the compose projects that are tried, and what `init` makes of each."""
    yield from ("| stack | services | go back | what `init` does |", "|---|---|---|---|")
    for file in sorted(STACKS.glob("*/expected.yaml")):
        case = YAML(typ="safe").load(file)
        about, all_of_it = case["about"].replace("|", "&#124;"), len(case.get("services", ()))
        back = len(case["init"].get("services", ()))
        says = "refuses, with the place" if "refuses" in case["init"] else "writes lastgood.yaml"
        yield f"| {about} | {all_of_it or ''} | {back or ''} | {says} |"


def commands() -> Iterator[str]:
    """A table of the commands, from the three parts of each one's help."""
    yield from ("| command | what it does | what it changes | example |", "|---|---|---|---|")
    groups = {
        "app": "",
        "audit": "audit ",
        "kept": "kept ",
        "quarantine": "quarantine ",
        "restore_points": "restore-points ",
    }
    for node in ast.parse((PACKAGE / "cli" / "app.py").read_text(encoding="utf-8")).body:
        for decorator in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            found = re.fullmatch(rf"({'|'.join(groups)})\.command\((?:'([\w-]+)')?.*\)", ast.unparse(decorator))
            if found and isinstance(node, ast.FunctionDef):
                what, changes, example = (" ".join(p.split()) for p in (ast.get_docstring(node) or "").split("\n\n"))
                name = groups[found[1]] + (found[2] or node.name)
                yield f"| `{name}` | {what} | {changes} | `{example.removeprefix('Example: ')}` |"


def settings() -> str:
    """The sections of lastgood.yaml, as one line of code spans."""
    body = ast.parse((PACKAGE / "core" / "config.py").read_text(encoding="utf-8")).body
    return _named([node.name for node in body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")])


def _named(rooms: list[str]) -> str:
    return ", ".join(f"`{room}`" for room in rooms)


def _module(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _first_sentence(file: Path) -> str:
    paragraph = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
    return re.split(r"(?<=[.?])\s+(?=[A-Z])", " ".join(paragraph.split()))[0]
