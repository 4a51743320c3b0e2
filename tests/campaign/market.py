"""The campaign's half of the shop, beside the rigs' one, and migrations of it.

It has what audits found rows lost or doubled by: keys that users change and other rows follow, unique values that are
used again, a number whose table a migration refills, a time that gets a zone, and a table in parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tests.contract.rigs import postgres_shapes
from tests.contract.rigs.postgres_shapes import Refill, Shape, Unfit

TABLES: Final = """
CREATE TABLE goods (code text PRIMARY KEY, name text NOT NULL UNIQUE, since timestamp NOT NULL);
CREATE TABLE picks (id serial PRIMARY KEY, good text NOT NULL REFERENCES goods ON UPDATE CASCADE);
CREATE TABLE stocks (id serial PRIMARY KEY, n numeric NOT NULL);
CREATE TABLE visits (id serial, day int, what text NOT NULL, PRIMARY KEY (id, day)) PARTITION BY LIST (day);
CREATE TABLE visits_1 PARTITION OF visits FOR VALUES IN (1);
CREATE TABLE visits_rest PARTITION OF visits DEFAULT;
INSERT INTO stocks (n) SELECT g * 10 FROM generate_series(1, 5) g;
"""
HOT: Final = range(1, 6)
"""Stocks to which everybody adds."""
FIRST_DAY, SECOND_DAY = 1, 2
LATER_PART: Final = "visits_2"
EAST_H: Final = {"UTC": 0, "Asia/Tokyo": 9}
"""Hours by which a zone's clocks are ahead."""
REFILLED_BY: Final = 100
"""By how much what is in a table that was refilled counts for more."""
_KEEP: Final = f"CREATE TEMPORARY TABLE kept AS SELECT id, n * {REFILLED_BY} FROM stocks; "
_PUT_BACK: Final = "; INSERT INTO stocks SELECT * FROM kept"
SHAPES: Final[Mapping[str, Shape]] = {
    **postgres_shapes.SHAPES,
    "rows put in anew, a later partition": Shape(
        f"{_KEEP} DELETE FROM stocks {_PUT_BACK}; ALTER TABLE orders DROP CONSTRAINT orders_total_check",
        Unfit.NEGATIVE,
        refill=Refill.DELETED,
        attach=f"CREATE TABLE {LATER_PART} (LIKE visits INCLUDING ALL); "
        f"ALTER TABLE visits ATTACH PARTITION {LATER_PART} FOR VALUES IN ({SECOND_DAY})",
    ),
    "a table emptied, a time with a zone": Shape(
        f"{_KEEP} TRUNCATE stocks {_PUT_BACK}; ALTER TABLE goods ALTER COLUMN since TYPE timestamptz; "
        "ALTER TABLE customers DROP CONSTRAINT customers_name_key",
        Unfit.NAMESAKE,
        zone="Asia/Tokyo",
        refill=Refill.EMPTIED,
    ),
}
