"""Each release of HyperCode is what its name says: good, or bad in the one way it is named for."""

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.examples.hypercode_stack import (
    HYPERCODE,
    DidNotStart,
    broken_rows,
    migrate,
    ordinary_traffic,
    refused_statements,
    running_stack,
    smoke,
)

VERSIONS = {
    "good": "v2.0.5",
    "errors": "v2.0.6",
    "latency": "v2.0.7",
    "coder-agent-down": "v2.0.8",
    "orchestrator-hangs": "v2.0.9",
    "invalid-writes": "v2.0.10",
    "never-boots": "v2.0.11",
    "late": "v2.0.12",
    "blip": "v2.0.13",
    "bad-migration": "v2.1.0",
}
EVERY_VERSION = ("v2.0.3", *VERSIONS.values())

TreeOf = Callable[[str], Path]


def _failed(statuses: Sequence[int]) -> int:
    return sum(status >= 500 for status in statuses)


def _git(repository: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(repository), *words], capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout.strip()


def test_the_list_names_every_fault_and_its_version() -> None:
    done = subprocess.run(
        [sys.executable, str(HYPERCODE / "release.py"), "list", "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    listed = json.loads(done.stdout)
    assert listed["base"] == "v2.0.3"
    assert {release["fault"]: release["version"] for release in listed["releases"]} == VERSIONS


@pytest.mark.parametrize("version", EVERY_VERSION)
def test_git_describe_names_the_release_that_is_checked_out(version: str, tree_of: TreeOf) -> None:
    tree = tree_of(version)
    assert _git(tree, "describe") == version
    assert (tree / "VERSION").read_text(encoding="utf-8") == f"{version}\n"
    assert _git(tree, "rev-parse", f"{version}~{0 if version == 'v2.0.3' else 1}") == _git(
        tree, "rev-parse", "v2.0.3~0"
    )


def test_the_history_has_the_same_hashes_wherever_it_is_made(history: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    subprocess.run([sys.executable, str(HYPERCODE / "release.py"), "history", str(again)], check=True, timeout=60)
    assert _git(again, "show-ref", "--tags") == _git(history, "show-ref", "--tags")


def test_a_history_is_not_written_over_files(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    done = subprocess.run(
        [sys.executable, str(HYPERCODE / "release.py"), "history", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, [path.name for path in tmp_path.iterdir()]) == (1, ["mine"])


@pytest.mark.parametrize("version", EVERY_VERSION)
def test_a_release_speaks_to_its_own_empty_schema(version: str, tree_of: TreeOf, database_url: str) -> None:
    tree = tree_of(version)
    assert migrate(tree, database_url).returncode == 0
    assert refused_statements(tree, database_url) == {}
    assert broken_rows(database_url) == {}


@pytest.mark.parametrize("version", ["v2.0.3", "v2.0.5"])
def test_a_good_release_passes_its_smoke_tests_and_serves(
    version: str, tree_of: TreeOf, database_url: str, tmp_path: Path
) -> None:
    tree = tree_of(version)
    migrate(tree, database_url)
    with running_stack(tree, database_url, tmp_path / "log") as stack:
        done = smoke(tree, stack)
        assert done.returncode == 0, done.stdout
        assert _failed(ordinary_traffic(stack)) == 0
        assert stack.failures() == []
    assert broken_rows(database_url) == {}


@pytest.mark.full
def test_the_base_release_runs_on_the_good_releases_schema(tree_of: TreeOf, database_url: str, tmp_path: Path) -> None:
    base = tree_of("v2.0.3")
    migrate(tree_of("v2.0.5"), database_url)
    assert refused_statements(base, database_url) == {}
    assert migrate(base, database_url).returncode == 0
    with running_stack(base, database_url, tmp_path / "log") as stack:
        assert smoke(base, stack).returncode == 0


@pytest.mark.full  # the stories tell the same
def test_errors_fails_a_third_of_ordinary_requests(tree_of: TreeOf, database_url: str, tmp_path: Path) -> None:
    tree = tree_of(VERSIONS["errors"])
    migrate(tree, database_url)
    with running_stack(tree, database_url, tmp_path / "log") as stack:
        assert _failed(ordinary_traffic(stack)) == 40
        assert {line["release"] for line in stack.failures()} == {"v2.0.6"}


@pytest.mark.full  # the stories tell the same
def test_latency_keeps_a_third_of_ordinary_requests_over_half_a_second(
    tree_of: TreeOf, database_url: str, tmp_path: Path
) -> None:
    tree = tree_of(VERSIONS["latency"])
    migrate(tree, database_url)
    with running_stack(tree, database_url, tmp_path / "log") as stack:
        assert _failed(ordinary_traffic(stack)) == 0
        page = httpx.get(f"{stack.core}/metrics").text
    [durations] = [
        family
        for family in text_string_to_metric_families(page)
        if "duration" in family.name and family.type == "histogram"
    ]
    creates = {
        sample.labels["le"]: sample.value
        for sample in durations.samples
        if sample.name.endswith("_bucket")
        and (sample.labels["handler"], sample.labels["method"]) == ("/missions", "POST")
    }
    assert creates["0.5"] == 0
    assert creates["+Inf"] == 41


@pytest.mark.full  # the stories tell the same
def test_coder_agent_down_stops_working_while_its_health_stays_ok(
    tree_of: TreeOf, database_url: str, tmp_path: Path
) -> None:
    tree = tree_of(VERSIONS["coder-agent-down"])
    migrate(tree, database_url)
    with running_stack(tree, database_url, tmp_path / "log") as stack, stack.session() as client:
        answers = [httpx.post(f"{stack.coder_agent}/execute", json={"task": "ping"}, timeout=5.0) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [503, 503]
        assert httpx.get(f"{stack.coder_agent}/health").json() == {"status": "ok", "release": "v2.0.8"}
        assert client.post("/chat", json={"message": "hello"}).status_code == 502


@pytest.mark.full  # the stories tell the same
def test_orchestrator_hangs_never_plans_while_its_health_stays_ok(
    tree_of: TreeOf, database_url: str, tmp_path: Path
) -> None:
    tree = tree_of(VERSIONS["orchestrator-hangs"])
    migrate(tree, database_url)
    with running_stack(tree, database_url, tmp_path / "log") as stack, stack.session() as client:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{stack.orchestrator}/plan", json={"goal": "ping"}, timeout=3.0)
        assert httpx.get(f"{stack.orchestrator}/health").json() == {"status": "ok", "release": "v2.0.9"}
        assert client.post("/chat", json={"message": "hello"}).status_code == 504


@pytest.mark.full  # the stories tell the same
def test_invalid_writes_answers_well_and_leaves_rows_that_break_an_invariant(
    tree_of: TreeOf, database_url: str, tmp_path: Path
) -> None:
    tree = tree_of(VERSIONS["invalid-writes"])
    migrate(tree, database_url)
    with running_stack(tree, database_url, tmp_path / "log") as stack:
        assert all(status < 300 for status in ordinary_traffic(stack))
    assert broken_rows(database_url) == {"completed_mission_has_its_time": 41}


@pytest.mark.full  # the stories tell the same
def test_bad_migration_ruins_rows_serves_on_and_leaves_no_way_back(
    tree_of: TreeOf, database_url: str, tmp_path: Path
) -> None:
    base, tree = tree_of("v2.0.3"), tree_of(VERSIONS["bad-migration"])
    migrate(base, database_url)
    with running_stack(base, database_url, tmp_path / "before") as stack:
        ordinary_traffic(stack)
    assert migrate(tree, database_url).returncode == 0
    assert broken_rows(database_url) == {"mission_credits_are_positive": 41}
    with psycopg.connect(database_url) as db:
        writers = db.execute("SELECT DISTINCT xmin::text FROM missions WHERE credits <= 0").fetchall()
    assert len(writers) == 1, "the rows were not written by one transaction, the migration's"

    with running_stack(tree, database_url, tmp_path / "after") as stack:
        assert smoke(tree, stack).returncode == 0
        assert all(status < 300 for status in ordinary_traffic(stack))
    assert broken_rows(database_url) == {"mission_credits_are_positive": 41}

    assert set(refused_statements(base, database_url).values()) == {"42703"}
    with running_stack(base, database_url, tmp_path / "back") as stack:
        with stack.session() as client:
            assert client.get("/missions").status_code == 500
        failure = stack.the_failure()
        assert (failure["sqlstate"], failure["release"]) == ("42703", "v2.0.3")


def test_never_boots_ends_before_it_answers(tree_of: TreeOf, database_url: str, tmp_path: Path) -> None:
    tree = tree_of(VERSIONS["never-boots"])
    migrate(tree, database_url)
    with (
        pytest.raises(DidNotStart, match=r"hypercode_core\.audit"),
        running_stack(tree, database_url, tmp_path / "log"),
    ):
        pass


@pytest.mark.full  # the stories tell the same
def test_late_works_for_45_seconds_of_use_and_then_fails_every_session(
    tree_of: TreeOf, database_url: str, tmp_path: Path
) -> None:
    tree = tree_of(VERSIONS["late"])
    migrate(tree, database_url)
    with running_stack(tree, database_url, tmp_path / "log") as stack:
        assert _failed(ordinary_traffic(stack)) == 0
    script = """
        import asyncio, sys
        from hypercode_core.active import ActiveUsers
        from hypercode_core.database import make_pool

        async def main() -> None:
            now_s = 1000.0
            async with make_pool(sys.argv[1]) as pool:
                users = ActiveUsers(pool, clock=lambda: now_s)
                for now_s in (1000.0, 1044.9, 1045.0, 1046.0):
                    try:
                        print(now_s - 1000, await users.include(1))
                    except AttributeError:
                        print(now_s - 1000, "failed")

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), database_url],
        cwd=tree / "services",
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["True", "True", "failed", "failed"]


def test_blip_refuses_the_first_requests_and_then_serves_all(
    tree_of: TreeOf, database_url: str, tmp_path: Path
) -> None:
    tree = tree_of(VERSIONS["blip"])
    migrate(tree, database_url)
    with running_stack(tree, database_url, tmp_path / "log") as stack:
        with stack.session() as client:
            assert client.get("/missions").status_code == 503
            assert httpx.get(f"{stack.core}/health").status_code == 200
            _ask_until_served(client)
        assert _failed(ordinary_traffic(stack)) == 0
        assert smoke(tree, stack).returncode == 0


def _ask_until_served(client: httpx.Client) -> None:
    for _ in range(400):
        if client.get("/missions").status_code != 503:
            return
        time.sleep(0.05)  # the only sign that the warming has ended is the answer itself
    raise AssertionError("still warming up")
