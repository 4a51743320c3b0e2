"""Names that may stand in a path, a tag and a command line; and what a release knows of itself."""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lastgood.core.release import NAME_GRAMMAR
from tests.core.examples import SERVICES, release


@pytest.mark.parametrize(
    "name",
    ["v2.0.5", "v2.0.5-14-g2414721", "hyper-postgres", "a", "0", "2026-01-01_x", "A" * 63, "a..b", "v1.", "rp-d2"],
)
def test_a_usual_name_is_one(name: str) -> None:
    assert NAME_GRAMMAR.fullmatch(name)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param("A" * 64, id="too-long-for-a-label"),
        pytest.param("-rf", id="an-option"),
        pytest.param("--privileged", id="a-long-option"),
        pytest.param(".", id="this-folder"),
        pytest.param("..", id="the-folder-above"),
        pytest.param(".hidden", id="hidden"),
        pytest.param("_x", id="underscore-first"),
        pytest.param("../../etc/passwd", id="a-path"),
        pytest.param("a/b", id="a-slash"),
        pytest.param("a\\b", id="a-backslash"),
        pytest.param("v1:latest", id="a-tag"),
        pytest.param("v1@sha256", id="a-digest"),
        pytest.param("a b", id="a-blank"),
        pytest.param(" a", id="a-blank-first"),
        pytest.param("a\n", id="a-newline-last"),
        pytest.param("a\nb", id="a-newline"),
        pytest.param("a\x00b", id="a-nul"),
        pytest.param("a\x1b[2J", id="a-terminal-escape"),
        pytest.param("a;reboot", id="a-semicolon"),
        pytest.param("$(reboot)", id="a-substitution"),
        pytest.param("`reboot`", id="backticks"),
        pytest.param("${HOME}", id="a-variable"),
        pytest.param("a|b", id="a-pipe"),
        pytest.param("a&b", id="an-ampersand"),
        pytest.param("a>b", id="a-redirection"),
        pytest.param("a*", id="a-star"),
        pytest.param("~root", id="a-home"),
        pytest.param("a'b", id="a-quote"),
        pytest.param('a"; DROP DATABASE app; --', id="sql"),
        pytest.param("é", id="not-ascii"),
        pytest.param("\u0430dmin", id="a-cyrillic-a"),  # it looks like a latin one
        pytest.param("\uff41", id="a-full-width-a"),
        pytest.param("\u0661", id="an-arabic-one"),
        pytest.param("a\u202eb", id="right-to-left"),
        pytest.param("a\u200bb", id="a-blank-that-nobody-sees"),
    ],
)
def test_a_hostile_name_is_none(name: str) -> None:
    assert not NAME_GRAMMAR.fullmatch(name)


@given(text=st.text(max_size=8) | st.from_regex(NAME_GRAMMAR))
@settings(max_examples=80)
def test_a_name_is_read_as_itself_by_a_shell_a_path_and_a_terminal(text: str) -> None:
    if NAME_GRAMMAR.fullmatch(text):
        assert (shlex.quote(text), PurePosixPath("x", text).name, text.isprintable()) == (text, text, True)


def test_a_service_of_a_release_is_found_by_its_name() -> None:
    old = release("old")
    assert tuple(old.service(name) for name in SERVICES) == old.services


def test_a_service_that_the_release_does_not_have_is_none() -> None:
    assert release("old").service("billing") is None
