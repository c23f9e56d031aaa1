"""Add `deploy.py` and `rebuild.py` to wheels.

Hatch's own mapping covers directories only, and its `force-include` would also copy files into an editable
installation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILES = ("deploy.py", "rebuild.py")


class WheelHook(BuildHookInterface[Any]):
    """The hook of the target `wheel`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put the files next to the other data that `rigup/resources.py` finds."""
        if version != "editable":
            build_data["force_include"] |= {str(Path(self.root, name)): f"rigup/_data/{name}" for name in FILES}
