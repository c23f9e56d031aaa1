"""Foresee what a deploy will change, from what each operation of a dry run reads and writes. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

# What facts and the states of units depend on, in addition to the paths, units and packages that they are read for:
# patterns of such words, and of facts. DriverState stands for the reboot, which depends on it.
_DEPENDS_ON: Mapping[str, Sequence[str]] = {
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
    """Return the plan's entries.

    Each of `entries` has ``step``, ``operation``, ``change``, ``conditional``, ``files`` and ``reads``: the facts that
    the operation reads (``fact NAME``) and the paths, units and packages that it reads them for. An operation that is
    about to change something is assumed to change what it reads.
    """
    pending: list[tuple[str, set[str]]] = []
    foreseen = []
    for entry in entries:
        reads = set(entry["reads"])
        after = [name for name, changes in pending if _depends(reads, changes)]
        result = "change" if entry["change"] else "unknown" if after else "nothing"
        if entry["change"] and entry["conditional"]:
            result = "unknown"
        if result == "change":
            pending.append((f"{entry['step']}: {entry['operation']}", reads))
        kept = {key: entry[key] for key in ("step", "operation")}
        foreseen.append({**kept, "result": result, "after": after, "files": entry["files"]})
    return foreseen


def _depends(reads: set[str], changes: set[str]) -> bool:
    # Many operations read the same fact, each for something else.
    if any(not word.startswith("fact ") for word in reads & changes):
        return True
    patterns = [pattern for word in reads for pattern in _DEPENDS_ON.get(word, ())]
    return any(fnmatchcase(word, pattern) for word in changes for pattern in patterns)


def hidden_because(*modes: str) -> str | None:
    """Return why a file with these modes, now and after the deploy, must not be shown, or None.

    Only what every user of the host may read is certainly not secret.
    """
    if all(int(mode, 8) & 0o004 for mode in modes):
        return None
    return "not shown: not every user may read it"


def difference(before: str, after: str) -> list[str]:
    """Return the lines of a unified diff, without the first two; logins in URLs are masked."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=2)
    return [_LOGIN_IN_URL.sub("***", line) for line in list(lines)[2:]]
