"""What pgBackRest says of its backups, which of them is chosen, and the words that it is given."""

from __future__ import annotations

import json
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Final

import pytest

from lastgood.core.config import PgBackRestConfig, PostgresConfig
from lastgood.core.errors import Refused, Retryable
from lastgood.core.release import LogPoint, RestorePoint
from lastgood.targets.postgres import shelf
from lastgood.targets.postgres.capture import Captures
from lastgood.targets.postgres.pgbackrest import Backup, PgBackRest, Stanza, backup_for, position, read_info, target
from lastgood.targets.postgres.recovery import by_hand, recover
from lastgood.targets.postgres.server import Server
from lastgood.testing.world import SteppedClock

T0: Final = datetime(2026, 11, 27, 14, 0, tzinfo=UTC)


def said(**changes: object) -> str:
    """What pgBackRest 2.45 said of one stanza with one backup."""
    stanza = {
        "archive": [
            {
                "database": {"id": 1, "repo-key": 1},
                "id": "15-1",
                "max": "000000010000000000000004",
                "min": "000000010000000000000001",
            }
        ],
        "backup": [backup("20261127-140000F", T0)],
        "cipher": "none",
        "db": [{"id": 1, "repo-key": 1, "system-id": 7577220012345678901, "version": "15"}],
        "name": "main",
        "repo": [{"cipher": "none", "key": 1, "status": {"code": 0, "message": "ok"}}],
        "status": {"code": 0, "lock": {"backup": {"held": False}}, "message": "ok"},
    }
    return json.dumps([stanza | changes])


def backup(label: str, ended: datetime, *, stop: str = "0/2000138", **changes: object) -> dict[str, object]:
    return {
        "archive": {"start": "000000010000000000000002", "stop": "000000010000000000000002"},
        "backrest": {"format": 5, "version": "2.45"},
        "database": {"id": 1, "repo-key": 1},
        "error": False,
        "info": {
            "delta": 23206947,
            "repository": {"delta": 2811045, "size": 2811045},
            "size": 23206947,
        },
        "label": label,
        "lsn": {"start": "0/2000028", "stop": stop},
        "prior": None,
        "reference": None,
        "timestamp": {"start": int(ended.timestamp()) - 2, "stop": int(ended.timestamp())},
        "type": "full",
    } | changes


def test_a_stanza_is_read() -> None:
    assert read_info(said(), "main") == Stanza(
        name="main",
        system="7577220012345678901",
        backups=(
            Backup(
                label="20261127-140000F",
                ended_at=T0,
                timeline=1,
                begins=0x2000028,
                lsn=0x2000138,
                size_bytes=23206947,
            ),
        ),
        archived="000000010000000000000004",
    )


def test_what_is_of_the_server_before_an_upgrade_or_has_faults_is_no_backup() -> None:
    later = T0 + timedelta(hours=1)
    backups = [
        backup("of-before", T0, database={"id": 0, "repo-key": 1}),
        backup("with-faults", T0, error=True),
        backup("newer", later),
        backup("older", T0),
    ]
    assert [one.label for one in read_info(said(backup=backups), "main").backups] == ["older", "newer"]


def test_an_archive_that_has_nothing_yet_is_read() -> None:
    nothing = [{"database": {"id": 1, "repo-key": 1}, "id": "15-1", "max": None, "min": None}]
    assert read_info(said(archive=nothing), "main").archived == ""
    assert read_info(said(archive=[], backup=[]), "main").backups == ()


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        said(name="other"),
        said(db=[], backup=[], archive=[], status={"code": 1, "message": "missing stanza path"}),
        said(db=[], backup=[], archive=[], status={"code": 3, "message": "missing stanza data"}),
    ],
)
def test_a_stanza_that_is_not_known_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="pgBackRest knows no stanza main") as refused:
        read_info(text, "main")
    assert refused.value.hint == "pgbackrest --stanza=main stanza-create"


def test_backups_that_cannot_be_read_are_said_with_what_keeps_it_from_them() -> None:
    said_of_it = "[PathOpenError] unable to list file info for path '/repo/backup': [13] Permission denied"
    repo = [{"cipher": "none", "key": 1, "status": {"code": 99, "message": said_of_it}}]
    text = said(db=[], backup=[], archive=[], repo=repo, status={"code": 99, "message": "other"})
    with pytest.raises(Refused, match=r"pgBackRest cannot read stanza main: .*Permission denied"):
        read_info(text, "main")


@pytest.mark.parametrize("text", ["", "ERROR: [032]", "{}", said(backup=[{"label": 3}])])
def test_what_is_no_answer_is_refused(text: str) -> None:
    with pytest.raises(Refused, match=r"expected what version 2\.45 says"):
        read_info(text, "main")


THREE: Final = Stanza(
    name="main",
    system="7",
    backups=tuple(
        Backup(
            label=f"b{hour}",
            ended_at=T0 + timedelta(hours=hour),
            timeline=1,
            begins=(hour << 24) - 1,
            lsn=hour << 24,
            size_bytes=1,
        )
        for hour in (1, 2, 3)
    ),
    archived="",
)


@pytest.mark.parametrize(
    "to,chosen",
    [
        (LogPoint(at=T0 + timedelta(hours=2, seconds=1)), "b2"),
        (LogPoint(at=T0 + timedelta(hours=2, milliseconds=900)), "b1"),  # its end is known to the second
        (LogPoint(at=T0 + timedelta(days=9)), "b3"),
        (LogPoint(at=T0, name="x", lsn="0/2000000"), "b2"),  # a clock that was set back says nothing
        (LogPoint(at=T0 + timedelta(hours=3), name="x", lsn="0/2FFFFFF"), "b2"),
    ],
)
def test_the_newest_backup_from_before_a_place_is_chosen(to: LogPoint, chosen: str) -> None:
    assert backup_for(THREE, to).label == chosen


@pytest.mark.parametrize("to", [LogPoint(at=T0), LogPoint(at=T0 + timedelta(days=1), name="x", lsn="0/FFFFFF")])
def test_what_is_older_than_the_first_backup_is_refused_with_the_first_moment(to: LogPoint) -> None:
    with pytest.raises(Refused, match=r"expected 2026-11-27T15:00:01\+00:00 or later") as refused:
        backup_for(THREE, to)
    assert refused.value.hint == "lastgood restore-points recover --at 2026-11-27T15:00:01Z"


def branched(label: str, hour: int, timeline: str, begins: str, ends: str) -> dict[str, object]:
    segment = f"{timeline}0000000000000002"
    return backup(
        label,
        T0 + timedelta(hours=hour),
        lsn={"start": begins, "stop": ends},
        archive={"start": segment, "stop": segment},
    )


@pytest.mark.parametrize(
    "to",
    [LogPoint(at=T0 + timedelta(hours=2, minutes=30)), LogPoint(at=T0 + timedelta(hours=3), name="x", lsn="0/2F00000")],
)
def test_a_backup_of_what_was_written_before_the_server_itself_was_brought_back_is_none(to: LogPoint) -> None:
    """It went on from before that one's end, on another timeline, to which nothing leads from there."""
    backups = [
        branched("whole", 1, "00000001", "0/1000028", "0/1000138"),
        branched("on-the-branch-that-was-left", 2, "00000001", "0/2000028", "0/2000138"),
        branched("of-today", 4, "0000000A", "0/1800028", "0/3000138"),
    ]
    assert backup_for(read_info(said(backup=backups), "main"), to).label == "whole"


def test_a_backup_from_before_the_server_was_brought_back_leads_to_both_timelines() -> None:
    backups = [
        branched("older", 1, "00000001", "0/1000028", "0/1000138"),
        branched("newer", 4, "00000002", "0/1800028", "0/1800138"),
    ]
    stanza = read_info(said(backup=backups), "main")
    assert backup_for(stanza, LogPoint(at=T0 + timedelta(hours=2))).label == "older"
    assert backup_for(stanza, LogPoint(at=T0 + timedelta(hours=5))).label == "newer"


def test_a_stanza_without_a_backup_is_refused() -> None:
    with pytest.raises(Refused, match="stanza main has no backup") as refused:
        backup_for(Stanza(name="main", system="7", backups=(), archived=""), LogPoint(at=T0))
    assert refused.value.hint == "pgbackrest --stanza=main backup"


def test_a_place_in_the_log_is_a_number() -> None:
    assert position("1/2A") == (1 << 32) + 42


def test_the_words_name_a_place_by_its_name_or_its_time() -> None:
    by_name = target(LogPoint(at=T0, name="lastgood_rp-d2_a1", lsn="0/3"))
    assert by_name == ["--type=name", "--target=lastgood_rp-d2_a1", "--target-action=promote"]
    by_time = target(LogPoint(at=T0 + timedelta(microseconds=5)))
    assert by_time == ["--type=time", "--target=2026-11-27 14:00:00.000005+00:00", "--target-action=promote"]


def test_in_a_container_everything_runs_as_the_owner_of_the_data() -> None:
    config = PgBackRestConfig(stanza="main", config="/etc/pgbackrest/main.conf")
    tool = PgBackRest(config=config, container="hyper-postgres")
    assert tool.as_owner(tool.words("info")) == [
        *("docker", "exec", "--interactive", "--user", "postgres", "hyper-postgres"),
        *("pgbackrest", "--config=/etc/pgbackrest/main.conf", "--stanza=main", "--log-level-file=off", "info"),
    ]


def test_who_is_root_on_this_host_is_the_owner_of_the_data_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = PgBackRest(config=PgBackRestConfig(stanza="main", user="root"), container=None)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert tool.as_owner(["ls"]) == ["setpriv", "--reuid=0", "--regid=0", "--init-groups", "--", "ls"]
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert tool.as_owner(["ls"]) == ["ls"]


def test_a_user_that_this_host_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    tool = PgBackRest(config=PgBackRestConfig(stanza="main", user="nobody-of-that-name"), container=None)
    with pytest.raises(Refused, match="this host has no user nobody-of-that-name"):
        tool.as_owner(["ls"])


def test_a_container_that_is_lost_is_brought_back_in_another_one_of_its_image() -> None:
    """What it has cannot be asked; of a moment pgBackRest finds the backup by itself, of a name it does not."""
    server = Server(PostgresConfig(name="app", user="app", container="hyper-postgres"))
    tool = PgBackRest(config=PgBackRestConfig(stanza="main"), container="hyper-postgres")
    assert by_hand(server, tool, LogPoint(at=T0, name="lastgood_rp-d2_a1", lsn="0/3")) == (
        "docker run --rm --volumes-from hyper-postgres --user postgres "
        "$(docker inspect --format '{{.Config.Image}}' hyper-postgres) "
        "pgbackrest --stanza=main --log-level-file=off --delta --type=time '--target=2026-11-27 14:00:00+00:00' "
        "--target-action=promote restore"
    )


def test_where_pgbackrest_does_not_say_what_it_has_it_finds_the_backup_of_a_moment_by_itself() -> None:
    server = Server(PostgresConfig(name="app", user="app"))
    tool = PgBackRest(config=PgBackRestConfig(stanza="main", config="/nowhere/pgbackrest.conf"), container=None)
    typed = by_hand(server, tool, LogPoint(at=T0, name="lastgood_rp-d2_a1", lsn="0/3"))
    assert "--set" not in typed
    assert "--delta --type=time '--target=2026-11-27 14:00:00+00:00' --target-action=promote restore" in typed


TOO_MANY: Final = b"SFATAL\0VFATAL\0C53300\0Msorry, too many clients already\0\0"


@contextmanager
def busy(folder: Path) -> Generator[list[int]]:
    """A server that lets nobody in any more; yields how often it was asked, as a list of that length."""
    asked: list[int] = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / ".s.PGSQL.5432"))
        listening.listen()

        def refuse() -> None:
            with suppress(OSError):  # it was shut
                while True:
                    with listening.accept()[0] as client:
                        if client.recv(1000):
                            asked.append(1)
                            client.sendall(b"E" + (len(TOO_MANY) + 4).to_bytes(4) + TOO_MANY)

        thread = Thread(target=refuse)
        thread.start()
        try:
            yield asked
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def recovered(folder: Path) -> RestorePoint:
    server = Server(PostgresConfig(name="app", user="app", host=str(folder)))
    return recover(
        server,
        PgBackRestConfig(stanza="main", config="/nowhere/pgbackrest.conf"),
        folder,
        LogPoint(at=T0),
        owner="x",
        expected={},
        known=(),
        deadline_s=9.0,
        clock=SteppedClock(),
        progress=lambda _: None,
    )


def test_a_server_that_is_busy_is_not_taken_for_lost(tmp_path: Path) -> None:
    with busy(tmp_path) as asked, pytest.raises(Retryable, match="too many clients already") as refused:
        recovered(tmp_path)
    assert "--delta" not in f"{refused.value.message} {refused.value.hint}"
    assert len(asked) == 3


def test_where_nothing_listens_a_person_is_told_how_all_of_it_comes_back(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="with every one of its databases") as refused:
        recovered(tmp_path)
    assert "--delta" in refused.value.hint


def test_a_capture_is_taken_back_in_a_copy_by_the_numbers_of_the_tables(tmp_path: Path) -> None:
    server = Server(PostgresConfig(name="app", user="app"))
    shelf.write(tmp_path / "lastgood_rp_d2.json", shelf.KEPT_IDENTITIES, {1: "USING INDEX x", 2: "FULL", 3: "NOTHING"})
    published = [("lastgood_rp_d2", number, "public", f"t{number}") for number in (1, 2, 4)]
    said = Captures(server, tmp_path).uncovering([*published, ("lastgood_old", None, None, None)])
    assert said == (
        'ALTER TABLE ONLY "public"."t1" REPLICA IDENTITY USING INDEX x; '
        'ALTER TABLE ONLY "public"."t4" REPLICA IDENTITY DEFAULT; '
        "DROP SCHEMA IF EXISTS lastgood_marks CASCADE; "
        'DROP PUBLICATION "lastgood_old"; DROP PUBLICATION "lastgood_rp_d2";'
    )
    assert Captures(server, tmp_path).uncovering([]) == ""
