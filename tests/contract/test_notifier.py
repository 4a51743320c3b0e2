"""What every notifier promises (core.ports.Notifier), shown on a real service each, on loopback.

To take a new channel in, write a rig for it (a context manager that yields a NotifierRig) and add it to RIGS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lastgood.core.config import SlackConfig
from lastgood.core.errors import LastgoodError, OutcomeUnknown, Refused, Retryable
from lastgood.core.ports import Notifier
from lastgood.core.secret import Secret
from lastgood.notify import slack
from lastgood.notify.slack import SlackNotifier
from lastgood.testing.slack import DEFAULT_TOKEN, SlackStandIn
from lastgood.testing.stack import MemoryNotifier
from lastgood.testing.standin import Fault, FaultKind
from lastgood.testing.world import SteppedClock
from tests.signals.loopback import Reply, answer, drip_body, drip_headers, flood, loopback, nobody

SENTENCE = "🚨 Deployment failed. Rollback to v2.0.3 completed. System operating normally. Investigation started."
Act = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """One message as the service took it in. delivery: what tells a double. text: as its readers see it, markup and
    all."""

    delivery: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """One way in which the next message fails, and only that one. notifier: the one that is in it.

    raises: what the sender must be told. told: whether the message was taken in all the same.
    """

    notifier: Notifier
    raises: type[LastgoodError]
    begin: Act = lambda: None
    told: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifierRig:
    """A channel that is well at first. markup: what would mean something there, if foreign text could say it."""

    notifier: Notifier
    arrived: Callable[[], Sequence[Arrived]]
    troubles: Mapping[str, Trouble]
    markup: Sequence[str]
    secret: str


@contextmanager
def slack_rig(folder: Path) -> Iterator[NotifierRig]:
    with ExitStack() as stack:
        service = stack.enter_context(SlackStandIn(messages=folder / "slack.jsonl"))

        def at(url: str, token: str = DEFAULT_TOKEN, channel: str = "#dev-ops") -> Notifier:
            return SlackNotifier(SlackConfig(channel=channel, token=Secret(token), url=url))

        def elsewhere(reply: Reply) -> Notifier:
            return at(f"{stack.enter_context(loopback(reply)).url}/api/")

        def spoilt(raises: type[LastgoodError], fault: Fault) -> Trouble:
            return Trouble(notifier=notifier, raises=raises, begin=lambda: service.fail(fault), told=fault.after_accept)

        notifier = at(service.api_url)
        yield NotifierRig(
            notifier=notifier,
            arrived=lambda: [Arrived(delivery=m.delivery or "", text=m.text) for m in service.messages],
            troubles={
                "nobody": Trouble(notifier=at(stack.enter_context(nobody())), raises=Retryable),
                "rate-limited": spoilt(Retryable, Fault(kind=FaultKind.RATE_LIMIT, retry_after_s=7)),
                "wrong-token": Trouble(notifier=at(service.api_url, token="xoxb-other"), raises=Refused),
                "wrong-channel": Trouble(notifier=at(service.api_url, channel="#elsewhere"), raises=Refused),
                "dropped": spoilt(OutcomeUnknown, Fault(kind=FaultKind.DROP)),
                "dropped-after": spoilt(OutcomeUnknown, Fault(kind=FaultKind.DROP, after_accept=True)),
                "hangs": spoilt(OutcomeUnknown, Fault(kind=FaultKind.HANG)),
                "hangs-after": spoilt(OutcomeUnknown, Fault(kind=FaultKind.HANG, after_accept=True)),
                "error": spoilt(OutcomeUnknown, Fault(kind=FaultKind.ERROR, status=503)),
                "error-after": spoilt(OutcomeUnknown, Fault(kind=FaultKind.ERROR, status=500, after_accept=True)),
                "drips-headers": Trouble(notifier=elsewhere(drip_headers), raises=OutcomeUnknown),
                "drips": Trouble(notifier=elsewhere(drip_body), raises=OutcomeUnknown),
                "floods": Trouble(notifier=elsewhere(flood), raises=OutcomeUnknown),
                "nonsense": Trouble(notifier=elsewhere(answer("<html>hello")), raises=OutcomeUnknown),
                "not-http": Trouble(notifier=elsewhere(b"\x00" * 100), raises=OutcomeUnknown),
            },
            markup=("<!channel>", "<!here>", "<@U0LASTGOOD>", "<#C024BE7LR>", "<http://evil.example|the report>"),
            secret=DEFAULT_TOKEN,
        )


@contextmanager
def memory_rig(_folder: Path) -> Iterator[NotifierRig]:
    notifier = MemoryNotifier(SteppedClock())

    def spoilt(error: LastgoodError) -> Trouble:
        return Trouble(notifier=notifier, raises=type(error), begin=lambda: notifier.errors.append(error))

    yield NotifierRig(
        notifier=notifier,
        arrived=lambda: [Arrived(delivery=event, text=text) for event, text in notifier.messages],
        troubles={
            "rate-limited": spoilt(Retryable("told to wait", delay_s=7)),
            "wrong-token": spoilt(Refused("the token is not accepted", hint="renew it")),
            "dropped": spoilt(OutcomeUnknown("the answer was lost")),
        },
        markup=(),
        secret="xoxb-nobody",
    )


RIGS: Mapping[str, Callable[[Path], AbstractContextManager[NotifierRig]]] = {"slack": slack_rig, "memory": memory_rig}
needs_server = pytest.mark.needs_server


@pytest.fixture(params=[pytest.param(name, marks=() if name == "memory" else needs_server) for name in RIGS])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NotifierRig]:
    with RIGS[request.param](tmp_path) as made:
        yield made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs is left sooner than a team would be kept waiting."""
    monkeypatch.setattr(slack, "DEADLINE_S", 0.5)


def test_it_says_where_it_speaks(rig: NotifierRig) -> None:
    assert rig.notifier.channel


def test_a_sentence_arrives_once_and_word_for_word(rig: NotifierRig) -> None:
    rig.notifier.send(SENTENCE, event_id="r1-ROLLED_BACK_VERIFIED")
    assert [message.text for message in rig.arrived()] == [SENTENCE]


def test_lines_stay_lines(rig: NotifierRig) -> None:
    rig.notifier.send(f"{SENTENCE}\nInvalid rows remain: credits: 3", event_id="r1")
    assert rig.arrived()[0].text.split("\n")[1] == "Invalid rows remain: credits: 3"


def test_an_event_that_is_sent_again_can_be_told_from_a_new_one(rig: NotifierRig) -> None:
    for event_id in ("r1-ask", "r1-ask", "r1-DENIED"):
        rig.notifier.send("text", event_id=event_id)
    first, again, other = (message.delivery for message in rig.arrived())
    assert first == again != other
    assert first


def test_foreign_text_cannot_call_anybody_or_hide_an_address(rig: NotifierRig) -> None:
    rig.notifier.send(f"v2.0.6 is bad ({' '.join(rig.markup)})", event_id="r1")
    text = rig.arrived()[0].text
    assert not any(markup in text for markup in rig.markup)


def test_foreign_text_cannot_turn_the_line_round_or_move_the_cursor(rig: NotifierRig) -> None:
    rig.notifier.send("bad \x1b[2J\u202ecod.exe\x00\r\u2066 end", event_id="r1")
    text = rig.arrived()[0].text
    assert text.isprintable()
    assert text.endswith("end")


@pytest.mark.parametrize("text", ["x" * 1_000_000, "<" * 1_000_000, "🚨" * 1_000_000])
def test_a_text_without_end_is_cut_and_not_lost(rig: NotifierRig, text: str) -> None:
    rig.notifier.send(text, event_id="r1")
    (message,) = rig.arrived()
    assert 0 < len(message.text) < 40_000


@pytest.mark.usefixtures("impatient")
def test_each_trouble_is_told_by_what_it_means_and_is_over_by_the_next_message(rig: NotifierRig) -> None:
    """That this test comes to its end is the deadline's proof: what hangs here lets go for nobody."""
    for trouble, case in rig.troubles.items():
        before = len(rig.arrived())
        case.begin()
        with pytest.raises((Retryable, Refused, OutcomeUnknown)) as raised:
            case.notifier.send("text", event_id=trouble)
        assert type(raised.value) is case.raises, trouble
        assert raised.value.message, trouble
        assert raised.value.message.isprintable(), trouble
        assert len(rig.arrived()) == before + case.told, trouble
        rig.notifier.send("text", event_id=trouble)


@pytest.mark.usefixtures("impatient")
def test_what_is_refused_comes_with_something_to_do_and_what_is_retried_with_a_time(rig: NotifierRig) -> None:
    for trouble, case in rig.troubles.items():
        case.begin()
        with pytest.raises(LastgoodError) as raised:
            case.notifier.send("text", event_id=trouble)
        match raised.value:
            case Refused(hint=hint):
                assert hint, trouble
            case Retryable(delay_s=delay_s):
                assert delay_s > 0, trouble
            case _:
                pass


def test_a_message_that_was_taken_in_is_never_said_to_have_changed_nothing(rig: NotifierRig) -> None:
    for trouble, case in rig.troubles.items():
        if case.told:
            assert case.raises is OutcomeUnknown, trouble


@pytest.mark.usefixtures("impatient")
def test_no_trouble_shows_the_secret(rig: NotifierRig) -> None:
    for trouble, case in rig.troubles.items():
        case.begin()
        with pytest.raises(LastgoodError) as raised:
            case.notifier.send("text", event_id=trouble)
        error: BaseException | None = raised.value
        while error is not None:
            assert rig.secret not in f"{error} {error!r} {vars(error)}", trouble
            error = error.__cause__ or error.__context__
