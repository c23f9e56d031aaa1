"""Boot files that are generated from others: the initramfs and the GRUB menu.

Both operations compare the files' times instead of what this run has changed: if a run is killed between writing a
drop-in and regenerating, the next one finishes it.
"""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.operation import OperationMeta, operation
from pyinfra.context import host
from pyinfra.facts.server import Which

from rigup.boot_loader import INITRD, release_in
from rigup.facts.kernel import Outdated
from rigup.operations._host import exclusive

Commands = Generator[StringCommand, None, None]

BOOT = "/boot"


def _foreseen(written: OperationMeta) -> bool:
    """Return whether the source is going to be written, while the deploy is being prepared."""
    return not written.is_complete() and written.will_change


@operation()
def initramfs(source: str, written: OperationMeta) -> Commands:
    """Regenerate every initramfs that is older than `source`, a file that is copied into it (module options).

    + written: the operation that writes `source`, so that a dry run can predict the change
    """
    if not host.get_fact(Which, command="update-initramfs"):
        host.noop("this host does not use initramfs-tools")
        return
    outdated = host.get_fact(Outdated, directory=BOOT, pattern=f"{INITRD}*", source=source)
    # DKMS and others keep old ones beside them.
    stale = [kernel for path in outdated if (kernel := release_in(path, INITRD))]
    if not stale and not _foreseen(written):
        host.noop(f"every initramfs is newer than {source}")
        return
    for kernel in stale or ["all"]:
        yield exclusive(BOOT, "update-initramfs -u -k", QuoteString(kernel))


@operation()
def grub(source: str, written: OperationMeta) -> Commands:
    """Regenerate the GRUB menu if it is older than `source`, a drop-in of /etc/default/grub.d.

    + written: the operation that writes `source`, so that a dry run can predict the change
    """
    if not host.get_fact(Which, command="update-grub"):
        host.noop("this host does not use GRUB")
        return
    stale = host.get_fact(Outdated, directory="/boot/grub", pattern="grub.cfg", source=source)
    if not stale and not _foreseen(written):
        host.noop(f"grub.cfg is newer than {source}")
        return
    yield exclusive(BOOT, "update-grub")
