"""Keeping generated boot files in step with what they are generated from.

Both operations look at the state, not at what this run has changed: a run that was killed between writing a drop-in and
regenerating is finished by the next one.
"""

from __future__ import annotations

from collections.abc import Generator

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation
from pyinfra.facts.server import Which

from rigup.facts.boot import Outdated

__all__ = ["grub", "initramfs"]

GRUB_DIRECTORY = "/boot/grub"
INITRD_PREFIX = "initrd.img-"


@operation()
def initramfs(source: str) -> Generator[StringCommand, None, None]:
    """Regenerate every initramfs that is older than ``source``, a file that is copied into it (modprobe options)."""
    stale = host.get_fact(Outdated, directory="/boot", pattern=f"{INITRD_PREFIX}*", source=source)
    if not stale:
        host.noop(f"every initramfs is newer than {source}")
        return
    for path in stale:
        yield StringCommand("update-initramfs -u -k", QuoteString(path.rsplit(INITRD_PREFIX, 1)[1]))


@operation()
def grub(source: str) -> Generator[str, None, None]:
    """Regenerate GRUB's menu when it is older than ``source``, a drop-in of /etc/default/grub.d."""
    if not host.get_fact(Which, command="update-grub"):
        host.noop("this host does not boot with GRUB")
        return
    if not host.get_fact(Outdated, directory=GRUB_DIRECTORY, pattern="grub.cfg", source=source):
        host.noop(f"grub.cfg is newer than {source}")
        return
    yield "update-grub"
