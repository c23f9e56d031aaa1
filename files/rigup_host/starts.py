"""How long an endpoint took to start before, as its readiness check has logged."""

from __future__ import annotations

import re
import subprocess

from rigup_host.switch.state import unit_of

READY = re.compile(r"ready after (\d+) s: ")
LOOK_S = 3


def last_start_s(name: str) -> int | None:
    """Return how many seconds the endpoint's last successful start took; None if the journal does not know."""
    argv = ["journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=1", "--grep=^ready after [0-9]+ s: "]
    # The readiness check's own lines: the engine's, in the same unit, are many.
    argv += [f"_SYSTEMD_UNIT={unit_of(name)}", "SYSLOG_IDENTIFIER=rigup-host"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=LOOK_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = READY.match(done.stdout)
    return int(found[1]) if found else None
