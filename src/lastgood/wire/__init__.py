"""The wire: one conversation with somebody else's program, bounded in time and in bytes, and what it said made fit to
show.

Below the rooms that ask: they do not import each other, and all of them ask. Knows no port, no error of the house and
no configuration: what an answer means is for the room that asked.
"""
