"""The command line. Each command builds the rooms, calls one runbook and prints: stdout is the result, stderr the
story."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from pydantic import TypeAdapter

from lastgood import __version__
from lastgood.assembly import CONFIG_FILE, build, compose_by_hand, load_config, put_edge, survey
from lastgood.cli.first_config import first_config, keep_password, with_edge
from lastgood.cli.rendering import (
    GOOD_ENDS,
    added_lines,
    clean,
    counted,
    edge_lines,
    findings_lines,
    history_rows,
    kept_rows,
    outlook_before,
    plan_lines,
    quarantine_lines,
    quarantine_rows,
    release_rows,
    repair_lines,
    repaired_lines,
    report_lines,
    restore_point_rows,
    run_lines,
    survey_lines,
    table,
)
from lastgood.cli.screen import Screen
from lastgood.cli.status import Status, look
from lastgood.core.errors import Bug, ConfigError, LastgoodError, OutcomeUnknown, Refused
from lastgood.core.facts import KeptDatabase
from lastgood.core.history import ReleaseHistory, RunHistory
from lastgood.core.plan import Plan, Role
from lastgood.core.quarantine import EntryState
from lastgood.core.record import AbortAsked, ApprovalDenied, RepairBegun
from lastgood.core.repair import RepairPlan
from lastgood.core.report import Report, TerminalState
from lastgood.core.run import began_what_was_asked
from lastgood.runbook import by_hand, captures
from lastgood.runbook import deploy as deploying
from lastgood.runbook import guard as guarding
from lastgood.runbook import kept as keeping
from lastgood.runbook import quarantine as deciding
from lastgood.runbook import record as recording
from lastgood.runbook import repair as mending
from lastgood.runbook import restore_points as points
from lastgood.runbook import rollback as returning
from lastgood.runbook import swap_back as swapping
from lastgood.runbook import watch as watching
from lastgood.runbook.doctor import Answer, Finding, examine
from lastgood.runbook.frontend import await_frontend
from lastgood.runbook.rooms import Rooms, silent

EXIT_CODES: Final = """
Exit codes: 0 done and good · 1 ended, but not good (see the terminal state) · 2 configuration or argument ·
3 refused, nothing changed · 4 could not look, or an answer was lost · 5 a person is needed · 70 a bug of lastgood
"""
NOT_GOOD: Final = 1
NEEDS_PERSON: Final = 5
INTERRUPTED: Final = 130
"""What typer makes of Ctrl-C."""

app = typer.Typer(
    name="lastgood",
    help="Put production back after a bad deploy." + "\n\n" + EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
audit = typer.Typer(help="Check the journal.", no_args_is_help=True)
app.add_typer(audit, name="audit")
quarantine = typer.Typer(help="Decide about what did not fit the old schema.", no_args_is_help=True)
app.add_typer(quarantine, name="quarantine")
kept = typer.Typer(help="The databases that a swap replaced.", no_args_is_help=True)
app.add_typer(kept, name="kept")
restore_points = typer.Typer(help="The places that the database can return to.", no_args_is_help=True)
app.add_typer(restore_points, name="restore-points")

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="lastgood.yaml of the stack.", envvar="LASTGOOD_CONFIG")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before starting. Never approves a database step.")]
SaidYes = Annotated[bool, typer.Option("--yes", "-y", help="Yes, without being asked.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
EntryArgument = Annotated[str, typer.Argument(metavar="ID", help="An entry, as `quarantine list` names it.")]
Why = Annotated[str, typer.Option("-m", "--message", help="Why, for the journal.")]


def main() -> None:
    """Run the command line; every error of this program becomes its exit code, its message and one hint on stderr."""
    try:
        app(standalone_mode=True)
    except LastgoodError as error:
        say(f"lastgood: {error.message}")
        if error.hint:
            say(f" hint: {error.hint}")
        raise SystemExit(error.exit_code) from None
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            say("interrupted; the journal has everything. Go on with: lastgood watch   (see: lastgood status)")
        raise
    except Exception as bug:
        # whatever it is, it is ours: what was done is in the journal
        traceback.print_exc()
        raise SystemExit(Bug.exit_code) from bug


_SCREEN: Final = Screen()


def say(line: str) -> None:
    """One line of the story, to stderr, at once."""
    _SCREEN.say(line)


def out(line: str = "") -> None:
    """One line of the result, to stdout, at once."""
    print(line, flush=True)


def show(value: object, kind: Any) -> None:  # noqa: ANN401 # what TypeAdapter takes: a type, or a form like tuple[X, ...]
    """Print a value as JSON."""
    out(json.dumps(TypeAdapter(kind).dump_python(value, mode="json"), indent=2, ensure_ascii=False))


def opened(config: Path) -> Rooms:
    """Build the rooms of the stack."""
    return build(config, say, _SCREEN.update)


def minded(config: Path) -> Rooms:
    """Build the rooms of the stack, and end what the server keeps for a replay where that is over. For every command
    but those that nothing may hold up. Without a word: what the command prints may be JSON, and the team is told."""
    rooms = opened(config)
    captures.mind(replace(rooms, story=silent, update=silent))
    return rooms


@contextmanager
def leased(rooms: Rooms) -> Generator[None]:
    """Hold the right to execute for the length of the block."""
    with rooms.memory.journal.claim(rooms.who):
        yield


def confirmed(question: str, *, yes: bool) -> bool:
    """Ask on the terminal; without one, or with --yes, the answer is what --yes says."""
    if yes or not sys.stdin.isatty():
        return yes
    return typer.confirm(question, default=False, err=True)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        out(f"lastgood {__version__}")
        raise typer.Exit


@app.command()
def init(
    config: ConfigOption = Path(CONFIG_FILE),
    release: Annotated[
        str | None, typer.Option("--release", help="Name for what runs now; defaults to `git describe`.")
    ] = None,
    edge: Annotated[
        bool, typer.Option("--edge", help="Put an HAProxy before the services, for rollbacks without a failed request.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="What runs now is good: record it without asking.")] = False,
) -> None:
    """Look at the compose file and write lastgood.yaml.

    Writes lastgood.yaml and, into the state folder, the database's password. If you say that what runs is good, it is
    recorded and its images are held. With --edge it writes a second compose file, and a section of lastgood.yaml;
    where that is there, the file anew as it says. What runs is not touched.

    Example: lastgood init
    """
    if config.exists() and edge:
        _init_edge(config)
        return
    if config.exists():
        raise Refused(f"{config} is there already", hint="lastgood doctor")
    root = config.resolve().parent
    found = survey(root)
    text, not_found, left = first_config(found, root)
    for line in survey_lines(found, not_found, left):
        out(line)
    if all(service.why_not for service in found.services):
        raise Refused("no service of this project may be rolled back", hint="see the reasons above")
    keep_password(found, root)
    config.write_text(text, encoding="utf-8")
    out(f"wrote {config} (mode: observe). Nothing else changed.")
    if any(service.running for service in found.services) and confirmed("Is what runs now good?", yes=yes):
        rooms = opened(config)
        with leased(rooms):
            recorded = recording.record(rooms, release or _described_or_first(rooms.root))
            recording.vouch(rooms, recorded.id, why="init")
        out(f"recorded as {recorded.id} (vouched for by {rooms.who})")
    if edge:
        _init_edge(config)
        return
    out("next: lastgood doctor")


def _init_edge(config: Path) -> None:
    text = config.read_text(encoding="utf-8")
    rooms = opened(config)
    with leased(rooms):  # what moves traffic writes the same file
        plan, file = put_edge(config)
    for line in edge_lines(plan):
        out(line)
    config.write_text(with_edge(text, plan, file), encoding="utf-8")
    wrote = f"{file} anew" if plan.anew else f"{file} and containers.edge in {config}"
    out(f"wrote {wrote}. Nothing that runs was touched.")
    if containers := load_config(config).containers:
        only = ("--no-deps", *plan.anew) if plan.anew else ()
        up = shlex.join(compose_by_hand(containers.compose, "up", "--detach", *only))
        out(f"next: {up}      (the ports move to the edge: seconds without service, once)")
    # without its ports a service is another one than the release that serves was recorded with
    serving = rooms.memory.history().serving
    name = recording.free_name(rooms, serving or _described_or_first(rooms.root))
    out("then: lastgood doctor" if plan.anew else f"then: lastgood record --good --release {name}, and lastgood doctor")


@app.command()
def doctor(config: ConfigOption = Path(CONFIG_FILE), as_json: AsJson = False) -> None:
    """Could we roll back right now?

    Changes nothing, but for a capture that is over, which ends. Each check is ok, failed, or could not look, and says
    what to type.

    Example: lastgood doctor
    """
    findings = examine(minded(config))
    if as_json:
        show(findings, tuple[Finding, ...])
    else:
        for line in findings_lines(findings):
            out(line)
    if any(f.answer is Answer.FAILED for f in findings):
        raise typer.Exit(NOT_GOOD)
    if any(f.answer is Answer.COULD_NOT_LOOK for f in findings):
        raise typer.Exit(OutcomeUnknown.exit_code)


@app.command()
def deploy(
    config: ConfigOption = Path(CONFIG_FILE),
    release: Annotated[str | None, typer.Option("--release", help="Name; defaults to `git describe`.")] = None,
    first: Annotated[bool, typer.Option("--first", help="There is no good release yet.")] = False,
    even_if_barred: Annotated[
        bool, typer.Option("--even-if-barred", help="Deploy a release that was rolled back.")
    ] = False,
    no_watch: Annotated[
        bool,
        typer.Option(
            "--no-watch",
            help="Do not watch in the foreground; take it up with `watch`. Says what is kept meanwhile for a replay.",
        ),
    ] = False,
    yes: Yes = False,
) -> None:
    """Deploy what the files on disk say, then watch it.

    Changes images, containers and schema; a restore point is taken first. A deploy that stops half-way is put back,
    and a release that turns bad goes back as the mode says.

    Example: lastgood deploy --release v2.0.6
    """
    rooms = opened(config)
    name = release or described(rooms.root)

    def confirm(plan: Plan) -> bool:
        for line in plan_lines(plan):
            say(line)
        return confirmed("Deploy?", yes=yes)

    done = deploying.deploy(rooms, name, first=first, override=even_if_barred, confirm=confirm, watched=not no_watch)
    if done.report:
        ended(done.report)
    if no_watch:
        await_frontend(rooms, done.deployment)
        for line in captures.leave(rooms):
            out(line)
        out(f"{name} serves; the watch is recorded. Take it up with: lastgood watch")
        return
    watch_and_end(rooms, done.deployment)


def _described_or_first(root: Path) -> str:
    try:
        return described(root)
    except Refused:
        return "first"


def described(root: Path, *, hint: str = "lastgood deploy --release NAME") -> str:
    """Name the checkout by `git describe`. Raises Refused, with the hint, when there is no git or no commit."""
    try:
        found = subprocess.run(
            ["git", "describe", "--tags", "--always", "--dirty=-dirty"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(f"git does not answer: {error}", hint=hint) from error
    name = found.stdout.strip()
    if found.returncode or not name:
        raise Refused(f"{root} has no git commit to name the release by", hint=hint)
    return name


def watch_and_end(rooms: Rooms, deployment: str) -> None:
    """Watch in the foreground and exit by how it ended."""
    outcome = watching.watch_on(rooms, deployment)
    if outcome.report:
        ended(outcome.report)
    out(f"{outcome.terminal.value}  {outcome.sentence}")
    raise typer.Exit(0 if outcome.terminal in GOOD_ENDS else NOT_GOOD)


def ended(report: Report, *, good: frozenset[TerminalState] = frozenset()) -> None:
    """Print a report and exit by how it ended. A deploy that was rolled back is not a success of the deploy."""
    for line in report_lines(report):
        out(line)
    if report.terminal in good:
        raise typer.Exit
    codes = {TerminalState.REFUSED: Refused.exit_code, TerminalState.NEEDS_HUMAN: NEEDS_PERSON}
    raise typer.Exit(codes.get(report.terminal, NOT_GOOD))


@app.command()
def record(
    config: ConfigOption = Path(CONFIG_FILE),
    release: Annotated[
        str | None, typer.Option("--release", help="Name; defaults to what serves, else `git describe`.")
    ] = None,
    good: Annotated[bool, typer.Option("--good", help="A person vouches for it: it becomes a target.")] = False,
    even_if_barred: Annotated[
        bool, typer.Option("--even-if-barred", help="With --good: also what only a release has that was rolled back.")
    ] = False,
    why: Why = "",
) -> None:
    """Record what serves now; with --good, vouch for it.

    Writes the journal and holds the images. What runs is not touched. With --good and the name of an earlier release it
    vouches for that, and records nothing.

    Example: lastgood record --good -m 'seen by the team'
    """
    rooms = opened(config)
    name = release or rooms.memory.history().serving or described(rooms.root, hint="lastgood record --release NAME")
    if not good:
        with leased(rooms):
            recording.record(rooms, name)
        out(f"recorded {name}")
        return
    if recording.record_good(rooms, name, why=why, override=even_if_barred):
        out(f"recorded {name}")
    serves = name == rooms.memory.history().serving
    but = "" if serves else "; what serves is something else, and was not recorded"
    out(f"{name} is good (vouched for by {rooms.who}){but}")
    captures.mind(rooms)


@app.command()
def watch(config: ConfigOption = Path(CONFIG_FILE)) -> None:
    """Take up the watch, or an interrupted run, where it was.

    Changes what the mode allows, and finishes what a run had begun. After a rollback it watches what came back. A
    deploy that was left at its gate is left there: `rollback` removes it.

    Example: lastgood watch
    """
    rooms = opened(config)
    under, run = watching.watchable(rooms), rooms.memory.history().open_run
    # a deploy that was left at its gate keeps nobody from watching what serves
    if run is not None and not (under and run.is_at_its_gate):
        with leased(rooms):
            report = returning.take_up(rooms)
            if report is not None:
                ended(report, good=frozenset({TerminalState.ROLLED_BACK_VERIFIED}))
            done = deploying.take_up(rooms)
        if done and done.report:
            ended(done.report)
        under = watching.watchable(rooms)
    if under is None:
        raise Refused("nothing to watch: no deployment is under way", hint="lastgood deploy")
    if under.watch is None:
        watching.start_watch(rooms, under.deployment.id)
    watch_and_end(rooms, under.deployment.id)


@app.command()
def guard(config: ConfigOption = Path(CONFIG_FILE)) -> None:
    """Stay, and watch what nobody watches.

    Changes what the mode allows, as `watch` does. Once an hour it looks whether each way back is whole, and tells the
    team if not; a run that a person began and left is told, and not gone on with. Ends when it is interrupted.

    Example: lastgood guard
    """
    guarding.guard(opened(config))


@app.command()
def status(config: ConfigOption = Path(CONFIG_FILE), as_json: AsJson = False) -> None:
    """What serves, what is watched, and what waits for a person.

    Changes nothing, but for a capture that is over, which ends.

    Example: lastgood status
    """
    found = look(minded(config))
    if as_json:
        show(found, Status)
        return
    out(f"{found.state}  {clean(found.said)}")
    for line in found.lines:
        out(clean(line))


@app.command()
def plan(
    config: ConfigOption = Path(CONFIG_FILE),
    release: Annotated[str | None, typer.Argument(help="Good release to go back to; default: the one before.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a rollback would do, if it began now.

    Changes nothing, but for a capture that is over, which ends; old statements are tried on a copy of the schema, which
    is gone afterwards.

    Example: lastgood plan
    """
    rooms = minded(config)
    made = returning.look_ahead(rooms, release)
    if as_json:
        show(made, Plan)
        return
    for line in (*plan_lines(made), *outlook_before(rooms.memory.history())):
        out(line)


@app.command()
def rollback(
    config: ConfigOption = Path(CONFIG_FILE),
    release: Annotated[str | None, typer.Argument(help="Good release to go back to; default: the one before.")] = None,
    only: Annotated[str | None, typer.Option("--only", help="containers, frontend, database; comma-separated.")] = None,
    why: Why = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan that would run.")] = False,
    yes: Yes = False,
) -> None:
    """Go back to the last good release, or finish a rollback.

    Changes containers and frontend; the database only after lastgood approve. With --dry-run nothing. One that waits
    because the mode asks goes on with --yes.

    Example: lastgood rollback -m 'chat is down'
    """
    rooms = opened(config)
    roles = _roles(only)
    good = frozenset({TerminalState.ROLLED_BACK_VERIFIED})
    if dry_run:
        for line in plan_lines(returning.look_ahead(rooms, release, only=roles)):
            out(line)
        return

    def confirm(plan: Plan) -> bool:
        for line in plan_lines(plan):
            say(line)
        return confirmed("Roll back?", yes=yes)

    ended(by_hand.go_back(rooms, target=release, only=roles, why=why, confirm=confirm, yes=yes), good=good)


def _roles(only: str | None) -> frozenset[Role]:
    if only is None:
        return frozenset(Role)
    known = {role.value: role for role in Role}
    words = [word.strip() for word in only.split(",")]
    if unknown := [word for word in words if word not in known]:
        raise ConfigError(f"--only {', '.join(unknown)}: not known; known: {', '.join(known)}")
    return frozenset(known[word] for word in words)


def _waiting(rooms: Rooms, run: str | None) -> RunHistory:
    history = rooms.memory.history()
    found = history.runs.get(run) if run else history.open_run
    if found is None or found.ended is not None:
        raise Refused(f"run {run} is not open" if run else "no run is under way", hint="lastgood status")
    return found


RunArgument = Annotated[str | None, typer.Argument(help="Run; default: the open one.")]


@app.command()
def approve(
    config: ConfigOption = Path(CONFIG_FILE),
    run: RunArgument = None,
    database: Annotated[
        str | None, typer.Option("--database", help="Name of the database that may be replaced.")
    ] = None,
    why: Why = "",
) -> None:
    """Approve the plan that a run waits with.

    Writes the journal only; the run that reads it goes on. Valid for ten minutes. A database step asks for the
    database's name.

    Example: lastgood approve --database hypercode
    """
    rooms = opened(config)
    waiting = _waiting(rooms, run)
    if not waiting.plan.needs_approval:
        raise Refused(f"run {waiting.started.run} waits for nobody", hint="lastgood status")
    for line in (*returning.approval_text(rooms, waiting.plan), *returning.dry_run(rooms, waiting.plan)):
        say(line)
    decision = waiting.plan.database
    if decision and decision.restore_point and rooms.config.database:
        name = rooms.config.database.postgres.name
        if (typed := _typed(name, database)) != name:
            raise Refused(f"the database is {name!r}, not {typed!r}", hint=f"lastgood approve --database {name}")
    by_hand.approve(rooms, waiting, why)
    out(f"approved {waiting.started.run} (plan {waiting.plan.hash[:12]}), valid for ten minutes")


@app.command()
def deny(config: ConfigOption = Path(CONFIG_FILE), run: RunArgument = None, why: Why = "") -> None:
    """Say no to what a run waits for; it ends DENIED.

    Writes the journal only.

    Example: lastgood deny -m 'we fix forward'
    """
    rooms = opened(config)
    waiting = _waiting(rooms, run)
    if not waiting.plan.needs_approval:
        raise Refused(f"run {waiting.started.run} waits for nobody", hint="lastgood abort -m 'why'")
    if began_what_was_asked(waiting.plan, waiting.records):
        raise Refused(f"too late: run {waiting.started.run} began what was approved", hint="lastgood abort -m 'why'")
    rooms.memory.note(ApprovalDenied(run=waiting.started.run, by=rooms.who, why=why))
    out(f"denied {waiting.started.run}")


@app.command()
def abort(config: ConfigOption = Path(CONFIG_FILE), run: RunArgument = None, why: Why = "") -> None:
    """Stop a run before its next effect.

    Writes the journal only; the run that reads it stops. What a rollback did stays done; a deploy is put back.

    Example: lastgood abort -m 'wrong release'
    """
    rooms = opened(config)
    waiting = _waiting(rooms, run)
    rooms.memory.note(AbortAsked(run=waiting.started.run, by=rooms.who, why=why))
    out(f"abort of {waiting.started.run} is asked for; it stops before its next effect")


@app.command()
def freeze(config: ConfigOption = Path(CONFIG_FILE), why: Why = "") -> None:
    """Refuse deploys until it is lifted.

    Writes the journal only.

    Example: lastgood freeze -m 'sale day'
    """
    by_hand.freeze(opened(config), why)
    out("deploys are frozen")


@app.command()
def unfreeze(config: ConfigOption = Path(CONFIG_FILE), why: Why = "") -> None:
    """Allow deploys again, and pushes to go live.

    Writes the journal; turns the frontend host's automatic assignment on where a rollback turned it off.

    Example: lastgood unfreeze -m 'fixed in 4e1f'
    """
    for line in by_hand.unfreeze(minded(config), why):
        out(line)


@restore_points.command("list")
def restore_points_list(config: ConfigOption = Path(CONFIG_FILE), as_json: AsJson = False) -> None:
    """List the restore points with age and size.

    Changes nothing. Each is compared with the journal, as far as a quick look tells.

    Example: lastgood restore-points list
    """
    rooms = minded(config)
    known = points.look(rooms)
    if as_json:
        show(known, tuple[points.Listed, ...])
        return
    for line in table(restore_point_rows(known, rooms.clock.now())):
        out(line)
    if not known:
        out("no restore point yet; one is taken at each deploy")


@restore_points.command("check")
def restore_points_check(
    restore_point: Annotated[
        str | None, typer.Argument(metavar="ID", help="Restore point; default: each that is there.")
    ] = None,
    config: ConfigOption = Path(CONFIG_FILE),
    as_json: AsJson = False,
) -> None:
    """Read restore points whole: is each what was proved?

    Changes nothing. Compares the hash of every byte with the journal, and the clone's rows and schema.

    Example: lastgood restore-points check
    """
    found: list[points.Checked] = []
    for one in points.check(opened(config), restore_point):
        found.append(one)
        if not as_json:
            out(f"{'FAILED' if one.wrong else 'ok    '}  {clean(one.restore_point.id)}  {clean(one.wrong)}".rstrip())
    if as_json:
        show(tuple(found), tuple[points.Checked, ...])
    elif not found:
        out("no restore point is there; one is taken at each deploy")
    if any(one.wrong for one in found):
        raise typer.Exit(NOT_GOOD)


@restore_points.command("add")
def restore_points_add(
    dump: Annotated[
        Path, typer.Argument(metavar="FILE", help="What pg_dump made: a file, a folder, or plain SQL; .gz as well.")
    ],
    name: Annotated[str | None, typer.Option("--name", help="Name of the restore point; default: own-TIME.")] = None,
    taken_at: Annotated[
        str | None,
        typer.Option("--taken-at", help="When it was taken, as 2026-11-26T14:02:00Z; default: what it says itself."),
    ] = None,
    config: ConfigOption = Path(CONFIG_FILE),
    as_json: AsJson = False,
) -> None:
    """Make a dump of your own a restore point.

    Writes a copy of it, a database beside the live one, and the journal. FILE and the live database are not touched.

    Example: lastgood restore-points add backup_pre_deploy.sql
    """
    rooms = opened(config)
    moment = _moment(taken_at)
    with leased(rooms):
        added = points.add(rooms, dump, name=name, taken_at=moment)
    if as_json:
        show(added, points.Added)
        return
    for line in added_lines(added, rooms.clock.now()):
        out(line)


@restore_points.command("recover")
def restore_points_recover(
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="NAME", help="Restore point of the deploy before which; default: the newest one."),
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="A moment instead, as 2026-11-26T14:02:00Z.")
    ] = None,
    config: ConfigOption = Path(CONFIG_FILE),
    as_json: AsJson = False,
) -> None:
    """Recover the database to a moment, by pgBackRest.

    Writes a side cluster, removed again, a dump, a database beside the live one, and the journal. The live database is
    not touched. For catastrophes: `plan` then goes back to it where there is nothing better.

    Example: lastgood restore-points recover --at 2026-11-26T14:02:00Z
    """
    if to is not None and at is not None:
        raise ConfigError("expected one of --to and --at")
    rooms = opened(config)
    moment = _moment(at, option="--at")
    with leased(rooms):
        recovered = points.recover(rooms, to=to, at=moment)
    if as_json:
        show(recovered, points.Added)
        return
    for line in added_lines(recovered, rooms.clock.now()):
        out(line)


def _moment(text: str | None, *, option: str = "--taken-at") -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ConfigError(f"{option} {text}: expected a time with its zone, as 2026-11-26T14:02:00Z")
    return moment.astimezone(UTC)


@app.command()
def releases(config: ConfigOption = Path(CONFIG_FILE), as_json: AsJson = False) -> None:
    """List the releases, and which of them are good.

    Changes nothing.

    Example: lastgood releases
    """
    history = opened(config).memory.history()
    if as_json:
        show(tuple(history.releases.values()), tuple[ReleaseHistory, ...])
        return
    for line in table(release_rows(history)):
        out(line)
    if not history.releases:
        out("no release yet; begin with: lastgood deploy --first   or: lastgood record --good")


@app.command()
def history(config: ConfigOption = Path(CONFIG_FILE), as_json: AsJson = False) -> None:
    """List the deployments and how each ended.

    Changes nothing.

    Example: lastgood history
    """
    known = opened(config).memory.history()
    rows = list(history_rows(known))
    if as_json:
        keys = ("deployment", "release", "started_at", "ended", "runs", "sentence")
        show([dict(zip(keys, row, strict=True)) for row in rows], list[dict[str, str]])
        return
    for line in table(rows):
        out(line)
    if not rows:
        out("no deployment yet")


@app.command()
def explain(run: RunArgument = None, config: ConfigOption = Path(CONFIG_FILE), as_json: AsJson = False) -> None:
    """Tell a run from the journal as its report, or a repair.

    Changes nothing.

    Example: lastgood explain 9c1e77
    """
    known = opened(config).memory.history()
    if run and (repaired := known.repairs.get(run)):
        if as_json:
            show(repaired.begun, RepairBegun)
            return
        for line in repaired_lines(repaired):
            out(line)
        return
    found = known.runs.get(run) if run else next(reversed(known.runs.values()), None)
    if found is None:
        names = ", ".join((*known.runs, *known.repairs)) or "none"
        raise Refused(f"run {run or ''} not found; known: {names}", hint="lastgood history")
    if as_json:
        report = found.ended.report if found.ended else None
        show(report, Report | None)
        return
    for line in run_lines(found):
        out(line)


@app.command()
def repair(
    config: ConfigOption = Path(CONFIG_FILE),
    since: Annotated[str | None, typer.Option(metavar="ID", help="Restore point to compare with.")] = None,
    yes: SaidYes = False,
    as_json: AsJson = False,
) -> None:
    """Put invalid rows right, one by one.

    Changes the live database in one transaction: what it shows and asks for, and each row only where it is as it was
    shown. Before, each change is tried there and taken back. With --json it only shows.

    Example: lastgood repair
    """
    rooms = opened(config)
    plan = mending.look(rooms, since)
    if as_json:
        show(plan, RepairPlan)
        return
    for line in repair_lines(plan):
        say(line)
    if not plan.rows:
        out("there is nothing that could be put right")
        return
    rows = counted(len(plan.rows), "row")
    if not confirmed(f"Put {rows} right in the live database?", yes=yes):
        raise Refused("nobody said yes, and nothing changed", hint="lastgood repair --yes")
    done = mending.repair(rooms, plan)
    left = sum(left.rows for left in plan.left)
    stay = f", {left} invalid stay" if left else ""
    out(f"put right: {rows}{stay}; what was there: lastgood explain {done.begun.repair}")


@app.command("swap-back")
def swap_back(
    config: ConfigOption = Path(CONFIG_FILE),
    database: Annotated[
        str | None, typer.Option("--database", help="Name of the database that may be replaced.")
    ] = None,
) -> None:
    """Take the newest swap of the database back.

    Changes the live database: the one that was replaced gets its name again, for as long as it is kept. What was
    written since stays beside it; the same command takes that back as well. It asks for the database's name.

    Example: lastgood swap-back --database hypercode
    """
    rooms = opened(config)
    if swapping.go_on(rooms):
        out("the swap is taken back; to take that back: lastgood swap-back")
        return
    plan = swapping.look(rooms)
    for line in plan_lines(plan):
        say(line)
    name = rooms.config.database.postgres.name if rooms.config.database else ""
    if (typed := _typed(name, database)) != name:
        raise Refused(f"the database is {name!r}, not {typed!r}", hint=f"lastgood swap-back --database {name}")
    swapping.swap_back(rooms, plan)
    out(f"{swapping.comes_back(plan)} has its name again; to take that back: lastgood swap-back")


def _typed(name: str, given: str | None) -> str:
    """What a person says is the database that may be replaced, or dropped."""
    if given or not sys.stdin.isatty():
        return given or ""
    return str(typer.prompt(f"Type the name of the database ({name}) to go on", err=True))


@kept.command("list")
def kept_list(config: ConfigOption = Path(CONFIG_FILE), as_json: AsJson = False) -> None:
    """List the databases that a swap replaced, with their sizes.

    Changes nothing.

    Example: lastgood kept list
    """
    there = keeping.look(opened(config))
    if as_json:
        show(there, tuple[KeptDatabase, ...])
        return
    for line in table(kept_rows(there)):
        out(line)
    if not there:
        out("no database is kept")


@kept.command("release")
def kept_release(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A kept database, as `kept list` names it.")],
    config: ConfigOption = Path(CONFIG_FILE),
    database: Annotated[
        str | None, typer.Option("--database", help="The same name once more: the database that may be dropped.")
    ] = None,
) -> None:
    """Let a kept database go: it is dropped.

    Writes the journal, and drops a database that a swap replaced, for good: that swap cannot be taken back then. Never
    the live one, nor one of which something waits in the quarantine. It asks for the database's name.

    Example: lastgood kept release hypercode_bad_9c1e77
    """
    rooms = opened(config)
    found = keeping.find(rooms, name)
    for line in table(kept_rows((found,))):
        say(line)
    if (typed := _typed(name, database)) != name:
        raise Refused(f"the database is {name!r}, not {typed!r}", hint=f"lastgood kept release {name}")
    keeping.release(rooms, name)
    out(f"{name} is dropped")


@quarantine.command("list")
def quarantine_list(config: ConfigOption = Path(CONFIG_FILE), as_json: AsJson = False) -> None:
    """List what did not fit the old schema, and what became of it.

    Changes nothing.

    Example: lastgood quarantine list
    """
    known = deciding.look(opened(config))
    if as_json:
        show(known, tuple[deciding.Decided, ...])
        return
    for line in table(quarantine_rows(known)):
        out(line)
    waiting = sum(one.decision.state in (EntryState.WAITING, EntryState.UNKNOWN) for one in known)
    out(f"{waiting} of {len(known)} wait for a person" if known else "the quarantine is empty")


@quarantine.command("show")
def quarantine_show(entry: EntryArgument, config: ConfigOption = Path(CONFIG_FILE), as_json: AsJson = False) -> None:
    """Show an entry: why it waits, and each row of it.

    Changes nothing.

    Example: lastgood quarantine show 1832-0/27E5A58
    """
    found = deciding.find(opened(config), entry)
    if as_json:
        show(found, deciding.Decided)
        return
    for line in quarantine_lines(found):
        out(line)


@quarantine.command("requeue")
def quarantine_requeue(entry: EntryArgument, config: ConfigOption = Path(CONFIG_FILE), yes: SaidYes = False) -> None:
    """Put an entry into the live database, whole or not at all.

    Changes the live database in one transaction: only what the entry changed, where that is still as it found it.

    Example: lastgood quarantine requeue 1832-0/27E5A58
    """
    rooms = opened(config)
    for line in quarantine_lines(deciding.find(rooms, entry)):
        say(line)
    if not confirmed("Put it into the live database?", yes=yes):
        raise Refused("nobody said yes, and nothing changed", hint=f"lastgood quarantine requeue {entry} --yes")
    for line in deciding.requeue(rooms, entry):
        out(clean(line))


@quarantine.command("discard")
def quarantine_discard(entry: EntryArgument, config: ConfigOption = Path(CONFIG_FILE), why: Why = "") -> None:
    """Note that an entry stays out, and why.

    Writes the journal; the entry itself is kept.

    Example: lastgood quarantine discard 1832-0/27E5A58 -m 'a test order'
    """
    out(clean(deciding.discard(opened(config), entry, why)))


@audit.command("verify")
def audit_verify(config: ConfigOption = Path(CONFIG_FILE)) -> None:
    """Find an edited, missing or reordered record of the journal.

    Changes nothing.

    Example: lastgood audit verify
    """
    rooms = opened(config)
    wrong = rooms.memory.journal.verify()
    for line in wrong:
        out(line)
    if wrong:
        raise typer.Exit(NEEDS_PERSON)
    out(f"the chain holds: {rooms.memory.history().last_seq} records")


@app.command()
def demo(
    fault: Annotated[
        str, typer.Option("--fault", help="How the new release fails; `good` for one that does not.")
    ] = "bad-migration",
    engine: Annotated[
        str,
        typer.Option(
            "--engine", help="process: nothing but pip. compose: a Docker engine. edge: the same, behind HAProxy."
        ),
    ] = "process",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running; print address and login.")] = False,
    rate: Annotated[float, typer.Option("--rate", help="Requests per second.")] = 20.0,
    clean_up: Annotated[Path | None, typer.Option("--clean", help="End a kept demo in this directory.")] = None,
) -> None:
    """See a bad release go live under traffic and be put back.

    Writes ./demo-XXXX, and removes it at the end unless --keep.

    Example: lastgood demo --fault errors
    """
    from lastgood.cli.demo import clean, run_demo  # noqa: PLC0415 # an install without the demo extra has not what it needs

    if clean_up is not None:
        raise typer.Exit(clean(clean_up))
    raise typer.Exit(run_demo(fault=fault, engine=engine, json_file=json_file, keep=keep, rate=rate))
