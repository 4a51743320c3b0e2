"""A restore point is what was proved, or it is refused: whatever bit flips, wherever it is cut, whatever else lies in
its place."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from lastgood.core.config import PostgresConfig
from lastgood.core.errors import Refused
from lastgood.core.plan import CatchUp, ExportWrites, ReplayWrites, SwapDatabase, TakeRestorePoint
from lastgood.core.release import Release, RestorePoint
from lastgood.targets.postgres import restore_point as points
from tests.contract.rigs import postgres_embedded
from tests.contract.rigs.postgres_world import STATEMENTS, PostgresWorld, step

TIMES: Final = 1000
V1: Final = Release(
    id="v1", recorded_at=datetime(2026, 1, 1, tzinfo=UTC), engine="process", services=(), statements=STATEMENTS
)
ID: Final = "rp-d2"
ERROR_PAGE: Final = b"<!DOCTYPE html><html><title>502 Bad Gateway</title><h1>502 Bad Gateway</h1></html>\n"


@dataclass(slots=True)
class Kept:
    """A restore point, rp-d2, that was taken before a migration, and an older one; each as the journal has it."""

    world: PostgresWorld
    point: RestorePoint
    older: RestorePoint

    @property
    def folder(self) -> Path:
        return self.world.folder / "restore-points"

    @property
    def manifest(self) -> Path:
        return self.folder / f"{ID}.json"

    @property
    def dump(self) -> Path:
        return self.folder / f"{ID}.dump"

    def restore(self, whole: Path) -> None:
        """Put everything back as it was."""
        shutil.rmtree(self.folder)
        shutil.copytree(whole, self.folder)


def taken(world: PostgresWorld, restore_point: str) -> RestorePoint:
    world.target.apply(step("take", TakeRestorePoint(restore_point=restore_point)))
    return world.target.restore_point(restore_point)


@pytest.fixture(scope="module")
def proved(postgres: PostgresConfig, tmp_path_factory: pytest.TempPathFactory) -> Generator[Kept]:
    """One for all tests here: each leaves it as it was."""
    with postgres_embedded.database(tmp_path_factory.mktemp("proved"), postgres) as world:
        older = taken(world, "rp-d1")
        world.sql("INSERT INTO orders (customer, total) VALUES (1, 700)")
        point = taken(world, ID)
        world.migrate()
        yield Kept(world=world, point=point, older=older)


@pytest.fixture(scope="module")
def whole(proved: Kept, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is kept."""
    return Path(shutil.copytree(proved.folder, tmp_path_factory.mktemp("whole") / "restore-points"))


@pytest.fixture(scope="module")
def elsewhere(postgres: PostgresConfig, tmp_path_factory: pytest.TempPathFactory) -> Generator[Kept]:
    """The same of another database."""
    with postgres_embedded.database(tmp_path_factory.mktemp("elsewhere"), postgres) as world:
        yield Kept(world=world, point=taken(world, ID), older=taken(world, "rp-d3"))


@pytest.fixture
def kept(proved: Kept, whole: Path) -> Iterator[Kept]:
    yield proved
    proved.restore(whole)


def as_it_is(kept: Kept) -> tuple[object, ...]:
    """What must be the same after a refusal."""
    facts = kept.world.target.observe()
    live = kept.world.sql("SELECT xmin::text, id, total FROM orders ORDER BY id")
    files = {p.name: (p.lstat().st_mtime_ns, p.lstat().st_ino) for p in kept.folder.iterdir()}
    return facts.databases, facts.fingerprint, live, files


def refusals(kept: Kept, point: RestorePoint) -> list[str]:
    """What is said wherever a person or a plan would rely on the restore point; the empty text where it is accepted."""
    said: list[str] = []
    for use in (
        lambda: kept.world.target.prove(point, deadline_s=60),
        lambda: kept.world.target.inspect(since=point, target=V1),
    ):
        try:
            use()
        except Refused as error:
            said.append(error.message)
        else:
            said.append("")
    return said


# --- bits and cuts ---------------------------------------------------------------------------------------------------


def read_whole(kept: Kept) -> None:
    """Read every byte of it. Raises Refused."""
    points.as_journaled(kept.folder, kept.point)
    points.dump_as_proved(kept.folder, kept.point)


def accepted(kept: Kept, path: Path, damaged: Iterator[bytes]) -> list[bytes]:
    """The contents with which it is still taken for what was proved, and refusals that do not say which file it is."""
    found: list[bytes] = []
    for content in damaged:
        path.write_bytes(content)
        try:
            read_whole(kept)
        except Refused as error:
            found += [] if str(path) in error.message else [error.message.encode()]
        else:
            found.append(content)
    return found


def flipped(content: bytes) -> Iterator[bytes]:
    for bit in random.Random(1).sample(range(len(content) * 8), TIMES):  # noqa: S311 # which bits, is no secret
        at, mask = bit // 8, 1 << bit % 8
        yield content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]


def cut(content: bytes) -> Iterator[bytes]:
    for length in random.Random(2).sample(range(len(content)), TIMES):  # noqa: S311 # likewise
        yield content[:length]


@pytest.mark.parametrize("damage", [flipped, cut], ids=["a-flipped-bit", "a-cut"])
@pytest.mark.parametrize("file", ["manifest", "dump"])
def test_of_a_thousand_none_is_accepted(kept: Kept, file: str, damage: Callable[[bytes], Iterator[bytes]]) -> None:
    path: Path = getattr(kept, file)
    content = path.read_bytes()
    damaged = list(damage(content))
    assert len(set(damaged) - {content}) == TIMES
    assert accepted(kept, path, iter(damaged)) == []
    path.write_bytes(content)
    read_whole(kept)


def test_what_is_whole_is_accepted(kept: Kept) -> None:
    assert refusals(kept, kept.point) == ["", ""]


# --- other things in its place ---------------------------------------------------------------------------------------


def edited(kept: Kept, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a word of the manifest, as a person with an editor would."""
    told = json.loads(kept.manifest.read_text())
    change(told)
    kept.manifest.write_text(json.dumps(told, indent=1))


def point_edited(**changed: object) -> Callable[[Kept, Kept], None]:
    return lambda kept, _: edited(kept, lambda told: told["point"].update(changed))


def content(path: str, of: Callable[[bytes], bytes]) -> Callable[[Kept, Kept], None]:
    def put(kept: Kept, _: Kept) -> None:
        file: Path = getattr(kept, path)
        file.write_bytes(of(file.read_bytes()))

    return put


def instead(path: str, make: Callable[[Path, Path], object]) -> Callable[[Kept, Kept], None]:
    """make: is given the free place, and where what was there is now."""

    def put(kept: Kept, _: Kept) -> None:
        file: Path = getattr(kept, path)
        aside = file.with_name("aside")
        file.rename(aside)
        make(file, aside)

    return put


def mode(path: str, bits: int) -> Callable[[Kept, Kept], None]:
    return lambda kept, _: getattr(kept, path).chmod(bits)


def copied(kept: Kept, source: Path, to: str) -> None:
    shutil.copy(source, kept.folder / to)


def swap_dumps(kept: Kept, _: Kept) -> None:
    one, other = kept.dump.read_bytes(), (kept.folder / "rp-d1.dump").read_bytes()
    kept.dump.write_bytes(other)
    (kept.folder / "rp-d1.dump").write_bytes(one)


def older_under_this_name(kept: Kept, _: Kept) -> None:
    """Both files of an older one, and its manifest says that it is this one."""
    older = (kept.folder / "rp-d1.json").read_text()
    kept.manifest.write_text(older.replace("rp-d1", ID))
    copied(kept, kept.folder / "rp-d1.dump", f"{ID}.dump")


def forged_dump(kept: Kept, _: Kept) -> None:
    """The manifest is made to fit another dump."""
    kept.dump.write_bytes(ERROR_PAGE)
    digest = hashlib.sha256(ERROR_PAGE).hexdigest()
    edited(kept, lambda told: told["point"].update(sha256=digest, size_bytes=len(ERROR_PAGE)))


def exchange_tables(told: dict[str, Any]) -> None:
    one, other = told["tables"][:2]
    one["oid"], other["oid"] = other["oid"], one["oid"]


def exchange_columns(told: dict[str, Any]) -> None:
    columns = told["tables"][0]["columns"]
    first, second, *_ = columns
    columns[first], columns[second] = columns[second], columns[first]


def another_schema(told: dict[str, Any]) -> None:
    told["schema"]["orders.note"] = "column text"
    lines = "\n".join(f"{name}\t{definition}" for name, definition in sorted(told["schema"].items()))
    told["point"]["fingerprint"] = hashlib.sha256(lines.encode()).hexdigest()


def dumped(kept: Kept, *words: str) -> None:
    """What pg_dump makes of the database as it is now."""
    other = kept.folder / "other"
    kept.world.target._server.tools.dump(kept.world.config.name, other, session="test", deadline_s=60)
    other.replace(kept.dump)


def schema_only(kept: Kept, _: Kept) -> None:
    other = kept.folder / "other"
    clone = kept.point.clone
    kept.world.target._server.tools.dump(clone, other, session="test", deadline_s=60, schema_only=True)
    other.replace(kept.dump)


LATER_BY_A_YEAR: Final = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=365)).isoformat()
IN_THE_MANIFEST: dict[str, Callable[[Kept, Kept], object]] = {
    "gone": lambda kept, _: kept.manifest.unlink(),
    "empty": content("manifest", lambda _: b""),
    "an error page": content("manifest", lambda _: ERROR_PAGE),
    "an empty gzip": content("manifest", lambda _: gzip.compress(b"")),
    "compressed": content("manifest", gzip.compress),
    "half": content("manifest", lambda whole: whole[: len(whole) // 2]),
    "without its last byte": content("manifest", lambda whole: whole[:-1]),
    "with a byte more": content("manifest", lambda whole: whole + b"\n"),
    "twice": content("manifest", lambda whole: whole + whole),
    "zeros": content("manifest", lambda whole: bytes(len(whole))),
    "not text": content("manifest", lambda whole: b"\xff\xfe" + whole),
    "a key that is there twice": content("manifest", lambda whole: whole.replace(b"{", b'{"slot": "x",', 1)),
    "the same values in other words": content("manifest", lambda whole: json.dumps(json.loads(whole)).encode()),
    "a manifest of another kind": content("manifest", lambda _: b'{"name": "rp-d2", "path": "rp-d2.dump"}'),
    "a folder": instead("manifest", lambda free, _: free.mkdir()),
    "a link to where it is now": instead("manifest", lambda free, aside: free.symlink_to(aside)),
    "a link to nowhere": instead("manifest", lambda free, _: free.symlink_to("nowhere")),
    "a pipe": instead("manifest", lambda free, _: os.mkfifo(free, 0o600)),
    "readable for others": mode("manifest", 0o644),
    "writable for the group": mode("manifest", 0o620),
    "of an older one": lambda kept, _: copied(kept, kept.folder / "rp-d1.json", f"{ID}.json"),
    "of another database": lambda kept, other: copied(kept, other.manifest, f"{ID}.json"),
    "an older one under this name, dump and all": older_under_this_name,
    "made to fit another dump": forged_dump,
    "another time": point_edited(taken_at=LATER_BY_A_YEAR),
    "another snapshot": point_edited(snapshot="3:3:"),
    "another database": point_edited(database="billing"),
    "another clone": point_edited(clone="postgres"),
    "another dump": point_edited(path="rp-d1.dump"),
    "a dump outside of the folder": point_edited(path="../../etc/passwd"),
    "another size": point_edited(size_bytes=1),
    "never proved": point_edited(proved_at=None),
    "not captured": point_edited(captured=False),
    "other rows": lambda kept, _: edited(kept, lambda told: told["point"]["rows"][0].__setitem__(1, 7)),
    "another slot": lambda kept, _: edited(kept, lambda told: told.update(slot="lastgood_other")),
    "another moment of the clone": lambda kept, _: edited(kept, lambda told: told.update(clone_snapshot="3:3:")),
    "tables exchanged": lambda kept, _: edited(kept, exchange_tables),
    "columns exchanged": lambda kept, _: edited(kept, exchange_columns),
    "no sequences": lambda kept, _: edited(kept, lambda told: told.update(sequences=[])),
    "another schema and its fingerprint": lambda kept, _: edited(kept, another_schema),
    "without what it is of": lambda kept, _: edited(kept, lambda told: told.update(identity=None)),
}
IN_THE_DUMP: dict[str, Callable[[Kept, Kept], object]] = {
    "gone": lambda kept, _: kept.dump.unlink(),
    "empty": content("dump", lambda _: b""),
    "an error page": content("dump", lambda _: ERROR_PAGE),
    "an empty gzip": content("dump", lambda _: gzip.compress(b"")),
    "compressed": content("dump", gzip.compress),
    "half": content("dump", lambda whole: whole[: len(whole) // 2]),
    "without its last byte": content("dump", lambda whole: whole[:-1]),
    "with a byte more": content("dump", lambda whole: whole + b"\0"),
    "zeros": content("dump", lambda whole: bytes(len(whole))),
    "the manifest": lambda kept, _: copied(kept, kept.manifest, f"{ID}.dump"),
    "a folder": instead("dump", lambda free, _: free.mkdir()),
    "a link to where it is now": instead("dump", lambda free, aside: free.symlink_to(aside)),
    "a link to nowhere": instead("dump", lambda free, _: free.symlink_to("nowhere")),
    "a pipe": instead("dump", lambda free, _: os.mkfifo(free, 0o600)),
    "readable for others": mode("dump", 0o640),
    "writable for everybody": mode("dump", 0o602),
    "of an older one": lambda kept, _: copied(kept, kept.folder / "rp-d1.dump", f"{ID}.dump"),
    "exchanged with an older one": swap_dumps,
    "of another database": lambda kept, other: copied(kept, other.dump, f"{ID}.dump"),
    "of today's schema": lambda kept, _: dumped(kept),
    "without rows": schema_only,
}


def places() -> Iterator[Any]:
    for file, wrongs in (("json", IN_THE_MANIFEST), ("dump", IN_THE_DUMP)):
        for what, put in wrongs.items():
            yield pytest.param(file, put, id=f"{file}-{what.replace(' ', '-')}")


def test_there_are_fifty_wrong_ones() -> None:
    assert len(list(places())) >= 50


@pytest.mark.parametrize("file,put", list(places()))
def test_a_wrong_one_is_refused_with_the_place_and_changes_nothing(
    kept: Kept, elsewhere: Kept, file: str, put: Callable[[Kept, Kept], object]
) -> None:
    put(kept, elsewhere)
    before = as_it_is(kept)
    for said in refusals(kept, kept.point):
        assert f"{ID}.{file}" in said
        assert "expected" in said
    assert as_it_is(kept) == before


@pytest.mark.parametrize("put", IN_THE_MANIFEST.values(), ids=IN_THE_MANIFEST)
def test_no_step_is_taken_with_a_wrong_manifest(
    kept: Kept, elsewhere: Kept, put: Callable[[Kept, Kept], object]
) -> None:
    """Also where a person approved the plan while it was the right one."""
    put(kept, elsewhere)
    before = as_it_is(kept)
    name, manifest, world = kept.world.config.name, kept.point.manifest, kept.world
    bound: dict[str, Any] = {"restore_point": ID, "manifest": manifest, "kept_as": name}
    for action in (
        CatchUp(replay="r", restore_point=ID, manifest=manifest),
        ExportWrites(export="e", **bound),
        ReplayWrites(replay="r", by_rows=True, **bound),
        ReplayWrites(replay="r", by_rows=False, **bound),
        SwapDatabase(swap="s", clone=kept.point.clone, **bound),
    ):
        with pytest.raises(Refused, match="expected") as refused:
            world.target.apply(step("use", action))
        assert f"{ID}.json" in refused.value.message
    assert as_it_is(kept) == before


# --- what is of something else ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed,said",
    [
        pytest.param({"system": "1"}, "is of another server: 1, expected", id="another-cluster"),
        pytest.param({"major": 9}, "is of another version of PostgreSQL: 9, expected", id="another-version"),
        pytest.param({"oid": 1}, "is of another database than the one that is called", id="made-anew"),
    ],
)
def test_one_of_another_server_or_database_is_refused_although_the_journal_knows_it(
    kept: Kept, changed: dict[str, object], said: str
) -> None:
    """As after the state folder was carried to another host, or the server was upgraded under it."""
    edited(kept, lambda told: told["identity"].update(changed))
    known = points.first_read(kept.folder, ID)
    assert known.manifest != kept.point.manifest
    before = as_it_is(kept)
    assert [text for text in refusals(kept, known) if said not in text] == []
    assert as_it_is(kept) == before


@pytest.mark.parametrize(
    "changed", [{"taken_at": LATER_BY_A_YEAR}, {"snapshot": "3:3:"}, {"captured": False}, {"size_bytes": 1}], ids=str
)
def test_one_of_a_journal_that_is_older_than_its_hash_is_compared_word_by_word(
    kept: Kept, changed: dict[str, object]
) -> None:
    old = replace(kept.point, manifest="")
    assert refusals(kept, old) == ["", ""]
    edited(kept, lambda told: told["point"].update(changed))
    for said in refusals(kept, old):
        assert f"{ID}.json has {next(iter(changed))}" in said
        assert "as the journal has it" in said


def test_what_is_not_in_order_is_not_among_the_restore_points(kept: Kept) -> None:
    assert kept.world.target.observe().restore_points == {ID, "rp-d1"}
    copied(kept, kept.folder / "rp-d1.json", f"{ID}.json")
    copied(kept, kept.folder / "rp-d1.json", "rp-d9.json")
    facts = kept.world.target.observe()
    assert facts.restore_points == {"rp-d1"}
    assert facts.manifests == (("rp-d1", kept.older.manifest),)


@pytest.mark.full
def test_old_ones_that_say_they_are_young_do_not_make_the_new_one_go(embedded: PostgresWorld) -> None:
    for name in ("rp-d1", "rp-d2"):
        point = taken(embedded, name)
        kept = Kept(world=embedded, point=point, older=point)
        path = kept.folder / f"{name}.json"
        path.write_text(path.read_text().replace(f"{point.taken_at.year}-", "9999-"))
    embedded.target.prove(taken(embedded, "rp-d3"), deadline_s=60)


def test_the_room_for_dump_and_clone_is_seen_and_one_filesystem_is_counted_once(embedded: PostgresWorld) -> None:
    room = embedded.target.room()
    assert [where for where, _ in room] in (
        ["restore-points and the server's data"],
        ["restore-points", "the server's volume"],
    )
    assert all(free > 0 for _, free in room)
