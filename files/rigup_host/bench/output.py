"""What a measurement prints: a JSON object per line, at once, for the control machine that reads it."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

_lock = threading.Lock()


def emit(kind: str, **values: Any) -> None:
    """Print one record. End the program if nobody reads it any more: Ctrl-C there closes the connection."""
    with _lock:
        try:
            print(json.dumps({"kind": kind, **values}), flush=True)
        except BrokenPipeError:
            # Not as Python exits, which waits for threads with requests.
            os._exit(1)
