"""The lab's state directory: claim it, keep the ssh keys in it, remove what is mounted in it."""

import contextlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from lab.errors import LabError
from lab.locking import exclusive, quietly
from lab.settings import SERVICES, STATE

KEY = STATE / "ssh" / "id_ed25519"
"""The private key that opens every lab host, as the users of `Distribution.logins`."""

KNOWN_HOSTS = STATE / "ssh" / "known_hosts"

MARKER = STATE / "README"
"""Marks the directory as the lab's own, so that `down` may remove all of it."""


def locked(name: str, say: Callable[[str], None] = quietly) -> contextlib.AbstractContextManager[None]:
    """Hold this lab's lock of that name; waits for another process that holds it. Does not nest."""
    waiting = "waiting for another process that is bringing the lab up or down"
    return exclusive(STATE / "run" / f"{name}.lock", say, waiting)


def host_directory(host: str) -> Path:
    """Return the directory of a host: its disk `root`, its simulated hardware `hardware`, `host.json`."""
    return STATE / "hosts" / host


def is_ours() -> bool:
    """Whether the state directory is missing, marked as the lab's, or holds only what the lab puts there."""
    if MARKER.exists() or not STATE.exists():
        return True
    return {path.name for path in STATE.iterdir()} <= {"run", "log", *SERVICES}


def claim() -> None:
    """Create the state directory and mark it as the lab's. Raises LabError when something else is in it."""
    if not is_ours():
        raise LabError(f"{STATE} contains files that are not the lab's: set RIGUP_LAB_STATE to an empty directory")
    STATE.mkdir(parents=True, exist_ok=True)
    if not MARKER.exists():
        MARKER.write_text("The state of rigup's lab; `python -m lab down` removes this directory with all in it.\n")


def login_key() -> Path:
    """Return the private key for all lab hosts; the first call generates it."""
    with locked("login-key"):
        if not KEY.exists():
            KEY.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            generate_key(KEY, "rigup-lab")
    return KEY


def generate_key(path: Path, comment: str) -> None:
    """Generate an ssh key pair at `path` and `path`.pub; an interrupted call leaves no half of one."""
    beside = path.with_name(f"{path.name}.new")
    public = path.with_name(f"{path.name}.new.pub")
    for stale in (beside, public):
        stale.unlink(missing_ok=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(beside)], check=True, timeout=30
    )
    public.replace(path.with_suffix(".pub"))
    beside.replace(path)


def remove_tree(path: Path) -> None:
    """Remove a directory that may hold a host's disk; unmount what is mounted in it first, never delete through it."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        mount = line.split()[4]
        if f"{mount}/".startswith(f"{path}/"):
            subprocess.run(["umount", mount], check=True, timeout=30)
    if path.exists():
        shutil.rmtree(path)
