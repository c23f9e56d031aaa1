"""TODO."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rigup.cli._confirm import agreed
from rigup.config.inventory import find_inventory, load_inventory
from rigup.ssh.host_keys import accept, known_as, known_file, presented, without

__all__ = [
    "add_arguments",
    "command",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("host", metavar="HOST", help="a host of the inventory")
    parser.add_argument("-y", "--yes", action="store_true", help="without asking")
    parser.add_argument("--inventory", type=Path, metavar="FILE", help="the inventory file; by default the deploy's")


def command(options: argparse.Namespace) -> int:
    """Run `rigup accept`; returns its exit code. Raises RigupError where the host does not answer."""
    host = load_inventory(options.inventory or find_inventory(Path.cwd() / "inventory")).host(options.host)
    way, key = host.connection, presented(host)
    path = known_file(way)
    lines = path.read_text().splitlines() if path.exists() else []
    kept, before = without(lines, known_as(way))
    if before == [key.fingerprint]:
        print(f"{host.name}: {key.fingerprint} is known already")
        return 0
    print(f"{host.name} ({known_as(way)})")
    print(f"  known:    {', '.join(before) or 'nothing'}")
    print(f"  it shows: {key.fingerprint}")
    print("On its console, `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` must print the same.")
    if not options.yes and not agreed(f"Accept this key for {host.name}?"):
        print("Nothing was changed.", file=sys.stderr)
        return 1
    accept(path, kept, known_as(way), key)
    print(f"Accepted, in {path}. `pyinfra inventory/lab.py deploy.py --limit {host.name}` brings it into service.")
    return 0
