"""Password hashes: scrypt, stored as `scrypt$n$r$p$salt$hash` with hexadecimal salt and hash."""

import hashlib
import hmac
import secrets
from typing import Final

# 2**12 costs 4 MiB and about 10 ms; a login is one of ten requests here and shares two cores with everything else.
_N: Final = 2**12
_R: Final = 8
_P: Final = 1


def hash_password(password: str) -> str:
    """A new salt each time, so two users with one password do not share a hash."""
    salt = secrets.token_bytes(16)
    return f"scrypt${_N}${_R}${_P}${salt.hex()}${_scrypt(password, salt, _N, _R, _P).hex()}"


def password_matches(password: str, stored: str) -> bool:
    """`stored`: as `hash_password` made it; its own costs are used. Raises ValueError if it is of another form."""
    kind, n, r, p, salt, digest = stored.split("$")
    if kind != "scrypt":
        raise ValueError(f"unknown password hash {kind!r}")
    found = _scrypt(password, bytes.fromhex(salt), int(n), int(r), int(p))
    return hmac.compare_digest(found, bytes.fromhex(digest))


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, dklen=32)
