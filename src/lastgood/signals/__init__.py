"""The eyes: each looks at one thing and returns what it saw as a Reading, or says that it could not look.

They decide nothing, change nothing, and never raise for what they look at.
"""
