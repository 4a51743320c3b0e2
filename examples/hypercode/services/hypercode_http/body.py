"""Read a JSON request body within limits, and say which field is wrong."""

import json
from collections.abc import Mapping
from typing import Final, cast

from starlette.exceptions import HTTPException
from starlette.requests import Request

MAX_BODY_BYTES: Final = 64 * 1024


async def json_object(request: Request) -> Mapping[str, object]:
    """Raises HTTPException 413 when the body is over MAX_BODY_BYTES, 400 when it is not a JSON object."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"body is larger than {MAX_BODY_BYTES} bytes")
    try:
        value: object = json.loads(bytes(body))
    except ValueError as error:
        raise HTTPException(400, "body is not JSON") from error
    if not isinstance(value, dict):
        raise HTTPException(400, "body is not a JSON object")
    return cast("dict[str, object]", value)


def text_field(fields: Mapping[str, object], name: str, *, longest: int) -> str:
    """The field without surrounding spaces: 1 to `longest` characters, none of them NUL. Raises HTTPException 422."""
    value = fields.get(name)
    # Postgres text cannot hold NUL; without this the caller's mistake would come back as a 500.
    if not isinstance(value, str) or not 0 < len(value.strip()) <= longest or "\0" in value:
        raise HTTPException(422, f"{name}: expected text of 1 to {longest} characters")
    return value.strip()


def integer_field(fields: Mapping[str, object], name: str, *, least: int, most: int) -> int:
    """Raises HTTPException 422 unless the field is a whole number in `least..most`."""
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise HTTPException(422, f"{name}: expected a whole number from {least} to {most}")
    return value


def optional_field(fields: Mapping[str, object], name: str) -> bool:
    """True when the caller gave the field; JSON null is the same as leaving it out."""
    return fields.get(name) is not None
