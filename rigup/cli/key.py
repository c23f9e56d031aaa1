"""`rigup key`: the API key of an endpoint, from its host, on request only."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import paramiko

from rigup.config.inventory import Host, find_inventory, load_inventory
from rigup.errors import RigupError
from rigup.plan.model import key_file
from rigup.ssh import client as remote
from rigup.ssh.batch import Ask

__all__ = ["add_arguments", "command", "read"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("host", metavar="HOST", help="a host of the inventory")
    parser.add_argument("endpoint", metavar="ENDPOINT", nargs="?", help="needed where the host has several")
    parser.add_argument("--header", action="store_true", help="as the line of a request, for `curl -H @-`")
    parser.add_argument("--inventory", type=Path, metavar="FILE", help="the inventory file; by default the deploy's")


def command(options: argparse.Namespace) -> int:
    """Print the key; returns the exit code. Raises RigupError where there is none."""
    host = load_inventory(options.inventory or find_inventory(Path.cwd() / "inventory")).host(options.host)
    key = read(host, endpoint_of(host, options.endpoint))
    print(f"Authorization: Bearer {key}" if options.header else key)
    if sys.stdout.isatty():
        print("Keep it out of command lines: other users of the machine see those.", file=sys.stderr)
    return 0


def endpoint_of(host: Host, wanted: str | None) -> str:
    """The endpoint that is meant. Raises RigupError where it cannot be told, or has no key."""
    endpoints = host.settings.endpoints
    names = ", ".join(endpoints)
    if wanted is None and len(endpoints) > 1:
        raise RigupError(f"{host.name} has several endpoints: name one of {names}")
    name = wanted or next(iter(endpoints))
    if name not in endpoints:
        raise RigupError(f"{host.name} has no endpoint {name!r}: there are {names}")
    if not endpoints[name].is_public:
        raise RigupError(
            f"{host.name}: endpoint {name} is on the host's loopback alone and needs no key: "
            f"set endpoints.{name}.listen and allowed_networks to have it reachable from elsewhere, with a key"
        )
    return name


def read(host: Host, endpoint: str) -> str:
    """The key of an endpoint, from its host. Raises RigupError where it cannot be had."""
    path = key_file(endpoint)
    with remote.connect(host) as client:
        transport = client.get_transport()
        try:
            if transport is None:
                raise EOFError("it was closed")
            answer = remote.execute(transport, Ask(f"cat -- {shlex.quote(path)}", sudo=host.sudo))
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise remote.Unreachable(host, f"the connection broke: {error or type(error).__name__}") from error
    # Further keys may stand in further lines.
    keys = answer.stdout.decode(errors="replace").split()
    if answer.code or not keys:
        said = answer.stderr.decode(errors="replace").strip() or f"{path} is empty"
        raise RigupError(f"{host.name}: endpoint {endpoint} has no key yet ({said}): deploy first")
    return keys[0]
