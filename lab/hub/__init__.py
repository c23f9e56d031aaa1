"""The lab's Hugging Face hub: serves the catalog's checkpoints, in miniature, to lab hosts and control machine."""

import contextlib
import functools
import hashlib
import sys
import urllib.request
from pathlib import Path

from lab import checkpoint, service
from lab.service import Service
from lab.settings import GATEWAY, HUB_PORT, HUB_URL, STATE
from rigup.catalog.loader import load_catalog

NAME = "hub"
MODEL = "Qwen3.5-397B-A17B"
RATE_FILE = STATE / "hub" / "rate"
"""The limit of all transfers together in bytes per second; read before every chunk. No file, no limit."""
FAULTS_FILE = STATE / "hub" / "faults.json"
"""The faults that the hub simulates (lab.hub.faults); read at every request."""
JOURNAL = STATE / "hub" / "journal.jsonl"
"""One JSON line per answer: the file, the bytes sent, whether the request had a token."""


@functools.cache
def repositories() -> dict[str, Path]:
    """Return folders by OWNER/NAME, or OWNER/NAME@COMMIT where the catalog has the commit.

    NVIDIA's first checkpoint is as it was published. The others are the same miniature of the same model, without the
    first one's defect.
    """
    root = Path(__file__).parents[2]
    first, others = checkpoint.build(), checkpoint.build_repaired()
    known = load_catalog(root / "recipes").checkpoints.values()
    return {
        f"{each.repo}@{each.revision}" if each.revision else each.repo: first
        if each.repo == checkpoint.REPOSITORY
        else others
        for each in known
        if each.model == MODEL
    }


def version() -> str:
    """Return a hash of what a hub started now would run and serve: its code and its checkpoints."""
    digest = hashlib.sha256(repr((checkpoint.content_key(), sorted(repositories()))).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _answers() -> bool:
    """Whether the hub that answers runs the current code. Raises OSError when none answers."""
    with urllib.request.urlopen(f"{HUB_URL}/api/models/{checkpoint.REPOSITORY}", timeout=5) as answer:
        return str(answer.headers["Server"]) == f"rigup-hub/{version()}"


def start() -> Service:
    """Start the hub, or return the running one; replace one with older code or checkpoints. Raises LabError."""
    offered = repositories()
    with contextlib.suppress(OSError):
        if service.running(NAME) is not None and not _answers():
            stop()
    RATE_FILE.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "lab.hub", "--host", GATEWAY, "--port", str(HUB_PORT), "--version", version()]
    argv += [word for name, folder in offered.items() for word in ("--repository", f"{name}={folder}")]
    argv += ["--rate-file", str(RATE_FILE), "--faults-file", str(FAULTS_FILE), "--journal", str(JOURNAL), "--xet"]
    root = Path(__file__).parents[2]
    return service.start(NAME, argv, url=HUB_URL, ready=_answers, timeout=30, cwd=root)


def stop() -> bool:
    """Stop the hub; return whether it was running."""
    return service.stop(NAME)
