"""`rigup key`: the API key of an endpoint, read from its host on request only."""

from __future__ import annotations

import argparse
import shlex
import sys

from rigup.cli._hosts import add_host, add_inventory, find_endpoint, read_inventory
from rigup.cli._output import print_json
from rigup.cli._parser import Commands, add_json
from rigup.config.inventory import Host
from rigup.errors import RigupError
from rigup.paths import key_file
from rigup.ssh import client


def register(commands: Commands) -> None:
    """Add `rigup key`."""
    parser = commands.add_parser(
        "key",
        help="print the API key of an endpoint that other machines can reach",
        description="Reads the key from its host and prints it. It is stored nowhere else.",
    )
    add_host(parser, endpoints=True, help="the endpoint; its name may be left out if the host has only one")
    parser.add_argument("--header", action="store_true", help="print an HTTP header, for `curl -H @-`")
    add_json(parser, {"host": "its name", "endpoint": "its name", "key": "the API key"})
    add_inventory(parser)
    parser.set_defaults(run=_key)


def _key(options: argparse.Namespace) -> int:
    """Run `rigup key`. Raises RigupError if there is no key."""
    host, endpoint = find_endpoint(read_inventory(options), options.host)
    key = read_key(host, endpoint)
    if options.json:
        print_json({"host": host.name, "endpoint": endpoint, "key": key})
    else:
        print(f"Authorization: Bearer {key}" if options.header else key)
    if sys.stdout.isatty():
        print("Keep it out of command lines: other users of this machine can read them.", file=sys.stderr)
    return 0


def read_key(host: Host, endpoint: str) -> str:
    """Read the key of an endpoint from its host.

    Raises RigupError if the endpoint needs none or has none yet, or if the host is unreachable.
    """
    if not host.settings.endpoints[endpoint].is_public:
        raise RigupError(
            f"{host.name}: endpoint {endpoint} listens on loopback only and needs no key",
            f"to make it reachable from other machines, set endpoints.{endpoint}.listen and "
            f"endpoints.{endpoint}.allowed_networks",
        )
    path = key_file(endpoint)
    result = client.run(host, f"cat -- {shlex.quote(path)}")
    # More lines are more keys.
    keys = result.stdout.decode(errors="replace").split()
    if result.code or not keys:
        complaint = result.stderr.decode(errors="replace").strip() or f"{path} is empty"
        raise RigupError(f"{host.name}: endpoint {endpoint} has no key yet ({complaint})", "deploy first")
    return keys[0]
