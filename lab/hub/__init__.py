"""The lab's Hugging Face hub: serves the checkpoint in miniature to lab hosts and to the control machine."""

import json
import sys
import urllib.request
from pathlib import Path

from lab import checkpoint
from lab.hub.repository import Repository
from lab.service import Service, daemonise, running
from lab.service import stop as stop_service
from lab.settings import GATEWAY, HUB_PORT, HUB_URL, STATE

NAME = "hub"
RATE_FILE = STATE / "hub" / "rate"
"""Bytes per second that the hub sends at most, all together; read again for every piece. No file, no limit."""


def served_commit() -> str:
    """The commit that the running hub's `main` is. Raises OSError when no hub answers."""
    with urllib.request.urlopen(f"{HUB_URL}/api/models/{checkpoint.REPOSITORY}", timeout=5) as answer:
        return str(json.load(answer)["sha"])


def start() -> Service:
    """Start the hub, or return the running one if it serves the present checkpoint. Raises lab.service.ServiceError."""
    folder = checkpoint.build()
    commit = Repository(checkpoint.REPOSITORY, folder).commit
    if running(NAME) is not None:
        try:
            current = served_commit() == commit
        except OSError:
            current = False
        if not current:
            stop()
    RATE_FILE.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "lab.hub", "--host", GATEWAY, "--port", str(HUB_PORT)]
    argv += ["--repository", f"{checkpoint.REPOSITORY}={folder}", "--rate-file", str(RATE_FILE)]
    root = Path(__file__).parents[2]
    return daemonise(NAME, argv, url=HUB_URL, ready=lambda: served_commit() == commit, timeout=30, cwd=root)


def stop() -> bool:
    """Stop the hub; returns whether it ran."""
    return stop_service(NAME)
