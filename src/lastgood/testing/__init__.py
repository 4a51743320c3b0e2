"""The stand-ins that ship: Vercel, Slack and traffic on loopback, for the demo and for tests.

Each keeps state, each runs in-process or as a process of its own, and each fails on demand.
None of them is imported by the rooms that do the work: the product cannot tell a stand-in from the real service.
"""
