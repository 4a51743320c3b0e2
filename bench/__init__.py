"""Measurements: each runs both sides in one run and prints ratios; no test asserts a wall-clock time."""
