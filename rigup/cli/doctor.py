"""`rigup doctor`: whether this machine has what rigup needs. It connects to no host."""

from __future__ import annotations

import argparse
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.text import Text

from rigup import commands, resources
from rigup.cli._hosts import add_inventory, read_inventory
from rigup.cli._output import print_json
from rigup.cli._parser import Commands, add_json
from rigup.cli._table import Table, show
from rigup.config.inventory import Inventory
from rigup.errors import RigupError
from rigup.lock import lockfile
from rigup.ssh import host_keys, identities
from rigup.ssh.login import Login, login_of
from rigup.text import size

PYTHON = (3, 11)
ROOM_BYTES = 1 << 30
"""For run records, remembered facts and published files under `.rigup/`: far more than they need."""

JSON = {"checks": "a list: check, result (ok, warn or fail), found, remedy"}
STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True)
class Check:
    """What was checked, whether it is `ok`, a reason to `warn` or to `fail`, what was found, and what to do."""

    check: str
    result: str
    found: str
    remedy: str = ""


def register(subcommands: Commands) -> None:
    """Add `rigup doctor`."""
    parser = subcommands.add_parser(
        "doctor",
        help="check that this machine has what rigup needs",
        description="Checks programs, ssh keys, the inventory and its known hosts, and free disk. It connects to no "
        "host; `rigup plan` does.",
        epilog="Exit codes: 0 nothing fails, 1 something fails.",
    )
    add_json(parser, JSON)
    add_inventory(parser)
    parser.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    checks = [*_machine(), *_hosts(options)]
    if options.json:
        print_json({"checks": [asdict(check) for check in checks]})
    else:
        rows = [(each.check, Text(each.result, STYLES[each.result]), each.found, each.remedy) for each in checks]
        show(Table("check", "result", "found", "what to do", rows=rows))
    return 1 if any(check.result == "fail" for check in checks) else 0


def _machine() -> Iterator[Check]:
    """Check what does not depend on the inventory."""
    found = ".".join(map(str, sys.version_info[:3]))
    wanted = ".".join(map(str, PYTHON))
    if sys.version_info[:2] < PYTHON:
        yield Check("python", "fail", found, f"install Python {wanted} or newer")
    else:
        yield Check("python", "ok", found)
    yield _program("ssh", "-V", "fail", "install openssh-client: rigup reads its configuration with `ssh -G`")
    yield _program("git", "--version", "warn", "install git, to keep the history of your project")
    missing = [path for path in (resources.FILES, resources.RECIPES, resources.DEPLOY) if not path.exists()]
    if missing:
        yield Check("data files", "fail", f"no {', '.join(map(str, missing))}", "install rigup again")
    else:
        yield Check("data files", "ok", str(resources.FILES.parent))
    free = shutil.disk_usage(Path.cwd()).free
    if not os.access(Path.cwd(), os.W_OK):
        yield Check("disk", "fail", f"{Path.cwd()} is not writable", "change to a directory that is: runs are recorded")
    elif free < ROOM_BYTES:
        yield Check("disk", "warn", f"{size(free, binary=True)} free in {Path.cwd()}", "free 1 GiB for .rigup/")
    else:
        yield Check("disk", "ok", f"{size(free, binary=True)} free in {Path.cwd()}")


def _program(name: str, argument: str, otherwise: str, remedy: str) -> Check:
    try:
        done = subprocess.run([name, argument], capture_output=True, text=True, errors="replace")
    except OSError as error:
        return Check(name, otherwise, f"cannot be run: {error.strerror}", remedy)
    if done.returncode:
        return Check(name, otherwise, f"`{name} {argument}` exits with {done.returncode}", remedy)
    return Check(name, "ok", (done.stdout or done.stderr).strip().partition("\n")[0])


def _hosts(options: argparse.Namespace) -> Iterator[Check]:
    """Check the inventory, its lock, and how its hosts would be reached."""
    try:
        inventory = read_inventory(options)
    except RigupError as error:
        yield Check("inventory", "fail", error.message, error.remedy)
        return
    count = len(inventory.hosts)
    yield Check("inventory", "ok", f"{inventory.path}: {count} host{'s' if count != 1 else ''}")
    try:
        entries = len(lockfile.read(inventory.lock).flat())
        yield Check("lock", "ok", f"{entries} entries" if inventory.lock.exists() else "none yet")
    except RigupError as error:
        yield Check("lock", "fail", error.message, error.remedy)
    try:
        logins = {name: login_of(host) for name, host in inventory.hosts.items()}
    except RigupError as error:
        yield Check("ssh configuration", "fail", error.message, error.remedy)
        return
    yield from _agents(logins)
    yield from _keys(inventory, logins)
    yield from _known_hosts(logins)


def _agents(logins: dict[str, Login]) -> Iterator[Check]:
    for path in sorted({login.agent for login in logins.values() if login.agent}):
        if identities.agent_answers(path):
            yield Check("ssh agent", "ok", path)
        else:
            yield Check("ssh agent", "warn", f"{path} does not answer", "start it, or unset SSH_AUTH_SOCK")


def _keys(inventory: Inventory, logins: dict[str, Login]) -> Iterator[Check]:
    """Check that there is a key to offer to each host, and that nobody else can read the files."""
    without, problems = list[str](), list[str]()
    for name, login in logins.items():
        keys, unusable = identities.offers(login)
        if not keys:
            without.append(name)
        own = inventory.hosts[name].connection.key
        problems += [error.message for error in unusable if own or "does not exist" not in error.message]
    if without:
        remedy = "; ".join(dict.fromkeys(problems)) or "create one with `ssh-keygen`, or load it with `ssh-add`"
        yield Check("ssh keys", "fail", f"no key to offer to {', '.join(without)}", remedy)
    else:
        yield Check("ssh keys", "ok", "a key to offer to each host")
    for path in sorted({key for login in logins.values() for key in login.keys if key.is_file()}):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077 and path.suffix != ".pub":
            yield Check("ssh keys", "warn", f"{path} has mode {mode:o}; ssh refuses it", f"run `chmod 600 {path}`")


def _known_hosts(logins: dict[str, Login]) -> Iterator[Check]:
    try:
        unknown = [name for name, login in logins.items() if not host_keys.load(login.known_hosts).of(login.known_as)]
    except RigupError as error:
        yield Check("known hosts", "fail", error.message, error.remedy)
        return
    strict = [name for name in unknown if logins[name].is_strict]
    if strict:
        remedy = f"run `{commands.rigup('accept', strict[0])}`: ssh's configuration refuses unknown keys"
        yield Check("known hosts", "fail", f"no known key of {', '.join(strict)}", remedy)
    elif unknown:
        remedy = "none needed: the key that a host presents first is kept"
        yield Check("known hosts", "warn", f"no known key of {', '.join(unknown)}", remedy)
    else:
        yield Check("known hosts", "ok", "a known key of each host")
