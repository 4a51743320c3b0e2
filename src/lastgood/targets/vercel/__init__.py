"""The frontend at Vercel: an earlier deployment is made production again, and the real domains are asked whether it
is."""

from lastgood.targets.vercel.target import VercelTarget

__all__ = ["VercelTarget"]
