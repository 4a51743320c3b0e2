"""Users, as rows."""

from dataclasses import dataclass

from hypercode_core.database import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """`password_hash`: as `passwords.hash_password` makes it."""

    id: int
    name: str
    password_hash: str


async def find_user(pool: Pool, name: str) -> User | None:
    """None when nobody has that name."""
    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT id, name, password_hash FROM users WHERE name = %s", [name])
        row = await cursor.fetchone()
    return None if row is None else User(id=row[0], name=row[1], password_hash=row[2])
