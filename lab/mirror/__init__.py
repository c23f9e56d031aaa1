"""The lab's mirror: NVIDIA's, Docker's and the toolkit's repositories, and Debian's and Python's packages passed on."""

import contextlib
import sys
from pathlib import Path
from urllib.request import urlopen

from lab import service
from lab.locking import exclusive
from lab.mirror import engine, upstreams
from lab.mirror.docker import Archive
from lab.mirror.identity import greeting
from lab.mirror.passthrough import Cache, client
from lab.mirror.repos import Repositories, Say
from lab.service import Service
from lab.settings import CACHE, GATEWAY, MIRROR_PORT, MIRROR_URL, STATE

NAME = "mirror"
FILES = CACHE / "mirror"
WWW = STATE / "mirror"


def build(say: Say = print) -> None:
    """Build the lab's own repositories where they are missing or outdated; a second call takes no time.

    Raises MirrorError when Debian's packages cannot be had and are not in the cache.
    """
    sources = upstreams.find()
    with client(sources.certificates) as http, exclusive(FILES / "lock", say, "mirror: another lab is building it"):
        archive = Archive(sources.debian, Cache(FILES / "passed-on", http))
        Repositories(FILES, WWW, archive, say).build()
    engine.publish(WWW / "python")


def start(address: str = GATEWAY, port: int = MIRROR_PORT, say: Say = print) -> Service:
    """Build what is missing, start the server unless it runs, and wait until it answers.

    Raises MirrorError or lab.service.ServiceError with the reason.
    """
    build(say)
    url = MIRROR_URL if (address, port) == (GATEWAY, MIRROR_PORT) else f"http://{address}:{port}"
    command = [sys.executable, "-m", "lab.mirror.server", "--address", address, "--port", str(port)]
    command += ["--www", str(WWW), "--cache", str(FILES / "passed-on")]
    checkout = Path(__file__).parent.parent.parent

    def answers() -> bool:
        with urlopen(f"{url}/", timeout=2) as response:
            return bool(response.read().decode().strip() == greeting())

    with contextlib.suppress(OSError):
        if service.running(NAME) is not None and not answers():
            say("mirror: its code changed, starting it again")
            stop()
    return service.daemonise(NAME, command, url=url, ready=answers, cwd=checkout)


def stop() -> bool:
    """Stop the server; returns whether it ran."""
    return service.stop(NAME)
