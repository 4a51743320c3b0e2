"""What can go wrong, by what it means for the person and for the world.

LastgoodError
 ├─ ConfigError      exit 2   lastgood.yaml or an argument is wrong; nothing changed
 ├─ Refused          exit 3   a precondition does not hold; nothing changed
 ├─ Retryable        exit 4   it did not work now and changed nothing; worth another try after `delay_s`
 ├─ OutcomeUnknown   exit 4   it was sent and the answer was lost: observe before repeating
 ├─ NeedsHuman       exit 5   stopped at a named step; what is done and what is left is in the journal
 └─ Bug              exit 70  this program broke its own rule; nothing further was attempted

Every message is lower case, names the value, and ends without a full stop. `hint` is one thing to type.
"""

from __future__ import annotations


class LastgoodError(Exception):
    """Base of every error that a command turns into an exit code."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(LastgoodError):
    """The configuration or an argument is wrong. Nothing changed."""

    exit_code = 2


class Refused(LastgoodError):
    """A precondition does not hold. Nothing changed."""

    exit_code = 3


class Retryable(LastgoodError):
    """It did not work now and nothing changed. `delay_s`: seconds to wait before another try."""

    exit_code = 4

    def __init__(self, message: str, *, delay_s: float, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.delay_s = delay_s


class OutcomeUnknown(LastgoodError):
    """It was sent and the answer was lost. Observe before repeating."""

    exit_code = 4


class NeedsHuman(LastgoodError):
    """Stopped safely at a named step. The journal holds what is done; `hint` is the next command."""

    exit_code = 5


class Bug(LastgoodError):
    """This program broke its own rule."""

    exit_code = 70
