"""The docs are true: what they name exists, what exists is named, and their configurations load."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main
from pydantic import BaseModel
from ruamel.yaml import YAML

from lastgood.core import config as settings_of
from lastgood.core import errors
from lastgood.core.config import Config, EdgeConfig, TriggerConfig, parse_config
from lastgood.core.errors import ConfigError, LastgoodError
from lastgood.core.plan import Action
from lastgood.core.report import TerminalState
from lastgood.targets.compose.edge import FOLDER as EDGE_FOLDER
from lastgood.targets.compose.haproxy import CONFIG_FILE as EDGE_FILE
from lastgood.targets.compose.kept import CONFIG_FILE as KEPT_FILE
from lastgood.targets.compose.kept import held_as
from scripts import schema

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "lastgood"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
EXAMPLE = (ROOT / "lastgood.example.yaml").read_text(encoding="utf-8")
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
# Programs whose names a hint may begin with: something to type.
PROGRAMS = ("lastgood", "docker", "vercel", "git", "less", "df", "pip")
CHANGES = ("Changes ", "Writes ")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def all_docs() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in PAGES) + EXAMPLE


# --- commands -------------------------------------------------------------------------------------------------------


@cache
def commands() -> Mapping[str, Any]:
    """Every command by its words, as typer knows it."""
    from lastgood.cli.app import app  # noqa: PLC0415 # the other tests need no command line

    found: dict[str, Any] = {}

    def collect(command: Any, words: str) -> None:  # noqa: ANN401 # typer's own
        for name, below in getattr(command, "commands", {}).items():
            collect(below, f"{words} {name}".strip())
        if not hasattr(command, "commands"):
            found[words] = command

    collect(typer.main.get_command(app), "")
    return found


def check_command(line: str, where: str) -> None:
    """Check that the words after `lastgood` are a command with these options."""
    words = [word for word in re.split(r"\s+", re.sub(r"'[^']*'|\"[^\"]*\"", "TEXT", line)) if word]
    name = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in commands()), None)
    assert name is not None, f"{where}: there is no `lastgood {line}`"
    known = {option for parameter in commands()[name].params for option in parameter.opts} | {"--help"}
    unknown = [word for word in words if word.startswith("-") and word.split("=")[0] not in known]
    assert unknown == [], f"{where}: `lastgood {name}` has no {', '.join(unknown)}"


def commands_in(page: str) -> Iterator[str]:
    """What follows `lastgood` where it is typed: in code spans and in blocks of shell."""
    shell = [body for language, body in FENCE.findall(page) if language in ("", "sh")]
    spans = re.findall(r"`([^`\n]+)`", FENCE.sub("", page))
    for text in [*shell, *spans]:
        for line in text.splitlines():
            typed = line.split(" #")[0].strip()
            found = re.search(r"^(?:\$ |\.{4}  \$ |\w+=\S+ )*(?:\S*/)?lastgood ([a-z].*)$", typed)
            if found:
                yield found[1]


def test_the_help_of_a_command_says_what_it_does_what_it_changes_and_one_example() -> None:
    for name, command in commands().items():
        what, *rest = (" ".join(part.split()) for part in (command.help or "").split("\n\n"))
        assert len(what) <= 60, f"{name}: the list of commands would cut {what!r}"
        assert what.endswith((".", "?")), name
        assert len(rest) == 2, f"{name}: expected what it does, what it changes, and an example"
        assert rest[0].startswith(CHANGES), f"{name}: expected one of {CHANGES}"
        assert rest[1].startswith(f"Example: lastgood {name}"), f"{name}: {rest[1]}"
        check_command(rest[1].removeprefix("Example: lastgood "), f"the help of {name}")


def test_each_command_is_in_the_docs() -> None:
    missing = [name for name in commands() if f"`{name}`" not in (ROOT / "docs" / "commands.md").read_text()]
    assert missing == [], "make docs"
    assert [name for name in commands() if f"lastgood {name}" not in all_docs()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_command_in_the_docs_is_one_that_there_is(page: Path) -> None:
    for line in commands_in(page.read_text(encoding="utf-8")):
        check_command(line, name_of(page))


# --- errors ---------------------------------------------------------------------------------------------------------


def kinds_of_error() -> dict[str, type[LastgoodError]]:
    found = vars(errors).values()
    return {c.__name__: c for c in found if isinstance(c, type) and issubclass(c, LastgoodError)}


def hints() -> Iterator[tuple[str, str, str]]:
    """(error class, hint, place) of every hint in the source; what is filled in is X."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                for keyword in node.keywords:
                    if keyword.arg == "hint" and (text := literal(keyword.value)):
                        yield node.func.id, text, f"{name_of(path)}:{node.lineno}"


def literal(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(str(v.value) if isinstance(v, ast.Constant) else "X" for v in values)
        case _:
            return ""


def test_each_kind_of_error_is_in_the_docs_with_its_exit_code() -> None:
    vocabulary = (ROOT / "docs" / "vocabulary.md").read_text(encoding="utf-8")
    for name, kind in kinds_of_error().items():
        row = rf"\| `{name}` \| {kind.exit_code} \|"
        assert name == "LastgoodError" or re.search(row, vocabulary), f"docs/vocabulary.md: expected {row}"


def test_a_person_who_meets_an_error_finds_something_to_type() -> None:
    typed = {kind for kind, hint, _ in hints() if hint.split(" ")[0] in PROGRAMS}
    # nobody can type anything against a bug, and the base is never raised
    assert typed >= kinds_of_error().keys() - {"Bug", "LastgoodError", "ConfigError"}
    assert any(kind == "ConfigError" for kind, _, _ in hints())


def test_a_hint_that_is_a_command_is_one_that_there_is() -> None:
    for _, hint, place in hints():
        if hint.startswith("lastgood "):
            check_command(re.split(r" {2,}|, then ", hint)[0].removeprefix("lastgood "), place)


# --- what runs and how it ends --------------------------------------------------------------------------------------


def members(union: object) -> list[type]:
    """The classes of a union of classes, aliases of unions included."""
    if isinstance(union, type):
        return [union]
    return [found for part in get_args(union) for found in members(part)]


def test_each_kind_of_step_is_explained() -> None:
    vocabulary = (ROOT / "docs" / "vocabulary.md").read_text(encoding="utf-8")
    assert [kind.__name__ for kind in members(Action) if f"| `{kind.__name__}` | " not in vocabulary] == []


def test_each_terminal_state_says_what_to_do() -> None:
    rows = incident_rows("## How it ended")
    assert sorted(rows) == sorted(state.value for state in TerminalState)


def test_each_first_word_of_status_says_what_to_type() -> None:
    status = (SOURCE / "cli" / "status.py").read_text(encoding="utf-8")
    assert incident_rows("# When it burns") == ["IDLE", "WATCHING", "WATCH INTERRUPTED", "RUNNING", "INTERRUPTED"]
    assert [word for word in incident_rows("# When it burns") if f'"{word}"' not in status] == []


def test_what_is_typed_where_lastgood_cannot_act_bears_the_names_that_the_code_makes() -> None:
    page = (ROOT / "docs" / "operate" / "incident.md").read_text(encoding="utf-8")
    by_hand = page[page.index("## lastgood itself cannot act") :]
    tag = held_as("hypercode-core", "v2.0.3", project="hypercode")
    assert re.findall(r"docker tag (\S+)", by_hand) == [tag]
    assert re.findall(r"--file (\S+)", by_hand) == [f".lastgood/releases/v2.0.3/{KEPT_FILE}"]
    assert set(re.findall(r"\.lastgood/edge/\S+", by_hand)) == {f".lastgood/{EDGE_FOLDER}/{EDGE_FILE}"}
    assert re.findall(r"docker restart (\S+)", by_hand) == [f"hypercode-{EdgeConfig.model_fields['service'].default}-1"]


def incident_rows(heading: str) -> list[str]:
    """The first words of the table under a heading of the page for incidents."""
    page = (ROOT / "docs" / "operate" / "incident.md").read_text(encoding="utf-8")
    section = page[page.index(heading) :].split("\n## ")[0]
    return re.findall(r"^\| `([A-Z_ ]+)` \| [^|]+ \| [^|]+ \|$", section, flags=re.MULTILINE)


def test_each_kind_of_trigger_is_in_the_example_and_in_the_vocabulary() -> None:
    triggers = [trigger for trigger in members(TriggerConfig) if issubclass(trigger, BaseModel)]
    kinds = [str(get_args(trigger.model_fields["kind"].annotation)[0]) for trigger in triggers]
    assert len(kinds) == 5
    vocabulary = (ROOT / "docs" / "vocabulary.md").read_text(encoding="utf-8")
    assert [kind for kind in kinds if f"`{kind}`" not in vocabulary or f"kind: {kind} " not in EXAMPLE] == []


# --- configurations -------------------------------------------------------------------------------------------------


def parsed(text: str, file: str) -> Config:
    """Parse with every reference filled in."""
    env = dict.fromkeys(re.findall(r"\$\{(\w+)\}", text), "1")
    return parse_config(text, file=file, env=env, read_file=lambda _name: "secret")


def plain(text: str) -> Any:  # noqa: ANN401 # any YAML value
    return YAML(typ="safe", pure=True).load(text)


def configurations() -> Iterator[Any]:
    for number, text in enumerate(schema.variants(EXAMPLE)):
        yield pytest.param(text, id=f"lastgood.example.yaml-{('containers', 'process')[number]}")
    for path in sorted((ROOT / "examples").rglob("lastgood*.yaml")):
        yield pytest.param(path.read_text(encoding="utf-8"), id=name_of(path))
    for page in PAGES:
        for number, (language, body) in enumerate(FENCE.findall(page.read_text(encoding="utf-8"))):
            if language == "yaml" and body.startswith("version: 1"):
                yield pytest.param(body, id=f"{name_of(page)}-{number}")


@pytest.mark.parametrize("text", list(configurations()))
def test_a_configuration_that_is_shown_loads_and_editors_accept_it(text: str) -> None:
    parsed(text, "shown.yaml")
    assert accepts(schema.schema(EXAMPLE), plain(text)), "docs/lastgood.schema.json refuses it"


def test_the_example_is_about_both_engines() -> None:
    compose, process = (parsed(text, "example") for text in schema.variants(EXAMPLE))
    assert compose.containers
    assert not compose.process
    assert process.process
    assert not process.containers


def shown() -> list[schema.Setting]:
    return [setting for text in schema.variants(EXAMPLE) for setting in schema.settings(text)]


def sections() -> dict[str, type[BaseModel]]:
    found = (thing for thing in vars(settings_of).values() if isinstance(thing, type) and issubclass(thing, BaseModel))
    return {section.__name__: section for section in found if section.__module__ == settings_of.__name__}


def test_the_example_shows_each_setting() -> None:
    known = {(name, field) for name, section in sections().items() for field in section.model_fields}
    assert known - {(setting.section.__name__, setting.field) for setting in shown()} == set()


def test_each_setting_of_the_example_has_a_comment_with_its_default() -> None:
    lacking = [
        f"{setting.section.__name__}.{setting.field}: {setting.comment!r}"
        for setting in shown()
        if ("required" if setting.section.model_fields[setting.field].is_required() else "default")
        not in setting.comment
        and setting.comment != "as above; required"
    ]
    assert lacking == []


def test_a_duration_a_percentage_and_a_count_say_so() -> None:
    words = {"duration": settings_of.Duration, "percentage": settings_of.Ratio}
    for setting in shown():
        field = setting.section.model_fields[setting.field]
        for word, kind in words.items():
            if get_args(kind)[1] in field.metadata:
                assert f"{word};" in setting.comment, f"{setting.section.__name__}.{setting.field}"


def test_the_values_of_the_example_are_the_defaults() -> None:
    for text in schema.variants(EXAMPLE):
        for place, section in placed(parsed(text, "example")):
            for name, field in type(section).model_fields.items():
                value = getattr(section, name)
                has_default = not field.is_required() and field.default not in (None, ())
                if has_default and field.default_factory is None and not isinstance(field.default, BaseModel):
                    assert value == field.default, f"{place}.{name}"


def placed(value: object, place: str = "") -> Iterator[tuple[str, BaseModel]]:
    """Every section of a parsed configuration, with where it stands."""
    if isinstance(value, BaseModel):
        yield place, value
        for name in type(value).model_fields:
            yield from placed(getattr(value, name), f"{place}.{name}")
    elif isinstance(value, Mapping):
        for name, below in value.items():
            yield from placed(below, f"{place}.{name}")


# --- the schema -----------------------------------------------------------------------------------------------------


def test_the_schema_for_editors_is_that_of_the_code_and_of_the_example() -> None:
    assert schema.WRITTEN.read_text(encoding="utf-8") == schema.text(), "make docs"


WELL = "version: 1\nstack: s\nprocess: {services: {a: {command: [a], port: 1}}}\n"


@pytest.mark.parametrize(
    "wrong",
    [
        "mode: auto",
        "watch: {window: 3600}",
        "watch: {false_alarm: 0.001}",
        "watch: {windwo: 1h}",
        "watch: {triggers: {a: {kind: latency, quantile: 95}}}",
        "watch: {triggers: {a: {kind: unknown}}}",
        "database: {postgres: {name: a}}",
        "database: {postgres: {name: a, user: b, port: 0}}",
        "verify: {health: [localhost]}",
        "environment: -x",
    ],
)
def test_what_the_parser_refuses_an_editor_marks(wrong: str) -> None:
    assert accepts(schema.schema(EXAMPLE), plain(WELL))
    parsed(WELL, "well")
    with pytest.raises(ConfigError):
        parsed(WELL + wrong, "wrong")
    assert not accepts(schema.schema(EXAMPLE), plain(WELL + wrong))


@pytest.mark.parametrize("reference", ["${SOME_VARIABLE}", "file:some/secret"])
def test_an_editor_lets_references_stand(reference: str) -> None:
    text = f'{WELL}watch: {{window: "{reference}", traffic: {{metrics: "{reference}"}}}}\n'
    assert accepts(schema.schema(EXAMPLE), plain(text))


JSON_TYPES: Mapping[str, Callable[[object], bool]] = {
    "string": lambda v: isinstance(v, str),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "array": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
    "null": lambda v: v is None,
    "boolean": lambda v: isinstance(v, bool),
}


def accepts(rules: dict[str, Any], value: Any) -> bool:  # noqa: ANN401 # any JSON value
    """Validate by the parts of JSON Schema that this schema uses."""
    root = rules

    def fits(rule: dict[str, Any], value: Any) -> bool:  # noqa: ANN401 # any JSON value
        if "$ref" in rule:
            return fits(root["$defs"][rule["$ref"].rpartition("/")[2]], value)
        if choices := rule.get("anyOf") or rule.get("oneOf"):
            return any(fits(choice, value) for choice in choices)
        if "const" in rule or "enum" in rule:
            return any(value == allowed for allowed in rule.get("enum", [rule.get("const")]))
        if "type" in rule and not JSON_TYPES[rule["type"]](value):
            return False
        match value:
            case str():
                return re.search(rule.get("pattern", ""), value) is not None
            case int():
                return bool(rule.get("minimum", value) <= value <= rule.get("maximum", value))
            case list():
                return len(value) >= rule.get("minItems", 0) and all(fits(rule.get("items", {}), v) for v in value)
            case dict():
                missing = [key for key in rule.get("required", []) if key not in value]
                return not missing and all(fits(member(rule, str(key)), below) for key, below in value.items())
            case _:
                return True

    def member(rule: dict[str, Any], key: str) -> dict[str, Any]:
        named = rule.get("properties", {}).get(key)
        by_pattern = [r for pattern, r in rule.get("patternProperties", {}).items() if re.search(pattern, key)]
        more = rule.get("additionalProperties", True)
        unknown: dict[str, Any] = more if isinstance(more, dict) else {} if more else {"enum": []}
        return named if named is not None else next(iter(by_pattern), unknown)

    return fits(root, value)


# --- pages ----------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors that a forge makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_link_leads_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{name_of(page)}: {target}"
        assert not anchor or anchor in anchors(linked), f"{name_of(page)}: {target}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "lastgood.example.yaml"], ids=name_of)
def test_a_page_speaks_of_nobodys_machine(page: Path) -> None:
    found = re.findall(r"/(?:home|Users|root|work)/\S*|/tmp/wt\S*|[A-Z]:\\\S*", page.read_text(encoding="utf-8"))
    assert found == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_test_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for file, function in re.findall(r"(tests/[\w/]+\.py)::(\w+)", text):
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert function in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, f"{file}::{function}"
    faults = {patch.stem for patch in (ROOT / "examples" / "hypercode" / "releases").glob("*.patch")}
    assert set(re.findall(r"`S\[([\w-]+)\]`", text)) - {"fault"} <= faults


def test_each_incident_and_each_fault_is_told_with_the_test_that_makes_it() -> None:
    page = (ROOT / "docs" / "incidents.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (\d+)\. ", page, flags=re.MULTILINE) == [str(number) for number in range(1, 14)]
    rows = [
        line
        for line in page.splitlines()
        if line.startswith("|") and not line.startswith(("|---", "| what ", "| fault"))
    ]
    assert [row for row in rows if not re.search(r"`tests/integration/\w+\.py::\w+`", row)] == []
    for file in ("test_incidents.py", "test_faults.py"):
        tree = ast.parse((ROOT / "tests" / "integration" / file).read_text(encoding="utf-8"))
        tests = [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
        assert [name for name in tests if f"`tests/integration/{file}::{name}`" not in page] == []


def test_the_first_screen_of_the_readme_says_what_it_is_what_it_never_does_and_how_to_see_it() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    never, see = readme.index("never does by itself"), readme.index("make demo")
    assert never < see < readme.index("## On a stack of your own")
    assert readme[: readme.index("```")].count("\n") < 35
    for package in ("git", "make", "python3", "python3-venv"):
        assert package in readme[:see]
