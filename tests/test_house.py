"""The rules of the house that a program can check."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "lastgood"
VOCABULARY = ROOT / "docs" / "vocabulary.md"
MODULES = sorted(PACKAGE.rglob("*.py"))
# Names that say nothing about what is inside, so that anything ends up there.
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}
# A check that is switched off for a line. It must name its rules, and a reason must follow.
SWITCHED_OFF = re.compile(r"#\s*(?:ruff:\s*noqa|noqa|type:\s*ignore|pyright:\s*ignore|pragma:\s*no cover)")
WITH_REASON = re.compile(
    r"#\s*(?:(?:ruff:\s*)?noqa:\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*"
    r"|(?:type|pyright):\s*ignore\[[\w\-, ]+\]|pragma:\s*no cover)"
    r"[\s#(:\-]+\w.{7,}"
)


def tracked_python() -> Iterator[Path]:
    for room in ("src", "tests", "examples", "scripts", "bench"):
        yield from (path for path in sorted((ROOT / room).rglob("*.py")) if "node_modules" not in path.parts)


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Run the import contract of this repository on the package under `root`/src."""
    command = [
        str(Path(sys.executable).with_name("lint-imports")),
        "--config",
        str(root / "pyproject.toml"),
        "--no-cache",
    ]
    return subprocess.run(
        command,
        cwd=root,
        env={"PYTHONPATH": str(root / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def another_house(tmp_path: Path) -> Path:
    """A copy of the package and its contract, to be built on wrongly."""
    shutil.copytree(PACKAGE, tmp_path / "src" / "lastgood", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_import_contract_holds() -> None:
    checked = lint_imports(ROOT)
    assert checked.returncode == 0, checked.stdout


def test_a_room_without_a_place_in_the_contract_is_noticed(another_house: Path) -> None:
    (another_house / "src" / "lastgood" / "attic.py").write_text('"""Nobody said where this belongs."""\n')
    checked = lint_imports(another_house)
    assert checked.returncode != 0
    assert "attic" in checked.stdout


@pytest.mark.parametrize(
    "room,forbidden",
    [
        ("signals", "lastgood.targets"),
        ("targets", "lastgood.testing"),
        ("wire", "lastgood.signals"),
        ("core", "lastgood.journal"),
        ("core", "subprocess"),
    ],
)
def test_an_import_across_the_rooms_is_noticed(another_house: Path, room: str, forbidden: str) -> None:
    package = another_house / "src" / "lastgood"
    for name in (room, forbidden.rpartition(".")[2]):
        if forbidden.startswith("lastgood.") or name == room:
            (package / name).mkdir(exist_ok=True)
            (package / name / "__init__.py").touch()
    (package / room / "shortcut.py").write_text(f'"""A shortcut."""\n\nimport {forbidden}\n')
    checked = lint_imports(another_house)
    assert checked.returncode != 0
    assert f"lastgood.{room}.shortcut -> {forbidden}" in checked.stdout


@pytest.mark.parametrize("module", [pytest.param(path, id=str(path.relative_to(PACKAGE))) for path in MODULES])
def test_a_module_introduces_itself(module: Path) -> None:
    introduction = ast.get_docstring(ast.parse(module.read_text()))
    assert introduction, f"{module.relative_to(ROOT)} has no docstring"


def test_no_file_has_a_name_that_says_nothing() -> None:
    found = [str(path.relative_to(ROOT)) for path in MODULES if {path.stem, path.parent.name} & EMPTY_NAMES]
    assert found == []


def test_a_check_that_is_switched_off_for_a_line_says_why() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked_python()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if SWITCHED_OFF.search(line) and not WITH_REASON.search(line)
    ]
    assert found == [], "write for example: # noqa: S104 # the container's own network"


def test_a_rule_that_is_switched_off_for_the_house_says_why() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    lint = tomllib.loads(text)["tool"]["ruff"]["lint"]
    rules = [*lint["ignore"], *(rule for rules in lint["per-file-ignores"].values() for rule in rules)]
    with_reason = re.findall(r'^\s+"([A-Z]+\d*)",\s+# \S.{7,}', text, flags=re.MULTILINE)
    assert sorted(rules) == sorted(with_reason)


def distribution(name: str) -> str:
    """A distribution's name as all spellings of it are compared."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=]", name)[0]).lower()


def test_what_is_imported_is_asked_for_and_what_is_asked_for_is_imported() -> None:
    imported: set[str] = set()
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    foreign = imported - sys.stdlib_module_names - {"lastgood"}
    known = packages_distributions()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {distribution(need) for need in project["dependencies"]}
    # the demo and the stand-ins have an extra of their own
    demo = {distribution(need) for need in project["optional-dependencies"]["demo"]}
    found = {name: {distribution(each) for each in known.get(name, ())} for name in foreign}
    assert {name for name, brings in found.items() if not brings & (asked | demo)} == set(), "add it to pyproject.toml"
    assert asked - {each for brings in found.values() for each in brings} == set(), "nobody imports it"


@pytest.mark.parametrize("name,extras", [("runtime", []), ("demo", ["demo"]), ("dev", ["demo", "dev"])])
def test_the_pinned_requirements_are_those_the_project_asks_for(name: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(need for extra in extras for need in project["optional-dependencies"][extra])]
    pinned = set(
        re.findall(r"^([a-z0-9\-]+)==", (ROOT / "requirements" / f"{name}.txt").read_text(), flags=re.MULTILINE)
    )
    missing = [
        need
        for need in asked
        if re.split(r"[\[<>=]", need)[0].lower().replace("_", "-").replace(".", "-") not in pinned
    ]
    assert missing == [], "run scripts/pin.sh"


@pytest.mark.parametrize("name", ["runtime", "demo", "dev"])
def test_the_pinned_requirements_name_no_address_and_no_path(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert re.findall(r'^.*(?:://|(?:^|[ "=])/|^-).*$', text, flags=re.MULTILINE) == []


def test_each_public_class_of_the_core_is_in_the_vocabulary() -> None:
    classes = {
        node.name
        for module in sorted((PACKAGE / "core").rglob("*.py"))
        for node in ast.parse(module.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    }
    vocabulary = VOCABULARY.read_text() if VOCABULARY.exists() else ""
    missing = sorted(name for name in classes if not re.search(rf"\b{name}\b", vocabulary))
    assert missing == [], "add them to docs/vocabulary.md"
