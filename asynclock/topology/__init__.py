"""Which server answers for a key."""

from .fixed import Fixed

__all__ = ["Fixed"]
