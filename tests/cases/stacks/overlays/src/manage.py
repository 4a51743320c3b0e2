"""The code of today."""
