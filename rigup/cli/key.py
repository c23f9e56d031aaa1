"""`rigup key`: the API key of an endpoint, read from its host on request only."""

from __future__ import annotations

import argparse
import shlex
import sys

from rigup import commands
from rigup.cli._hosts import add_host, add_inventory, find_endpoint, read_inventory
from rigup.cli._output import print_json
from rigup.cli._parser import Commands, add_json
from rigup.config.inventory import Host, Inventory
from rigup.config.load_balancer import LoadBalancer
from rigup.errors import RigupError, suggestion
from rigup.paths import client_key_file, key_file
from rigup.ssh import client

JSON = {
    "host": "its name",
    "endpoint": "its name; with --load-balancer, the name of the key",
    "key": "the API key",
}


def register(parsers: Commands) -> None:
    """Add `rigup key`."""
    parser = parsers.add_parser(
        "key",
        help="print the API key of an endpoint that other machines can reach",
        description="Reads the key from its host and prints it. It is stored nowhere else.",
    )
    add_host(parser, "?", endpoints=True, help="the endpoint; its name may be left out if the host has only one")
    parser.add_argument(
        "--load-balancer",
        nargs="?",
        const="default",
        metavar="KEY",
        help="a key of the load balancer instead, by its name (default: `default`)",
    )
    parser.add_argument("--header", action="store_true", help="print an HTTP header, for `curl -H @-`")
    add_json(parser, JSON)
    add_inventory(parser)
    parser.set_defaults(run=_key)


def _key(options: argparse.Namespace) -> int:
    """Run `rigup key`. Raises RigupError if there is no key, and unless one is named."""
    inventory = read_inventory(options)
    if (options.host is None) == (options.load_balancer is None):
        raise RigupError("name either an endpoint or --load-balancer", f"for example `{commands.rigup('key', 'HOST')}`")
    if options.load_balancer is not None:
        host, endpoint = inventory.host(_balancer_of(inventory, options.load_balancer).hosts[0]), options.load_balancer
        key = _read(host, client_key_file(endpoint), f"the load balancer has no key {endpoint} yet")
    else:
        host, endpoint = find_endpoint(inventory, options.host)
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
    return _read(host, key_file(endpoint), f"endpoint {endpoint} has no key yet")


def _balancer_of(inventory: Inventory, key: str) -> LoadBalancer:
    """Return the load balancer. Raises RigupError if there is none, or if it has no such key, with similar names."""
    balancer = inventory.load_balancer
    if balancer is None:
        raise RigupError(f"{inventory.path} has no load balancer", "add `load_balancer:`; `rigup settings` explains it")
    if key not in balancer.keys:
        raise RigupError(
            f"the load balancer has no key {key!r}",
            suggestion(key, balancer.keys, f"keys: {', '.join(balancer.keys)}"),
        )
    return balancer


def _read(host: Host, path: str, missing: str) -> str:
    """Read the key in a file on a host. Raises RigupError if there is none."""
    result = client.run(host, f"cat -- {shlex.quote(path)}")
    # More lines are more keys.
    keys = result.stdout.decode(errors="replace").split()
    if result.code or not keys:
        complaint = result.stderr.decode(errors="replace").strip() or f"{path} is empty"
        raise RigupError(f"{host.name}: {missing} ({complaint})", "deploy first")
    return keys[0]
