"""Session tokens: `payload.signature`, both base64url; the payload names the user and the end of the session.

Signed with HMAC-SHA256 and checked on each call, so no session is stored and any copy of the core can check it.
"""

import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from typing import Final, cast

SESSION_S: Final = 12 * 60 * 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """`expires_at`: seconds since the epoch."""

    user_id: int
    user: str
    expires_at: int


class InvalidToken(Exception):
    """The token was not made by us, was changed, or has expired."""


class Tokens:
    """Issues and checks tokens with one secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def issue(self, *, user_id: int, user: str) -> str:
        """Valid for SESSION_S from now."""
        claims = {"id": user_id, "user": user, "exp": int(time.time()) + SESSION_S}
        payload = json.dumps(claims, separators=(",", ":")).encode()
        return f"{_encode(payload)}.{_encode(self._sign(payload))}"

    def check(self, token: str) -> Session:
        """Raises InvalidToken."""
        try:
            payload, signature = (_decode(part) for part in token.split("."))
        except ValueError as error:
            raise InvalidToken("not a token") from error
        if not hmac.compare_digest(signature, self._sign(payload)):
            raise InvalidToken("wrong signature")
        claims = cast("dict[str, object]", json.loads(payload))
        session = Session(
            user_id=cast("int", claims["id"]), user=cast("str", claims["user"]), expires_at=cast("int", claims["exp"])
        )
        if session.expires_at <= time.time():
            raise InvalidToken("expired")
        return session

    def _sign(self, payload: bytes) -> bytes:
        return hmac.digest(self._secret, payload, hashlib.sha256)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
