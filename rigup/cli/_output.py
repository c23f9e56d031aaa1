"""What commands print for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def print_json(data: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Print one JSON object, at once, for whoever reads it while the command runs."""
    print(json.dumps(data, indent=indent), flush=True)
