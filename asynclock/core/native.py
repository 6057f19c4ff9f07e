"""What the compiler wants to be told about a class, which means nothing to the interpreter."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr as mypyc_attr
else:

    def mypyc_attr(**attributes):
        """Does nothing here, and spares the installed library a dependency on ``mypy_extensions``."""
        return lambda each: each
