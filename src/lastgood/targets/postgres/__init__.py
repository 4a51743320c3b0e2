"""The database hand: restore points, evidence about a migration, and the swap to a clone that was restored beside."""

from lastgood.targets.postgres.target import PostgresTarget

__all__ = ["PostgresTarget"]
