"""A user without privileges on a lab host, who takes what it can get until it is killed.

    python3 stranger_on_host.py LOOT PORT

Appends a JSON object to LOOT for each thing that it got, and after each round how often it tried each way. PORT is the
engine's port on loopback.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# How each secret begins that the test has planted.
SECRET = b"planted0"
PRIVATE = ("/etc/rigup", "/var/lib/rigup", "/run/rigup", "/run/systemd/transient", "/etc/systemd/system", "/var/log")
WRITABLE = ("/tmp", "/var/tmp", "/dev/shm", "/run/lock")
DECIDING = ("/etc", "/usr/local", "/var/lib/rigup", "/run/rigup", "/run/systemd/system", "/srv/models")
# pyinfra's name for a temporary file, of files that others have written there.
FORETOLD = (
    "/etc/apt/keyrings/docker.asc",
    "/usr/share/keyrings/cuda-archive-keyring.gpg",
    "/usr/share/keyrings/nvidia-container-toolkit-keyring.asc",
    "/etc/apt/sources.list.d/docker.sources",
    "/etc/rigup/plan.json",
)
POWERS = (
    ["sudo", "-n", "true"],
    ["systemctl", "--no-ask-password", "stop", "llm@main.service"],
    ["systemctl", "--no-ask-password", "start", "rigup-apt.service"],
    ["docker", "ps"],
    ["nft", "list", "ruleset"],
)
SOCKETS = ("/run/docker.sock", "/run/containerd/containerd.sock")
MINE = b"the stranger's own\n"

tried = Counter[str]()
told = set[str]()


def got(loot: Path, way: str, what: str) -> None:
    """Note what was got, once."""
    if f"{way} {what}" not in told:
        told.add(f"{way} {what}")
        note(loot, {"way": way, "what": what})


def note(loot: Path, entry: dict[str, object]) -> None:
    with loot.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def below(*roots: str, depth: int = 4) -> Iterator[str]:
    """Yield everything that can be seen below the roots, and the roots."""
    for root in roots:
        yield root
        for place, directories, files in os.walk(root):
            if place.count("/") - root.count("/") >= depth:
                directories.clear()
            yield from (f"{place}/{name}" for name in (*directories, *files))


def is_open(path: str, mode: int) -> bool:
    """Whether this user can change what is there; in a sticky directory, such as /tmp, nobody changes others' files."""
    shared = stat.S_ISDIR(mode) and mode & stat.S_ISVTX
    return not stat.S_ISLNK(mode) and not shared and os.access(path, os.W_OK)


def reads(loot: Path) -> None:
    """Look for secrets in files, and in the command lines and environments of all processes."""
    processes = [f"/proc/{name}/{file}" for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()
                 for file in ("cmdline", "environ")]  # fmt: skip
    for path in (*below(*PRIVATE, *WRITABLE), *processes):
        tried["read"] += 1
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                if SECRET in os.read(fd, 1 << 20):
                    got(loot, "read", path)
            finally:
                os.close(fd)


def writes(loot: Path) -> None:
    """Look for what root uses and others can write."""
    for path in below(*DECIDING):
        tried["write"] += 1
        with contextlib.suppress(OSError):
            if is_open(path, os.lstat(path).st_mode):
                got(loot, "write", path)


def lies_in_wait(loot: Path, seen: set[str]) -> None:
    """Take the names of temporary files before root does: foretold ones, and those that root has used before."""
    for place in WRITABLE:
        for name in os.listdir(place):
            path = f"{place}/{name}"
            tried["wait"] += 1
            with contextlib.suppress(OSError):
                found = os.lstat(path)
                if found.st_uid != os.getuid():
                    seen.add(path)
                    if is_open(path, found.st_mode):
                        got(loot, "wait", path)
                elif path in seen and stat.S_ISREG(found.st_mode) and Path(path).read_bytes() != MINE:
                    got(loot, "wait", f"{path} was written to")
    for path in (*(f"/tmp/pyinfra-{hashlib.sha1(each.encode()).hexdigest()}" for each in FORETOLD), *list(seen)):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            os.write(fd, MINE)
            os.close(fd)
            seen.add(path)


def listens(loot: Path, port: int) -> None:
    """Share the engine's port while it listens. A free port is left alone: whoever takes it only stops the engine."""
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        for address in ("127.0.0.1", "0.0.0.0", "127.0.0.2"):
            tried["listen"] += 1
            with socket.socket() as mine:
                for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                    mine.setsockopt(socket.SOL_SOCKET, option, 1)
                try:
                    mine.bind((address, port))
                    mine.listen()
                except OSError as error:
                    assert error.errno == errno.EADDRINUSE, error
                else:
                    if address == "127.0.0.1":
                        got(loot, "listen", f"{address}:{port}")


def commands(loot: Path) -> None:
    """Ask for what only root may do."""
    for argv in POWERS:
        tried["command"] += 1
        with contextlib.suppress(FileNotFoundError, subprocess.TimeoutExpired):
            if subprocess.run(argv, capture_output=True, timeout=60).returncode == 0:
                got(loot, "command", " ".join(argv))
    for path in SOCKETS:
        tried["socket"] += 1
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            got(loot, "socket", path)


def main() -> None:
    loot, port = Path(sys.argv[1]), int(sys.argv[2])
    seen = set[str]()
    rounds = 0
    while True:
        lies_in_wait(loot, seen)
        # The others cost more; the temporary files are gone soon.
        if rounds % 100 == 0:
            reads(loot)
            writes(loot)
            listens(loot, port)
            commands(loot)
            note(loot, {"tried": tried})
        rounds += 1
        time.sleep(0.1)


if __name__ == "__main__":
    main()
