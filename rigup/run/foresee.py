"""TODO."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

__all__ = [
    "difference",
    "foresee",
    "hidden_because",
]


# What the answers of facts and the states of units rest on, beside the paths, units and packages that the facts are
# asked about: patterns of such words, and of facts. DriverState stands for the reboot, which is decided by it.
_RESTS_ON: Mapping[str, Sequence[str]] = {
    "fact DriverState": ("nvidia-driver-*", "nvidia-kernel-*", "nvidia-dkms-*", "linux-headers-*"),
    "fact KernelState": ("/etc/default/grub.d/*",),
    "fact ModuleParameters": ("/etc/modprobe.d/*",),
    "fact CdiDevices": ("nvidia-container-toolkit-base", "fact DriverState"),
    "fact ImageDigests": ("docker-ce", "containerd.io"),
    "fact UnitState": ("fact DriverState",),
    "fact Verification": ("fact DriverState",),
    "docker.service": ("docker-ce", "containerd.io"),
    "nvidia-cdi-refresh.service": ("nvidia-container-toolkit-base",),
    "nvidia-persistenced.service": ("nvidia-persistenced",),
}


_LOGIN_IN_URL = re.compile(r"(?<=://)[^/@\s\"']+(?=@)")


def foresee(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The plan's entries, from what each operation said and looked at.

    Each of `entries` has ``step``, ``operation``, ``change``, ``conditional``, ``files`` and ``looks_at``: the facts it
    read (``fact NAME``) and the paths, units and packages it read them about. An operation that is about to change
    something is taken to change what it looked at.
    """
    pending: list[tuple[str, set[str]]] = []
    foreseen = []
    for entry in entries:
        looks_at = set(entry["looks_at"])
        after = [name for name, changes in pending if _touches(looks_at, changes)]
        result = "change" if entry["change"] else "unknown" if after else "nothing"
        if entry["change"] and entry["conditional"]:
            result = "unknown"
        if result == "change":
            pending.append((f"{entry['step']}: {entry['operation']}", looks_at))
        kept = {key: entry[key] for key in ("step", "operation")}
        foreseen.append({**kept, "result": result, "after": after, "files": entry["files"]})
    return foreseen


def _touches(looks_at: set[str], changes: set[str]) -> bool:
    # Many operations read the same fact, each about something else.
    if any(not word.startswith("fact ") for word in looks_at & changes):
        return True
    patterns = [pattern for word in looks_at for pattern in _RESTS_ON.get(word, ())]
    return any(fnmatchcase(word, pattern) for word in changes for pattern in patterns)


def hidden_because(*modes: str) -> str | None:
    """Why a file of these modes, now and in future, is not to be shown, if so.

    Only what every user of the host may read is surely no secret.
    """
    if all(int(mode, 8) & 0o004 for mode in modes):
        return None
    return "not shown, as not everybody may read it"


def difference(before: str, after: str) -> list[str]:
    """The lines of a unified diff, without its two first ones; logins in URLs are masked."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=2)
    return [_LOGIN_IN_URL.sub("***", line) for line in list(lines)[2:]]
