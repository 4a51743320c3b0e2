"""HyperCode coder agent: does one coding task at a time, with a model."""
