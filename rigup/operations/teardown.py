"""Taking back what a deploy has added, step by step: each can be cut short and done again.

What others own, or have changed since, is kept and said. The ledger is the last thing to go, so a rebuild that was cut
short anywhere knows all that there was.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Generator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from gevent.lock import RLock
from pyinfra.api.command import FunctionCommand, QuoteString, StringCommand
from pyinfra.api.exceptions import OperationError
from pyinfra.api.host import Host
from pyinfra.api.operation import operation
from pyinfra.context import host, state

from rigup import ledger
from rigup.facts.kernel import KernelState, parse_kernel_state
from rigup.facts.ledger import SEARCHED, STAGED, Remains, Sums, links_of, parse_remains, parse_sums, remains_of
from rigup.facts.packages import Conffiles, parse_edited
from rigup.facts.serving import incoming_path, shared_path, stamp_path
from rigup.ledger import ACCOUNTS, BEFORE, EMPTIED, LEFTOVERS, ROOM, ROOMS, Ledger, backup_of, unmerge
from rigup.operations import apt
from rigup.operations._host import alone, check, duration, run, say, work
from rigup.operations._units import wait_for_leftover
from rigup.operations.boot import BOOT
from rigup.operations.files import place
from rigup.operations.reboot import reboot_and_wait

__all__ = [
    "Kept",
    "closed",
    "confirmed",
    "docker_emptied",
    "files_restored",
    "keys_removed",
    "packages_purged",
    "rebooted",
    "rooms_removed",
    "stopped",
    "store_removed",
    "unmounted",
    "users_removed",
]

Commands = Generator[FunctionCommand, None, None]

SAVED = "/var/backups/rigup"
DOCKER_DATA = ("/var/lib/docker", "/var/lib/containerd")
BOOT_FILES = {"/etc/default/grub.d/": "update-grub", "/etc/modprobe.d/": "update-initramfs -u -k all"}

_asking = RLock()


@dataclass
class Kept:
    """What stays on one host because it belongs to others, for the end of the run."""

    packages: set[str] = field(default_factory=set)
    docker: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def tell(self, what: str) -> None:
        self.told.append(what)


@operation()
def confirmed() -> Commands:
    """Have a person type the host's name, unless the run was started with `-y`."""
    if not state.check_for_changes:
        host.noop("started with -y")
        return

    def ask(host: Host) -> None:
        with _asking:
            try:
                answer = input(f"\n    {host.name} goes back to bare. Type its name to begin: ")
            except EOFError:
                answer = ""
        if answer.strip() != host.name:
            raise OperationError(f"{host.name} stays as it is: its name was not typed (-y begins without asking)")

    yield work(ask, "ask")


@operation()
def stopped(book: Ledger, mounts: Sequence[str] = (), timeout: float = 3600) -> Commands:
    """Have none of our units running or starting at boot, but for `mounts`.

    What apt does for a deploy that was cut off is waited for, at most `timeout` seconds: dpkg is not to be killed.
    """

    def stop(host: Host) -> None:
        wait_for_leftover(host, apt.UNIT, "apt", timeout)
        # Never none: systemctl would list what there is.
        names = [QuoteString(unit) for unit in (*book.units, *book.commands) if unit not in mounts]
        listing = "systemctl list-units --all --plain --no-legend --no-pager --full --"
        files = "systemctl list-unit-files --plain --no-legend --no-pager --state=enabled --"
        there = [line.split()[0] for line in run(host, listing, *names).lines if line.strip()]
        there += [line.split()[0] for line in run(host, files, *names).lines if line.strip()]
        # Ours first: a switch would start again what was stopped under it.
        for unit in sorted(dict.fromkeys(there), key=lambda unit: not unit.startswith("rigup-")):
            say(host, f"stopping {unit}")
            run(host, "systemctl disable --quiet --now --", QuoteString(unit))
            check(host, "systemctl stop --", QuoteString(unit), failing=f"could not stop {unit} on {host.name}")
            run(host, "systemctl reset-failed --", QuoteString(unit))
        # The gateways' table; each gateway's stop took its own chain.
        run(host, "command -v nft && nft delete table inet rigup")

    yield work(stop, "stop units")


@operation()
def unmounted(mounts: Sequence[str]) -> Commands:
    """Have the store's own disk mounted no more, neither now nor at boot."""
    if not mounts:
        host.noop("the store has no disk of its own")
        return

    def unmount(host: Host) -> None:
        for unit in mounts:
            name = QuoteString(unit)
            run(host, "systemctl disable --quiet --", name)
            if run(host, "systemctl is-active --quiet --", name).ok:
                check(host, "systemctl stop --", name, failing=f"could not unmount the store's disk of {host.name}")

    yield work(unmount, "unmount the store")


@operation()
def docker_emptied(book: Ledger, kept: Kept) -> Commands:
    """Have our images gone, and Docker's store with them where Docker came with us and holds nothing of others."""
    if not book.images and not book.volumes and "docker-ce" not in book.packages:
        host.noop("Docker holds nothing of ours")
        return

    def empty(host: Host) -> None:
        if not run(host, "command -v dockerd").ok:
            return
        run(host, "systemctl start docker.service")
        for name in run(host, "docker ps --all --filter label=rigup.plan --format '{{.Names}}'").lines:
            run(host, "docker rm --force --", QuoteString(name))
        for volume in book.volumes:
            run(host, "docker volume rm --force --", QuoteString(volume))
        for image in book.images:
            run(host, "docker image rm --", QuoteString(image))
        if "docker-ce" not in book.packages:
            return
        for kind, listing in (
            ("container", "docker ps --all --format '{{.Names}}'"),
            ("volume", "docker volume ls --format '{{.Name}}'"),
            ("image", "docker image ls --format '{{.Repository}}:{{.Tag}}'"),
        ):
            answer = check(host, listing, failing=f"could not ask Docker on {host.name} what it holds")
            kept.docker += [f"{kind} {name}" for name in dict.fromkeys(answer.lines) if name.strip()]
        if kept.docker:
            kept.tell(f"Docker itself, which holds {_some(kept.docker)}")
            return
        check(
            host,
            "systemctl stop docker.socket docker.service containerd.service",
            failing=f"could not stop Docker on {host.name}",
        )
        for path in DOCKER_DATA:
            # Renamed first: Docker can start on an empty store, but not on half of one.
            aside = QuoteString(f"{path}.rigup-old")
            check(
                host,
                StringCommand("rm -rf --", aside, "&& { test ! -d", QuoteString(path)),
                StringCommand("|| mv -T --", QuoteString(path), aside, "; } && rm -rf --", aside),
                failing=f"could not remove {path} on {host.name}",
            )

    yield work(empty, "empty Docker")


@operation()
def keys_removed(book: Ledger, kept: Kept) -> Commands:
    """Have our keys gone from JSON files of others, and what they had there before put back."""
    if not book.keys:
        host.noop("no keys of ours in files of others")
        return

    def remove(host: Host) -> None:
        for path, ours in book.keys.items():
            present, before = _object(host, path), _object(host, f"{BEFORE}{path}")
            if present is not None:
                left = unmerge(present, ours, before or {})
                for key in left.kept:
                    kept.tell(f"{key} in {path}, which was changed since")
                if before is not None and left.values == before:
                    _put_back(host, path)
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
    answer = run(host, "cat --", QuoteString(path), "2>/dev/null")
    if not answer.ok:
        return None
    try:
        found = json.loads("\n".join(answer.lines) or "{}")
    except ValueError as error:
        raise OperationError(f"{path} on {host.name} is no JSON: {error}. Mend or move it and run again.") from error
    return found if isinstance(found, dict) else {}


def _put_back(host: Host, path: str) -> None:
    check(
        host,
        StringCommand("cp -a --", QuoteString(f"{BEFORE}{path}"), QuoteString(path)),
        failing=f"could not put the old {path} of {host.name} back",
    )


@operation()
def packages_purged(book: Ledger, kept: Kept, timeout: float = 3600) -> Commands:
    """Have the packages gone that came with a deploy, except those that packages of others need by now."""
    if not book.packages:
        host.noop("no package came with a deploy")
        return

    def purge(host: Host) -> None:
        ours = set(book.packages)
        if kept.docker:
            # Who has containers here needs Docker as it is.
            kept.packages |= apt.with_what_they_need(host, ours, [*filter(_is_docker, ours)])
        kept.packages |= apt.needed_by_others(host, ours - kept.packages, timeout)
        _keep_edited(host, book, ours - kept.packages, kept)
        apt.purge(host, ours - kept.packages, timeout)
        for package in (ours - kept.packages) & LEFTOVERS.keys():
            run(host, "rm -rf --", QuoteString(LEFTOVERS[package]))
        if kept.packages:
            kept.tell(f"packages that others need: {_some(sorted(kept.packages))}")

    yield work(purge, "purge packages")


def _keep_edited(host: Host, book: Ledger, packages: Set[str], kept: Kept) -> None:
    """Put the configuration of these packages aside that somebody has edited: a purge removes it."""
    edited = parse_edited(list(run(host, Conffiles().command(sorted(packages))).lines))
    for path in sorted(edited - book.files.keys() - book.keys.keys()):
        _put_aside(host, path, kept)


def _put_aside(host: Host, path: str, kept: Kept) -> None:
    saved = f"{SAVED}{path}"
    kept.tell(f"{path} as it was changed by hand: now {saved}")
    check(
        host,
        StringCommand("( umask 077 && mkdir -p --", QuoteString(posixpath.dirname(saved)), ") && cp -a --"),
        StringCommand(QuoteString(path), QuoteString(saved)),
        failing=f"could not keep {path} of {host.name}",
    )


def _is_docker(package: str) -> bool:
    return package.startswith(("docker-", "containerd"))


@operation()
def files_restored(book: Ledger, kept: Kept) -> Commands:
    """Have our files gone, and what stood in their place before put back; what was changed by hand is kept aside."""
    if not book.files:
        host.noop("no files of ours")
        return

    def restore(host: Host) -> None:
        paths = sorted(book.files)
        sums = parse_sums(list(run(host, Sums().command(paths)).lines))
        for path in paths:
            there, before = sums.get(path), sums.get(f"{BEFORE}{path}")
            if there is not None and there not in book.files[path] and there != before:
                _put_aside(host, path, kept)
            if before is not None and there != before:
                _put_back(host, path)
            elif there is not None and before is None:
                check(host, "rm -f --", QuoteString(path), failing=f"could not remove {path} on {host.name}")
            run(host, "rm -f --", QuoteString(backup_of(path)))
        for directory in sorted(book.directories, reverse=True):
            run(host, "rmdir --", QuoteString(directory), "2>/dev/null")
        for place_, command in BOOT_FILES.items():
            if any(path.startswith(place_) for path in paths):
                program = command.partition(" ")[0]
                check(
                    host,
                    f"if command -v {program} >/dev/null; then",
                    alone(BOOT, command),
                    "; fi",
                    failing=f"`{command}` failed on {host.name}",
                )
        check(host, "systemctl daemon-reload", failing=f"systemd on {host.name} could not read its units again")
        # The sources are gone, and so shall be what apt knows from them; without a network that is for later.
        run(host, "apt-get --quiet=2 update")

    yield work(restore, "restore files")


@operation()
def users_removed(book: Ledger, kept: Kept) -> Commands:
    """Have the users and groups gone that came with a deploy; what the store keeps of theirs becomes root's."""
    if not book.users and not book.packages:
        host.noop("no users of ours")
        return

    def remove(host: Host) -> None:
        places = [QuoteString(place) for place in sorted({posixpath.dirname(path) for path in book.checkpoints})]
        for user in book.users:
            name = QuoteString(user)
            if not run(host, "getent passwd", name).ok:
                continue
            if places:
                run(host, "find", *places, "-user", name, "-exec chown -h root:root {} +")
            check(host, "userdel --", name, failing=f"could not remove the user {user} of {host.name}")
        for package, (kind, account) in ACCOUNTS.items():
            if package in book.packages and package not in kept.packages and not book.removed:
                _forget_account(host, kind, account, kept)

    yield work(remove, "remove users")


def _forget_account(host: Host, kind: str, account: str, kept: Kept) -> None:
    database = "passwd" if kind == "user" else "group"
    found = run(host, "getent", database, QuoteString(account))
    if not found.ok:
        return
    if kind == "group" and (members := found.lines[0].split(":")[-1]):
        kept.tell(f"the group {account}, which has members: {members}")
        return
    check(host, f"{kind}del --", QuoteString(account), failing=f"could not remove the {kind} {account} of {host.name}")


@operation()
def store_removed(book: Ledger, mounts: Sequence[str] = ()) -> Commands:
    """Have the checkpoints gone that came with a deploy, and the directories above them where nothing else is left.

    `mounts` are the units that mount the disk they lie on; one that cannot be mounted is an error.
    """
    if not book.checkpoints:
        host.noop("no checkpoint came with a deploy")
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
        for path in book.checkpoints:
            gone = (path, stamp_path(path), shared_path(path), incoming_path(path))
            check(host, "rm -rf --", *map(QuoteString, gone), failing=f"could not remove {path} on {host.name}")
            run(host, "rmdir -p --ignore-fail-on-non-empty --", QuoteString(posixpath.dirname(path)), "2>/dev/null")

    yield work(remove, "remove checkpoints")


@operation()
def rebooted(book: Ledger, kernel_args: Sequence[str], allowed: bool, timeout: float, kept: Kept) -> Commands:
    """Have a kernel running that was booted without our driver and our arguments."""
    if not book.packages and not book.files:
        host.noop("nothing of ours runs")
        return

    def reboot(host: Host) -> None:
        kernel = parse_kernel_state(list(run(host, KernelState().command()).lines))
        why = [f"it was booted with {argument}" for argument in kernel_args if argument in kernel.arguments]
        if run(host, "test -d /sys/module/nvidia").ok and not run(host, "modinfo nvidia >/dev/null 2>&1").ok:
            why.append("the NVIDIA module is loaded")
        if not why:
            return
        if not allowed:
            kept.tell(f"until the next boot: {'; '.join(why)} (the setting `reboot` is `never`)")
            return
        say(host, f"rebooting: {'; '.join(why)}")
        say(host, f"back after {duration(reboot_and_wait(host, timeout))}")

    yield work(reboot, "reboot")


@operation()
def rooms_removed(book: Ledger) -> Commands:
    """Have the directories gone that are wholly ours, and what was cut short; the ledger's stays."""

    def remove(host: Host) -> None:
        rooms = [QuoteString(room) for room in ROOMS if room != ROOM]
        failing = f"could not remove our directories on {host.name}"
        check(host, "rm -rf --", *rooms, *links_of(book), failing=failing)
        run(host, "find", *SEARCHED, f"-xdev -maxdepth 5 -name '{STAGED}' -prune -exec rm -rf -- {{}} +")
        for directory in EMPTIED:
            run(host, "rmdir --", QuoteString(directory), "2>/dev/null")

    yield work(remove, "remove rooms")


@operation()
def closed(book: Ledger, kept: Kept) -> Commands:
    """Look for everything that a deploy has added, fail where something is left, then remove the ledger."""

    def prove(host: Host) -> None:
        remains = parse_remains(list(run(host, Remains().command(**remains_of(book))).lines))
        sums = parse_sums(list(run(host, Sums().command(sorted(book.files))).lines))
        # What others had at a path of ours is theirs again.
        restored = {path for path in book.files if sums.get(path) == sums.get(f"{BEFORE}{path}")}
        expected = {f"package {name}" for name in kept.packages} | {ROOM} | restored
        if left := [word for word in remains.words() if word not in expected]:
            raise OperationError(f"{host.name} is not bare yet: {_some(left)}. See why, and run again.")
        say(host, f"nothing is left of {_counted(book)}")
        for path in remains.named:
            kept.tell(f"{path}, which no deploy has made")
        for line in kept.told:
            say(host, f"kept: {line}")
        if book.removed:
            say(host, f"not brought back: {_some(sorted(book.removed))}, which made way for packages of the deploy")
        check(host, "rm -rf --", QuoteString(ledger.ROOM), failing=f"could not remove {ROOM} on {host.name}")

    yield work(prove, "prove")


def _counted(book: Ledger) -> str:
    counts = {"packages": book.packages, "files": book.files, "users": book.users, "images": book.images}
    return ", ".join(f"{len(things)} {kind}" for kind, things in counts.items()) + " and our directories"


def _some(words: Sequence[str], limit: int = 12) -> str:
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more
