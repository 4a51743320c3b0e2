"""lastgood puts production back after a bad deploy."""

__version__ = "0.1.0"
