"""A value that must not be printed: it masks itself wherever it is formatted."""

from __future__ import annotations

from typing import Final

MASK: Final = "********"


class Secret:
    """Holds a secret text. `str`, `repr` and f-strings give the mask; `reveal` is for the one call that needs it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text. Never pass it on to a log, a message or a command line."""
        return self._text

    def hidden_in(self, text: str) -> str:
        """Return `text` with every occurrence of the secret masked."""
        return text.replace(self._text, MASK) if self._text else text

    def __str__(self) -> str:
        return MASK

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(("Secret", self._text))
