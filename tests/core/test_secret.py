"""A secret shows itself to nobody who did not ask for it by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pprint import pformat
from string import Template

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from lastgood.core.secret import MASK, Secret

TEXT = "correct-horse"
HIDDEN = Secret(TEXT)


@dataclass(frozen=True)
class Held:
    token: Secret


class Model(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    token: Secret
    port: int = 1


WAYS: dict[str, Callable[[], str]] = {
    "str": lambda: str(HIDDEN),
    "repr": lambda: repr(HIDDEN),
    "f-string": lambda: f"{HIDDEN}",
    "f-string-repr": lambda: f"{HIDDEN!r}",
    "f-string-debug": lambda: f"{HIDDEN=}",
    "f-string-width": lambda: f"{HIDDEN:>40}",
    "format": lambda: "{}".format(HIDDEN),  # noqa: UP032  that way, too
    "percent": lambda: "%s %r" % (HIDDEN, HIDDEN),  # noqa: UP031  that way, too
    "template": lambda: Template("$x").substitute(x=HIDDEN),
    "in-a-list": lambda: str([HIDDEN]),
    "in-a-dict": lambda: pformat({"token": HIDDEN}),
    "in-a-dataclass": lambda: repr(Held(token=HIDDEN)),
    "in-a-dataclass-as-a-dict": lambda: str(asdict(Held(token=HIDDEN))),
    "in-a-model": lambda: repr(Model(token=HIDDEN)),
    "in-a-model-as-a-dict": lambda: str(Model(token=HIDDEN).model_dump()),
    "in-an-error": lambda: str(ValueError(HIDDEN)),
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_prints_it_prints_the_mask(way: str) -> None:
    printed = WAYS[way]()
    assert (TEXT in printed, MASK in printed) == (False, True)


def test_what_cannot_mask_it_fails() -> None:
    with pytest.raises(TypeError):
        json.dumps({"token": HIDDEN})


def test_a_model_that_is_wrong_elsewhere_does_not_show_it() -> None:
    with pytest.raises(ValidationError) as wrong:
        Model.model_validate({"token": HIDDEN, "port": "x"})
    assert TEXT not in str(wrong.value)


def test_whoever_asks_for_it_by_name_gets_it() -> None:
    assert HIDDEN.reveal() == TEXT


def test_it_has_no_dictionary_to_be_looked_into() -> None:
    assert not hasattr(HIDDEN, "__dict__")


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters=MASK))


@given(text=TEXTS.filter(bool), around=st.tuples(TEXTS, TEXTS))
@settings(max_examples=60)
def test_a_text_that_holds_it_loses_every_occurrence(text: str, around: tuple[str, str]) -> None:
    assert text not in Secret(text).hidden_in(text.join((*around, "")))


@given(around=st.text())
@settings(max_examples=30)
def test_an_empty_secret_masks_nothing(around: str) -> None:
    assert Secret("").hidden_in(around) == around


def test_secrets_are_the_same_when_their_texts_are() -> None:
    assert (Secret("a") == Secret("a"), Secret("a") == Secret("b"), Secret("a") == "a") == (True, False, False)


def test_secrets_that_are_the_same_are_one_key() -> None:
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2


def test_its_hash_is_not_that_of_its_text() -> None:
    assert hash(Secret("a")) != hash("a")
