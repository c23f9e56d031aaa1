"""`rigup accept`: accept the new host key of a reinstalled or replaced host."""

from __future__ import annotations

import argparse
import sys

from rigup import commands
from rigup.cli._confirm import agreed
from rigup.cli._hosts import add_host, add_inventory, find_host, read_inventory
from rigup.cli._parser import Commands
from rigup.errors import RigupError
from rigup.ssh import connect, host_keys
from rigup.ssh.login import login_of
from rigup.ssh.transport import NoConnection


def register(subcommands: Commands) -> None:
    """Add `rigup accept`."""
    parser = subcommands.add_parser(
        "accept",
        help="accept the new host key of a reinstalled or replaced host",
        description="Shows the known host key and the one that the host presents now, and asks before it is accepted.",
        epilog="Exit codes: 0 accepted or already known, 1 not accepted.",
    )
    add_host(parser)
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    add_inventory(parser)
    parser.set_defaults(run=_accept)


def _accept(options: argparse.Namespace) -> int:
    """Run `rigup accept`. Raises RigupError if the host does not answer."""
    host = find_host(read_inventory(options), options.host)
    try:
        login = login_of(host)
        key = connect.presented(login)
    except NoConnection as error:
        raise RigupError(f"{host.name}: {error.message}", error.remedy) from error
    path, name = login.known_hosts[0], login.known_as
    lines = path.read_text().splitlines() if path.exists() else []
    others, known = host_keys.without(lines, name)
    if known == [key.fingerprint]:
        print(f"{host.name}: {key.fingerprint} is already known")
        return 0
    print(f"{host.name} ({name})")
    print(f"  known key:     {', '.join(known) or 'none'}")
    print(f"  presented key: {key.fingerprint}")
    print("On the host's console, `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` must print the presented key.")
    if not options.yes and not agreed(f"Accept this key for {host.name}?"):
        print("Nothing was changed.", file=sys.stderr)
        return 1
    host_keys.accept(path, others, name, key)
    print(f"Accepted in {path}. Next: `{commands.deploy([host.name])}`")
    return 0
