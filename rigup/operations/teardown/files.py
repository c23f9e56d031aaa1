"""Remove our files, our keys in files of others, and checkpoints; restore what others had in their place."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host

from rigup.facts.ledger import Sums
from rigup.facts.serving import incoming_path, shared_path, stamp_path
from rigup.ledger import Ledger, backup_of, unmerge
from rigup.operations._host import Commands, check, exclusive, read_now, run, work
from rigup.operations.boot import BOOT
from rigup.operations.files import place
from rigup.operations.teardown.kept import Kept, save
from rigup.paths import BEFORE
from rigup.text import from_json

BOOT_FILES = {"/etc/default/grub.d/": "update-grub", "/etc/modprobe.d/": "update-initramfs -u -k all"}


@operation()
def keys_removed(ledger: Ledger, kept: Kept) -> Commands:
    """Remove our keys from JSON files of others, and restore the values that they had before."""
    if not ledger.keys:
        host.noop("no deploy has merged keys into files of others")
        return

    def remove(host: Host) -> None:
        for path, ours in ledger.keys.items():
            present, before = _object(host, path), _object(host, f"{BEFORE}{path}")
            if present is not None:
                left = unmerge(present, ours, before or {})
                kept.notes += [f"{key} in {path}, which was changed since" for key in left.kept]
                if before is not None and left.values == before:
                    _restore(host, path)
                elif before is None and not left.values:
                    check(host, "rm -f --", QuoteString(path), failing=f"could not remove {path} on {host.name}")
                elif left.values != present:
                    _rewrite(host, path, left.values)
            run(host, "rm -f --", QuoteString(backup_of(path)))

    yield work(remove, "remove keys")


def _rewrite(host: Host, path: str, values: Mapping[str, Any]) -> None:
    mode, user, group = check(host, "stat -c '%a %U %G' --", QuoteString(path), failing=path).lines[0].split()
    content = (json.dumps(values, indent=4) + "\n").encode()
    place(host, path, content, mode=mode, user=user, group=group, keys={})


def _object(host: Host, path: str) -> dict[str, Any] | None:
    result = run(host, "cat --", QuoteString(path), "2>/dev/null")
    if not result.ok:
        return None
    try:
        found = from_json("\n".join(result.lines) or "{}")
    except ValueError as error:
        raise OperationError(f"{path} on {host.name} is not JSON: {error}. Fix or move it and run again.") from error
    return found if isinstance(found, dict) else {}


def _restore(host: Host, path: str) -> None:
    check(
        host,
        StringCommand("cp -a --", QuoteString(f"{BEFORE}{path}"), QuoteString(path)),
        failing=f"could not restore the old {path} of {host.name}",
    )


@operation()
def files_restored(ledger: Ledger, kept: Kept) -> Commands:
    """Remove our files and restore those that they replaced; files that were changed by hand are saved first."""
    if not ledger.files:
        host.noop("no deploy has written files")
        return

    def restore(host: Host) -> None:
        paths = sorted(ledger.files)
        sums = read_now(host, Sums, paths)
        for path in paths:
            present, before = sums.get(path), sums.get(f"{BEFORE}{path}")
            if present is not None and present not in ledger.files[path] and present != before:
                save(host, path, kept)
            if before is not None and present != before:
                _restore(host, path)
            elif present is not None and before is None:
                check(host, "rm -f --", QuoteString(path), failing=f"could not remove {path} on {host.name}")
            run(host, "rm -f --", QuoteString(backup_of(path)))
        for directory in sorted(ledger.directories, reverse=True):
            run(host, "rmdir --", QuoteString(directory), "2>/dev/null")
        for directory, command in BOOT_FILES.items():
            if any(path.startswith(directory) for path in paths):
                program = command.partition(" ")[0]
                check(
                    host,
                    f"if command -v {program} >/dev/null; then",
                    exclusive(BOOT, command),
                    "; fi",
                    failing=f"`{command}` failed on {host.name}",
                )
        check(host, "systemctl daemon-reload", failing=f"systemd on {host.name} could not reload its units")
        # The sources are gone, so update apt's lists. Without a network that can wait.
        run(host, "apt-get --quiet=2 update")

    yield work(restore, "restore files")


@operation()
def store_removed(ledger: Ledger, mounts: Sequence[str] = ()) -> Commands:
    """Remove the checkpoints that deploys have downloaded, and parent directories that are empty then.

    `mounts` are the units that mount their disk; it is an error if it cannot be mounted.
    """
    if not ledger.checkpoints:
        host.noop("no deploy has downloaded checkpoints")
        return

    def remove(host: Host) -> None:
        for unit in mounts:
            check(
                host,
                "systemctl start --",
                QuoteString(unit),
                failing=f"the disk with the checkpoints of {host.name} is not mounted, so they cannot be removed. "
                "Mount it and run again, or run without remove_store",
            )
        for path in ledger.checkpoints:
            gone = (path, stamp_path(path), shared_path(path), incoming_path(path))
            check(host, "rm -rf --", *map(QuoteString, gone), failing=f"could not remove {path} on {host.name}")
            run(host, "rmdir -p --ignore-fail-on-non-empty --", QuoteString(posixpath.dirname(path)), "2>/dev/null")

    yield work(remove, "remove checkpoints")
