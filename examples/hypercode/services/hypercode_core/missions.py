"""Missions and what was said about them, as rows. A user sees only their own."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from psycopg.rows import class_row

from hypercode_core.database import Pool

PRIORITIES: Final = ("low", "normal", "high")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mission:
    """`status` is OPEN or COMPLETED; `completed_at` is set exactly when it is COMPLETED."""

    id: int
    title: str
    credits: int
    priority: str
    status: str
    created_at: datetime
    completed_at: datetime | None

    def as_json(self) -> dict[str, object]:
        """Times as ISO 8601 with their offset."""
        return {
            "id": self.id,
            "title": self.title,
            "credits": self.credits,
            "priority": self.priority,
            "status": self.status,
            "created_at": self.created_at.isoformat(),
            "completed_at": None if self.completed_at is None else self.completed_at.isoformat(),
        }


async def create_mission(pool: Pool, *, owner_id: int, title: str, credits_: int, priority: str) -> Mission:
    """Committed when this returns."""
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(Mission)) as cursor:
        await cursor.execute(
            """INSERT INTO missions (owner_id, title, credits, priority) VALUES (%s, %s, %s, %s)
               RETURNING id, title, credits, priority, status, created_at, completed_at""",
            [owner_id, title, credits_, priority],
        )
        mission = await cursor.fetchone()
    assert mission is not None  # INSERT ... RETURNING without ON CONFLICT gives a row or raises
    return mission


async def list_missions(pool: Pool, *, owner_id: int, limit: int) -> list[Mission]:
    """Newest first."""
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(Mission)) as cursor:
        await cursor.execute(
            """SELECT id, title, credits, priority, status, created_at, completed_at
               FROM missions WHERE owner_id = %s ORDER BY id DESC LIMIT %s""",
            [owner_id, limit],
        )
        return await cursor.fetchall()


async def find_mission(pool: Pool, *, owner_id: int, mission_id: int) -> Mission | None:
    """None when there is no such mission or it is somebody else's."""
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(Mission)) as cursor:
        await cursor.execute(
            """SELECT id, title, credits, priority, status, created_at, completed_at
               FROM missions WHERE id = %s AND owner_id = %s""",
            [mission_id, owner_id],
        )
        return await cursor.fetchone()


async def complete_mission(pool: Pool, *, owner_id: int, mission_id: int) -> Mission | None:
    """Safe to repeat: the first completion's time stays. None as for `find_mission`."""
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(Mission)) as cursor:
        await cursor.execute(
            """UPDATE missions SET status = 'COMPLETED', completed_at = coalesce(completed_at, now())
               WHERE id = %s AND owner_id = %s
               RETURNING id, title, credits, priority, status, created_at, completed_at""",
            [mission_id, owner_id],
        )
        return await cursor.fetchone()


async def store_exchange(pool: Pool, *, mission_id: int, question: str, answer: str) -> None:
    """Both sides of one chat, or neither."""
    async with pool.connection() as connection:
        await connection.execute(
            "INSERT INTO messages (mission_id, author, body) VALUES (%s, 'user', %s), (%s, 'agent', %s)",
            [mission_id, question, mission_id, answer],
        )
