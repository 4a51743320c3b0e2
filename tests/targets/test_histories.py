"""What the files of a release say of its migrations, read and not run."""

from __future__ import annotations

from pathlib import Path

import pytest

from lastgood.core.config import MigrationsConfig
from lastgood.core.errors import ConfigError
from lastgood.core.release import Down
from lastgood.targets.postgres.histories import downs, filled, shipped

ALEMBIC = MigrationsConfig(alembic="versions", command=("alembic", "upgrade", "head"))
PRISMA = MigrationsConfig(prisma="prisma", command=("npx", "prisma"))
GENERATED = '''"""add a column

Revision ID: b2
Revises: a1
"""
from typing import Sequence, Union

import nowhere_to_be_found
from alembic import op

revision: str = "b2"
down_revision: Union[str, Sequence[str], None] = "a1"
branch_labels = depends_on = None


def upgrade() -> None:
    op.execute("SELECT 1")
'''


def heads(folder: Path, **scripts: str) -> tuple[str, ...]:
    (folder / "versions").mkdir()
    (folder / "versions" / "__init__.py").touch()
    for name, text in scripts.items():
        (folder / "versions" / f"{name}.py").write_text(text)
    return shipped(ALEMBIC, folder)


def script(revision: str, before: str) -> str:
    return f"revision = {revision!r}\ndown_revision = {before}\n"


def test_of_scripts_the_heads_count(tmp_path: Path) -> None:
    assert heads(tmp_path, first=script("a1", "None"), second=GENERATED) == ("b2",)


@pytest.mark.parametrize("both", ["('b2', 'b3')", "['b2', 'b3']"])
def test_branches_have_a_head_each_until_they_are_merged(tmp_path: Path, both: str) -> None:
    branches = {"a": script("a1", "None"), "b": script("b2", "'a1'"), "c": script("b3", "'a1'")}
    (tmp_path / "before").mkdir()
    assert heads(tmp_path / "before", **branches) == ("b2", "b3")
    (tmp_path / "after").mkdir()
    assert heads(tmp_path / "after", **branches, d=script("c4", both)) == ("c4",)


def test_no_script_is_no_migration(tmp_path: Path) -> None:
    assert heads(tmp_path) == ()


@pytest.mark.parametrize(
    "text, said",
    [
        (script("b2", "'gone'"), "no script has revision gone"),
        ("x = 1\n", "x.py: expected a script of Alembic, with revision and down_revision"),
        ("revision = 'b2'\n", "x.py: expected a script of Alembic, with revision and down_revision"),
        (
            "revision = make()\ndown_revision = None\n",
            "x.py: expected a script of Alembic: line 1: expected None, a revision",
        ),
        ("revision = 'b2'\ndown_revision = 7\n", "line 2: expected None, a revision, or more in a tuple"),
        ("revision = \n", "x.py: expected a script of Alembic: invalid syntax"),
    ],
)
def test_a_script_that_says_nothing_clear_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        heads(tmp_path, x=text)
    assert said in refused.value.message


def test_of_prisma_every_folder_counts_oldest_first(tmp_path: Path) -> None:
    for name in ("20250201_b", "20250101_a"):
        (tmp_path / "prisma" / name).mkdir(parents=True)
        (tmp_path / "prisma" / name / "migration.sql").touch()
    (tmp_path / "prisma" / "migration_lock.toml").touch()
    assert shipped(PRISMA, tmp_path) == ("20250101_a", "20250201_b")


@pytest.mark.parametrize("config", [ALEMBIC, PRISMA], ids=["alembic", "prisma"])
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, config: MigrationsConfig) -> None:
    with pytest.raises(ConfigError, match="expected a folder with migrations"):
        shipped(config, tmp_path)


# --- the way down ----------------------------------------------------------------------------------------------------


def test_a_migration_of_prismas_may_have_its_way_down_beside_it(tmp_path: Path) -> None:
    for name in ("2_second", "1_first", "3_third"):
        (tmp_path / "prisma" / name).mkdir(parents=True)
        (tmp_path / "prisma" / name / "migration.sql").touch()
    for name in ("3_third", "2_second"):
        (tmp_path / "prisma" / name / "down.sql").write_text(f"down {name}")
    assert downs(PRISMA, tmp_path) == (
        Down(migrations=("2_second",), sql="down 2_second"),
        Down(migrations=("3_third",), sql="down 3_third"),
    )


def test_a_script_of_alembics_has_none_beside_it(tmp_path: Path) -> None:
    assert downs(ALEMBIC, tmp_path) == ()


DOWNGRADE = ("alembic", "downgrade", "{from}:{to}", "--sql")


@pytest.mark.parametrize("there,to", [(("a1",), "a1"), ((), "base")], ids=["from-one-to-the-other", "to-the-beginning"])
def test_the_command_is_told_from_where_to_where(there: tuple[str, ...], to: str) -> None:
    config = ALEMBIC.model_copy(update={"down": DOWNGRADE})
    assert filled(config, new=("b2",), there=there) == ("alembic", "downgrade", f"b2:{to}", "--sql")


@pytest.mark.parametrize("new,there,place", [(("b2", "b3"), ("a1",), "{from}"), (("c4",), ("b2", "b3"), "{to}")])
def test_of_several_heads_none_is_guessed(new: tuple[str, ...], there: tuple[str, ...], place: str) -> None:
    with pytest.raises(ConfigError) as error:
        filled(ALEMBIC.model_copy(update={"down": DOWNGRADE}), new=new, there=there)
    assert error.value.message.startswith(f"database.migrations.down: {place} would be one of")


def test_a_command_that_asks_for_no_head_may_have_several() -> None:
    own = ALEMBIC.model_copy(update={"down": ("bin/down",)})
    assert filled(own, new=("b2", "b3"), there=("a1",)) == ("bin/down",)


def test_of_prismas_migrations_the_newest_are_told() -> None:
    own = PRISMA.model_copy(update={"down": ("bin/down", "{from}", "{to}")})
    assert filled(own, new=("3", "4"), there=("1", "2")) == ("bin/down", "4", "2")
