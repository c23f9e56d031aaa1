"""The lab's mirror: apt repositories of NVIDIA and Docker built here, Debian's and Python's packages passed through."""

import contextlib
import sys
from pathlib import Path
from urllib.request import urlopen

from lab import service
from lab.locking import exclusive
from lab.mirror import engine, upstreams
from lab.mirror.docker import Archive
from lab.mirror.identity import greeting
from lab.mirror.keys import Key
from lab.mirror.passthrough import Cache, client
from lab.mirror.repos import Repositories, Say, signing_keys
from lab.service import Service
from lab.settings import CACHE, GATEWAY, MIRROR_PORT, MIRROR_URL, STATE

NAME = "mirror"
FILES = CACHE / "mirror"
WWW = STATE / "mirror"


def build(say: Say = print) -> None:
    """Build the lab's own repositories if they are missing or outdated.

    Raises LabError when Debian's packages are neither reachable nor in the cache.
    """
    sources = upstreams.find()
    with (
        client(sources.certificates) as http,
        exclusive(FILES / "lock", say, "mirror: another lab is building it"),
    ):
        archive = Archive(sources.debian, Cache(FILES / "passed-on", http), sources.debian_security)
        Repositories(FILES, WWW, archive, say).build()
    engine.publish(WWW / "python")


def public_keys() -> dict[str, Key]:
    """Return the keys that sign the lab's own repositories, by name. Raises LabError."""
    FILES.mkdir(parents=True, exist_ok=True)
    with exclusive(FILES / "lock", print, "mirror: another lab is building it"):
        return signing_keys(FILES / "keys")


def start(say: Say = print) -> Service:
    """Build what is missing, start the server unless it runs, and wait until it answers. Raises LabError."""
    build(say)
    command = [sys.executable, "-m", "lab.mirror.server", "--address", GATEWAY, "--port", str(MIRROR_PORT)]
    command += ["--www", str(WWW), "--cache", str(FILES / "passed-on")]
    checkout = Path(__file__).parent.parent.parent

    def answers() -> bool:
        with urlopen(f"{MIRROR_URL}/", timeout=2) as response:
            return bool(response.read().decode().strip() == greeting())

    with contextlib.suppress(OSError):
        if service.running(NAME) is not None and not answers():
            say("mirror: its code changed, restarting it")
            stop()
    return service.start(NAME, command, url=MIRROR_URL, ready=answers, cwd=checkout)


def stop() -> bool:
    """Stop the server; return whether it was running."""
    return service.stop(NAME)
