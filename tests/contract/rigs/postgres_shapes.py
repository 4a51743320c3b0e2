"""Migrations of the rigs' shop, and how the application writes after each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tests.contract.rigs.postgres_world import SECOND, THIRD


class Unfit(StrEnum):
    """What an application can write after the migration that the old schema does not take."""

    NEGATIVE = "an order of a negative total"
    STATE = "an order in a state that was not there"
    OVERDRAWN = "an order that is overdrawn"
    NAMESAKE = "a customer with another one's name"
    SPLIT = "an order without its total"


class Refill(StrEnum):
    """How a migration takes rows out that it puts in again."""

    DELETED = "it deletes them"
    EMPTIED = "it empties the table"


@dataclass(frozen=True, slots=True)
class Shape:
    """A migration, and how the application writes after it. name: the column of a customer's name then. data: a second
    migration, which is a transaction of its own; empty for none. zone: the database's, also where it has no
    part in this. refill: how rows were taken out that are there again, in another unit. attach: what the application
    does to the schema by itself some time after the migration; empty for nothing."""

    migration: str
    unfit: Unfit
    name: str = "name"
    insert: str = "INSERT INTO orders (customer, total) VALUES (%(customer)s, %(total)s) RETURNING id"
    add: str = "UPDATE orders SET total = total + %(by)s WHERE id = %(id)s"
    drop: str = "DELETE FROM orders WHERE id = %(id)s"
    data: str = ""
    zone: str = "UTC"
    refill: Refill | None = None
    attach: str = ""

    @property
    def files(self) -> Mapping[str, str]:
        """What a release ships, by name."""
        return {SECOND: self.migration} | ({THIRD: self.data} if self.data else {})


BEFORE: Final = Shape("", Unfit.NEGATIVE)
"""How it writes before."""
SPLIT: Final = "a table that is split"
SHAPES: Final[Mapping[str, Shape]] = {
    "rename and backfill": Shape(
        "ALTER TABLE customers RENAME COLUMN name TO full_name; ALTER TABLE orders DROP CONSTRAINT orders_total_check; "
        "UPDATE orders SET total = total - 50; UPDATE customers SET full_name = upper(full_name)",
        Unfit.NEGATIVE,
        name="full_name",
    ),
    "a data step of its own": Shape(
        "ALTER TABLE customers RENAME COLUMN name TO full_name; ALTER TABLE orders DROP CONSTRAINT orders_total_check",
        Unfit.NEGATIVE,
        name="full_name",
        data="UPDATE orders SET total = total - 50; UPDATE customers SET full_name = upper(full_name)",
    ),
    "another type": Shape(
        "DROP VIEW paid; ALTER TABLE orders ALTER COLUMN customer TYPE bigint, ALTER COLUMN state TYPE text, "
        "ALTER COLUMN id TYPE numeric",
        Unfit.STATE,
    ),
    "a column that is gone": Shape(
        "DROP VIEW paid; ALTER TABLE orders DROP COLUMN at, DROP CONSTRAINT orders_total_check", Unfit.OVERDRAWN
    ),
    SPLIT: Shape(
        "DROP VIEW paid; CREATE TABLE totals (id bigint PRIMARY KEY, total numeric NOT NULL); "
        "INSERT INTO totals SELECT id, total FROM orders; ALTER TABLE orders DROP COLUMN total",
        Unfit.SPLIT,
        insert="WITH made AS (INSERT INTO orders (customer) VALUES (%(customer)s) RETURNING id) "
        "INSERT INTO totals SELECT id, %(total)s FROM made RETURNING id",
        add="UPDATE totals SET total = total + %(by)s WHERE id = %(id)s",
        drop="WITH gone AS (DELETE FROM orders WHERE id = %(id)s RETURNING id) "
        "DELETE FROM totals USING gone WHERE totals.id = gone.id",
    ),
    "a constraint that rejects good rows": Shape(
        "ALTER TABLE orders ADD CONSTRAINT small CHECK (total < 400) NOT VALID; "
        "ALTER TABLE customers RENAME COLUMN name TO full_name; "
        "ALTER TABLE customers DROP CONSTRAINT customers_name_key",
        Unfit.NAMESAKE,
        name="full_name",
    ),
}
