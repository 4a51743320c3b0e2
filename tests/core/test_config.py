"""lastgood.yaml: what it says is what is meant, and of what it cannot mean it is said where and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lastgood.core.config import (
    Config,
    DataTrigger,
    ErrorRateTrigger,
    FeatureTrigger,
    LatencyTrigger,
    Mode,
    ProbeConfig,
    parse_config,
)
from lastgood.core.errors import ConfigError
from lastgood.core.secret import Secret

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "hypercode"
GOOD = """\
version: 1
stack: shop
process:
  services:
    web: {command: [web, "${PORT_FLAG}"], port: 8000}
"""
# DESIGN section 4, word for word.
HYPERCODE = """\
version: 1
stack: hypercode
environment: production
mode: automatic                  # observe: only say (what `init` writes) | propose: ask first | automatic: at once

watch:
  window: 1h
  traffic:
    metrics: http://localhost:8000/metrics      # or prometheus, or access_log
    exclude: [/health, /metrics]
  triggers:
    error-rate:   {kind: error_rate, limit: 1%}
    latency:      {kind: latency, quantile: p95, limit: 500ms}
    coder-agent:  {kind: feature, probe: {post: "http://localhost:8002/execute", json: {task: ping}, \
expect: {status: completed}}}
    orchestrator: {kind: feature, probe: {post: "http://localhost:8081/plan", json: {goal: ping}, \
expect: {steps: present}}}
    data:         {kind: data, invariants: invariants/*.sql}

containers:
  compose: {files: [docker-compose.yml], project: hypercode}
  services: [hypercode-core, orchestrator, coder-agent]     # hyper-postgres is not among them.

database:
  postgres: {container: hyper-postgres, user: hyper, name: hypercode, password: "${HYPER_DB_PASSWORD}"}
  migrations: {prisma: prisma/migrations, command: [npx, prisma, migrate, deploy]}
  statements: statements/*.sql
  restore_points: {path: restore-points, keep: 5}

frontend:
  vercel: {project: hypercode-web, team: hypercode, token: "${VERCEL_TOKEN}", domains: [hypercode.example]}

verify:
  health: [http://localhost:8000/health]
  smoke: {command: [pytest, smoke]}             # Login, Create Mission, Chat with Agent

notify:
  slack: {channel: "#dev-ops", token: "${SLACK_BOT_TOKEN}"}
"""


class Environment(dict[str, str]):
    """Has every variable, named after itself, but NOWHERE."""

    def __missing__(self, name: str) -> str:
        return f"value of {name}"

    def __contains__(self, name: object) -> bool:
        return name != "NOWHERE"

    def get(self, name: str, _default: object = None) -> str:
        return self[name]


def read_file(name: str) -> str:
    match name:
        case "secret":
            return "horse\n"
        case "picture":
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
        case _:
            raise FileNotFoundError(2, "No such file or directory")


def parse(text: str) -> Config:
    return parse_config(text, file="lastgood.yaml", env=Environment({"PORT_FLAG": "--port"}), read_file=read_file)


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse(text)
    return error.value.message


# --- what it says ----------------------------------------------------------------------------------------------------

SAID = parse(HYPERCODE)


def test_hypercodes_triggers_are_those_of_its_procedure() -> None:
    triggers = dict(SAID.watch.triggers)
    assert triggers.pop("error-rate") == ErrorRateTrigger.model_validate({"kind": "error_rate", "limit": "1%"})
    latency = {"kind": "latency", "quantile": "p95", "limit": "500ms"}
    assert triggers.pop("latency") == LatencyTrigger.model_validate(latency)
    assert {name: type(trigger) for name, trigger in triggers.items()} == {
        "coder-agent": FeatureTrigger,
        "orchestrator": FeatureTrigger,
        "data": DataTrigger,
    }


def test_quantities_are_in_the_units_that_the_code_counts_in() -> None:
    latency = SAID.watch.triggers["latency"]
    assert isinstance(latency, LatencyTrigger)
    assert (SAID.watch.window, latency.limit, latency.quantile) == (3600.0, 0.5, 0.95)


def test_what_a_rollback_may_touch_is_what_is_listed() -> None:
    assert SAID.containers is not None
    assert SAID.containers.services == ("hypercode-core", "orchestrator", "coder-agent")


def test_a_file_that_says_nothing_of_the_mode_only_observes() -> None:
    assert (parse(GOOD).mode, SAID.mode) == (Mode.OBSERVE, Mode.AUTOMATIC)


def test_what_is_left_out_is_not_configured() -> None:
    config = parse(GOOD)
    assert (config.database, config.frontend, config.containers, config.watch.traffic) == (None, None, None, None)


def test_a_secret_is_one_from_the_moment_it_is_read() -> None:
    assert SAID.database is not None
    assert SAID.database.postgres.password == Secret("value of HYPER_DB_PASSWORD")


def test_no_secret_is_in_what_a_configuration_prints() -> None:
    assert "value of" not in f"{SAID!r}{SAID}"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("lastgood*.yaml")), ids=lambda path: path.name)
def test_the_files_of_the_example_can_be_used(path: Path) -> None:
    assert parse(path.read_text()).stack == "hypercode"


def test_variables_are_filled_in_wherever_they_stand() -> None:
    config = parse(GOOD)
    assert config.process is not None
    assert config.process.services["web"].command == ("web", "--port")


def test_a_file_is_filled_in_without_its_last_newline() -> None:
    config = parse(GOOD + "database: {postgres: {name: shop, user: shop, password: file:secret}}\n")
    assert config.database is not None
    assert config.database.postgres.password == Secret("horse")


def test_a_number_may_come_out_of_the_environment() -> None:
    text = GOOD.replace("8000", '"${PORT}"')
    config = parse_config(text, file="", env={"PORT_FLAG": "", "PORT": "8001"}, read_file=read_file)
    assert config.process is not None
    assert config.process.services["web"].port == 8001


def test_one_address_of_metrics_or_several_are_pages() -> None:
    one, two = (
        parse(GOOD + f"watch: {{traffic: {{metrics: {written}}}}}").watch.traffic
        for written in ("http://a", "[http://a, http://b]")
    )
    assert one is not None
    assert two is not None
    assert (one.pages, two.pages) == (("http://a",), ("http://a", "http://b"))


@pytest.mark.parametrize(
    "written,value",
    [
        ("2025-01-01", "2025-01-01"),
        ("12", 12),
        ("'12'", "12"),
        ("0x1F", 31),
        ("0o17", 15),
        ("-1.5e3", -1500.0),
        ("true", True),
        ("yes", "yes"),
        ("~", None),
        ("", None),
        ("1" * 30, "1" * 30),
        ("|\n         two\n         lines", "two\nlines\n"),
    ],
)
def test_what_a_probe_sends_is_read_as_yaml_1_2(written: str, value: object) -> None:
    config = parse(
        f"{GOOD}watch:\n  triggers:\n    x:\n      kind: feature\n      probe:\n       post: http://a\n"
        f"       json:\n        a: {written}\n"
    )
    match config.watch.triggers["x"]:
        case FeatureTrigger(probe=ProbeConfig(json_body=sent)):
            assert sent == {"a": value}
        case other:
            pytest.fail(f"not a probe: {other}")


@pytest.mark.parametrize(
    "written,seconds",
    [("500ms", 0.5), ("5s", 5.0), ("1.5m", 90.0), ("2h", 7200.0), ("1d", 86400.0), ("366d", 31622400.0)],
)
def test_a_duration_has_its_unit(written: str, seconds: float) -> None:
    assert parse(f"{GOOD}watch: {{window: {written}}}\n").watch.window == seconds


# --- what it cannot mean ---------------------------------------------------------------------------------------------

A_DURATION = "expected a duration with its unit, like 500ms, 5s, 15m or 1h"
A_PERCENTAGE = "expected a percentage between 0% and 100%, like 1%"
A_NAME = "expected a name of letters, digits, dot, dash or underscore, not starting with a dash"
AN_ADDRESS = "expected an address like http://127.0.0.1:8000/health"
UNKNOWN = "unknown key; known here:"
KINDS = "containers, data, error_rate, feature, latency"
FEATURE = "watch: {triggers: {x: {kind: feature, probe: "

EDGE = "containers: {compose: {project: shop}, services: [web, up], "

A_COLUMN = "expected a column like orders.total, or billing.orders.total where the schema is not public"
MERGE = "database: {postgres: {name: a, user: a}, merge: "

FAULTS = {
    # keys
    "unknown-key": (
        "wach: {}\n",
        (
            f"6:1: wach: {UNKNOWN} containers, database, environment, frontend, mode, notify, process, retain, "
            "stack, state, verify, version, watch"
        ),
    ),
    "unknown-key-in-a-section": (
        "watch: {windou: 1h}\n",
        f"6:9: watch.windou: {UNKNOWN} bake, baseline, false_alarm, interval, traffic, triggers, warm_up, window",
    ),
    "unknown-key-of-a-trigger": (
        "watch:\n  triggers:\n    x: {kind: data, invariants: '*.sql', limit: 0}\n",
        "8:42: watch.triggers.x.limit: unknown key; known here: invariants, kind, repairs, timeout",
    ),
    "unknown-key-of-a-probe": (
        FEATURE + "{get: http://a, body: 1}}}}\n",
        "6:62: watch.triggers.x.probe.body: unknown key; known here: expect, get, json, post, status, timeout",
    ),
    "key-that-is-missing": (
        "database: {postgres: {name: shop}}\n",
        "6:22: database.postgres.user: expected, but not there",
    ),
    "trigger-without-a-kind": (
        "watch: {triggers: {x: {limit: 1%}}}\n",
        f"6:23: watch.triggers.x: expected a kind: {KINDS}",
    ),
    "trigger-of-no-kind": (
        "watch: {triggers: {x: {kind: cpu}}}\n",
        f"6:23: watch.triggers.x: expected a kind: {KINDS}",
    ),
    "trigger-with-a-bad-name": (
        "watch: {triggers: {-x: {kind: containers}}}\n",
        f"6:20: watch.triggers.-x: {A_NAME}",
    ),
    # values
    "duration-without-a-unit": ("watch:\n  window: 60\n", f"7:11: watch.window: {A_DURATION}"),
    "duration-with-a-bad-unit": ("watch: {window: 2w}\n", f"6:17: watch.window: {A_DURATION}"),
    "duration-below-nothing": ("watch: {window: -1s}\n", f"6:17: watch.window: {A_DURATION}"),
    "duration-in-other-digits": ("watch: {window: ٣s}\n", f"6:17: watch.window: {A_DURATION}"),
    "duration-without-an-end": (
        f"watch: {{window: {'9' * 400}d}}\n",
        "6:17: watch.window: expected a duration of at most 366d",
    ),
    "window-of-no-length": ("watch: {window: 0s}\n", "6:17: watch.window: expected a duration of more than 0s"),
    "interval-of-no-length": ("watch: {interval: 0ms}\n", "6:19: watch.interval: expected a duration of more than 0s"),
    "percentage-without-its-sign": ("watch: {false_alarm: 0.001}\n", f"6:22: watch.false_alarm: {A_PERCENTAGE}"),
    "percentage-of-nothing": ("watch: {false_alarm: 0%}\n", f"6:22: watch.false_alarm: {A_PERCENTAGE}"),
    "percentage-of-all": ("watch: {false_alarm: 100%}\n", f"6:22: watch.false_alarm: {A_PERCENTAGE}"),
    "quantile": (
        "watch:\n  traffic: {metrics: http://a}\n  triggers:\n    slow: {kind: latency, limit: 5s, quantile: 95}\n",
        "9:48: watch.triggers.slow.quantile: expected a quantile like p95",
    ),
    "mode": ("mode: auto\n", "6:7: mode: expected 'observe', 'propose' or 'automatic'"),
    "name": ("environment: a b\n", f"6:14: environment: {A_NAME}"),
    "address": ("verify: {health: [ftp://x]}\n", f"6:19: verify.health.0: {AN_ADDRESS}"),
    "address-in-a-list": (
        "verify:\n  health: ['http://127.0.0.1:1/', ftp://x]\n",
        f"7:35: verify.health.1: {AN_ADDRESS}",
    ),
    "address-or-several": ("watch: {traffic: {metrics: ftp://x}}\n", f"6:28: watch.traffic.metrics: {AN_ADDRESS}"),
    "one-of-several-addresses": (
        "watch: {traffic: {metrics: [http://a, b]}}\n",
        f"6:39: watch.traffic.metrics.1: {AN_ADDRESS}",
    ),
    "no-list": ("verify: {health: http://a}\n", "6:18: verify.health: expected a list"),
    "no-section": ("verify: 3\n", "6:9: verify: expected keys and values below it"),
    "no-mapping": ("watch: {triggers: [x]}\n", "6:19: watch.triggers: expected keys and values below it"),
    "no-text": ("state: {a: 1}\n", "6:8: state: expected a text"),
    "no-whole-number": (
        "database: {postgres: {name: a, user: a, port: 5432.5}}\n",
        "6:47: database.postgres.port: expected a whole number",
    ),
    "truth-for-a-number": (
        "database: {postgres: {name: a, user: a}, restore_points: {keep: true}}\n",
        "6:65: database.restore_points.keep: expected a whole number",
    ),
    "number-too-small": (
        "database: {postgres: {name: a, user: a}, restore_points: {keep: 0}}\n",
        "6:65: database.restore_points.keep: expected at least 1",
    ),
    "number-too-large": (
        "database: {postgres: {name: a, user: a, port: 65536}}\n",
        "6:47: database.postgres.port: expected at most 65535",
    ),
    "empty-secret": (
        "notify: {slack: {channel: x, token: ''}}\n",
        "6:37: notify.slack.token: expected a text, ${VAR} or file:PATH",
    ),
    "secret-that-is-no-text": (
        "notify: {slack: {channel: x, token: [1]}}\n",
        "6:37: notify.slack.token: expected a text, ${VAR} or file:PATH",
    ),
    "worker-that-is-no-service": (
        EDGE + "workers: [cron]}\n",
        "6:13: containers: expected in workers only names of services, not cron",
    ),
    "route-of-no-service": (
        EDGE + "edge: {routes: {api: 80}}}\n",
        "6:77: containers.edge.routes.api: expected the name of one of containers.services: web, up",
    ),
    "route-of-a-worker": (
        EDGE + "workers: [web], edge: {routes: {web: 80}}}\n",
        "6:93: containers.edge.routes.web: expected no name of containers.workers: they work by themselves",
    ),
    "one-at-a-time-without-a-route": (
        EDGE + "edge: {routes: {web: 80}, one_at_a_time: [up]}}\n",
        "6:103: containers.edge.one_at_a_time.0: expected the name of one of containers.edge.routes: web",
    ),
    "standby": (
        EDGE + "edge: {routes: {web: 80}, standby: warm}}\n",
        "6:96: containers.edge.standby: expected 'running', 'stopped' or 'none'",
    ),
    "merge-of-a-column-without-its-table": (
        MERGE + "{total: set}}\n",
        f"6:50: database.merge.total: {A_COLUMN}",
    ),
    "merge-of-a-column-whose-schema-goes-without-saying": (
        MERGE + "{public.orders.total: set}}\n",
        f"6:50: database.merge.public.orders.total: {A_COLUMN}",
    ),
    "merge-in-no-known-way": (
        MERGE + "{billing.orders.total: max}}\n",
        "6:72: database.merge.billing.orders.total: expected 'delta' or 'set'",
    ),
    "nothing-to-run": ("verify: {smoke: {command: []}}\n", "6:27: verify.smoke.command: expected at least 1 entry"),
    # what fits only together
    "probe-without-a-method": (
        FEATURE + "{}}}}\n",
        "6:46: watch.triggers.x.probe: expected exactly one of post and get",
    ),
    "probe-with-two-methods": (
        FEATURE + "{get: http://a, post: http://a}}}}\n",
        "6:46: watch.triggers.x.probe: expected exactly one of post and get",
    ),
    "trigger-without-traffic": (
        "watch:\n  triggers: {errors: {kind: error_rate}}\n",
        "7:3: watch: trigger errors counts requests: expected watch.traffic",
    ),
    "traffic-from-nowhere": (
        "watch: {traffic: {exclude: []}}\n",
        "6:18: watch.traffic: expected exactly one of metrics and access_log",
    ),
    "traffic-from-two-places": (
        "watch: {traffic: {metrics: http://a, access_log: {path: a.log, format: haproxy}}}\n",
        "6:18: watch.traffic: expected exactly one of metrics and access_log",
    ),
    "log-of-no-known-format": (
        "watch: {traffic: {access_log: {path: a.log, format: common}}}\n",
        "6:53: watch.traffic.access_log.format: expected 'combined', 'combined-timed' or 'haproxy'",
    ),
    "latency-from-a-log-without-durations": (
        ("watch:\n  traffic: {access_log: {path: a.log, format: combined}}\n  triggers: {slow: {kind: latency}}\n"),
        "7:3: watch: trigger slow counts slow requests: expected a format of watch.traffic.access_log with durations",
    ),
    "two-limits-for-one-count": (
        (
            "watch:\n  traffic: {metrics: http://a}\n  triggers:\n    p95: {kind: latency, limit: 1s}\n"
            "    p99: {kind: latency, quantile: p99, limit: 2s}\n"
        ),
        "7:3: watch: expected one limit for all latency triggers",
    ),
    "both-engines": (
        "containers: {compose: {project: shop}, services: [web]}\n",
        "1:1: file: expected exactly one of containers and process",
    ),
    # references
    "no-variable": ("state: ${NOWHERE}\n", "6:8: state: the environment has no NOWHERE"),
    "no-variable-in-a-list": (
        "verify: {health: [x, '${A}${NOWHERE}']}\n",
        "6:22: verify.health.1: the environment has no NOWHERE",
    ),
    "no-file": ("state: file:none\n", "6:8: state: cannot read file:none: No such file or directory"),
    "file-that-is-no-text": ("state: file:picture\n", "6:8: state: cannot read file:picture: it is no UTF-8 text"),
    # not even YAML, or more of it than is read here
    "alias": ("state: &a x\nmode: *a\n", "7:7: aliases are not read here; write the value out"),
    "tag": ("state: !!int 3\n", "6:8: tags are not read here; write the plain value"),
    "tag-of-another-program": (
        "state: !!python/name:os.system ''\n",
        "6:8: tags are not read here; write the plain value",
    ),
    "key-twice": ("state: x\nstate: y\n", "7:1: found duplicate key 'state'"),
    "key-twice-below": ("watch: {bake: 1m, bake: 2m}\n", "6:19: found duplicate key 'bake'"),
    "key-that-is-a-list": ("? [a]\n: b\n", "6:3: expected a key that is one word"),
    "key-with-a-tag": ("!!str a: b\n", "6:1: expected a key that is one word"),
    "second-document": ("---\nversion: 1\n", "6:1: expected one document"),
    "too-deep": (f"x: {'[' * 40}{']' * 40}\n", "6:43: more than 40 levels below each other"),
    "not-closed": ("state: [\n", "7:1: expected the node content, but found '<stream end>'"),
    "character-that-is-none": ("state: a\x00\n", "6:9: expected a text, not the character U+0000"),
    "half-a-character": ("state: \ud800\n", "6:8: expected a text, not the character U+D800"),
    "character-that-is-none-by-its-escape": ('state: "a\\0"\n', "6:8: expected a text, not the character U+0000"),
    "half-a-character-by-its-escape": ('"\\ud800": 1\n', "6:1: expected a text, not the character U+D800"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_shown_with_its_place_and_what_was_expected(fault: str) -> None:
    added, said = FAULTS[fault]
    assert refused(GOOD + added) == f"lastgood.yaml:{said}"


def test_a_file_without_an_engine_says_which_there_are() -> None:
    said = "lastgood.yaml:1:1: file: expected exactly one of containers and process"
    assert refused("version: 1\nstack: shop\n") == said


def test_a_newer_version_of_the_file_is_refused() -> None:
    assert refused(GOOD.replace("version: 1", "version: 2")) == "lastgood.yaml:1:10: version: expected 1"


def test_an_unknown_key_of_a_service_lists_the_known_ones() -> None:
    assert refused(GOOD.replace("port: 8000", "port: 8000, halth: /x")) == (
        "lastgood.yaml:5:55: process.services.web.halth: unknown key; known here: command, env, health, port"
    )


def test_all_faults_are_shown_at_once_in_the_order_of_the_file() -> None:
    assert refused(GOOD + "watch: {window: 1, bake: 2}\nmode: auto\n").splitlines() == [
        f"lastgood.yaml:6:17: watch.window: {A_DURATION}",
        f"lastgood.yaml:6:26: watch.bake: {A_DURATION}",
        "lastgood.yaml:7:7: mode: expected 'observe', 'propose' or 'automatic'",
    ]


@pytest.mark.parametrize("kind", ["key_{0}: 1\n", "key_{0}: '${{NOWHERE}}'\n"], ids=["unknown", "not-filled-in"])
def test_of_very_many_faults_the_first_are_shown_and_the_rest_counted(kind: str) -> None:
    *shown, last = refused(GOOD + "".join(kind.format(n) for n in range(100))).splitlines()
    assert (len(shown), last) == (20, "lastgood.yaml: and 80 more")


@pytest.mark.parametrize("key", ["a\\nb", "a\\Lb", "a\\Nb"], ids=["newline", "line-separator", "next-line"])
def test_what_a_terminal_would_act_on_is_shown_and_not_done(key: str) -> None:
    said = refused(f'{GOOD}"{key}": 1\n')
    assert (said.isprintable(), len(said.splitlines())) == (True, 1)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words", "# nothing\n", "---\n", "3"])
def test_a_file_whose_top_is_no_mapping_is_refused(text: str) -> None:
    assert refused(text) == "lastgood.yaml:1:1: expected settings like `version: 1`"


def test_a_file_that_is_too_large_is_refused_before_it_is_read() -> None:
    assert refused(GOOD + "#" * (1 << 20)) == "lastgood.yaml: larger than 1 MiB"


def test_no_secret_is_in_what_is_said_of_a_fault() -> None:
    text = "".join(f"{name}: '${{HYPER_DB_PASSWORD}}'\n" for name in ("mode", "environment", "watch", "frontend"))
    assert "value of" not in refused(GOOD + text)


# --- any text at all -------------------------------------------------------------------------------------------------

LINES = HYPERCODE.splitlines(keepends=True)
SCRAPS = [
    "[",
    "]",
    "{",
    "}",
    "'",
    '"',
    "|",
    ">",
    "&a ",
    "*a",
    "!!int ",
    "? ",
    ": ",
    "- ",
    "~",
    "%YAML 1.1\n---\n",
    "<<: ",
]
SCRAPS += [
    "0x",
    "1e999",
    ".nan",
    "2001-99-99",
    "9" * 5000,
    "\x00",
    "\ufeff",
    "\u2028",
    "\x85",
    "\t",
    "\n",
    "${",
    "file:",
]


@st.composite
def torn(draw: st.DrawFn) -> str:
    """HyperCode's file, or some of its lines, with scraps of YAML in it."""
    begin = draw(st.integers(0, len(LINES) - 1))
    text = "".join(draw(st.sampled_from([LINES, LINES[begin : begin + 3]])))
    for scrap in draw(st.lists(st.sampled_from(SCRAPS), max_size=4)):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + scrap + text[at + draw(st.sampled_from([0, 0, 1, 9])) :]
    return text


@given(text=st.text(st.characters(), max_size=60) | torn())
@settings(max_examples=60)
def test_any_text_is_a_configuration_or_a_configuration_error(text: str) -> None:
    try:
        found: object = parse(text)
    except ConfigError as error:
        found = error
    assert isinstance(found, Config | ConfigError)


@given(text=torn())
@settings(max_examples=40)
def test_every_line_about_a_fault_names_the_file_first(text: str) -> None:
    try:
        parse(text)
    except ConfigError as error:
        lines = error.message.splitlines()
    else:
        lines = []
    assert all(line.startswith("lastgood.yaml:") for line in lines)
