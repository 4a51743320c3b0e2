"""HyperCode orchestrator: turns a goal into steps and has the coder agent do the one that needs code."""
