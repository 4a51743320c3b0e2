"""The mind: pure values and decisions. No clock, no process, no socket; time, readings and facts come in as
arguments."""
