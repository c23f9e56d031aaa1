"""Spares pyinfra work that it does again at each operation."""

from __future__ import annotations

import sys
from types import ModuleType

__all__ = ["as_module"]


def as_module(path: str) -> None:
    """Have `inspect` know the deploy file at `path` as a module.

    pyinfra 3.10 asks for the call stack twice at each operation (`pyinfra.api.util`). For a frame of a file that is no
    module, which is how it runs deploy files, `inspect.getmodule` looks through all modules each time: 4 to 7 ms.
    """
    module = ModuleType(f"deploy file {path}")
    module.__file__ = path
    sys.modules[module.__name__] = module
