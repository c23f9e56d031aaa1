"""`rigup topology`: how a host's GPUs are connected, and what follows."""

from __future__ import annotations

import argparse

from pyinfra.api.exceptions import FactProcessError

from rigup.cli._facts import Facts
from rigup.cli._hosts import add_inventory, find_host, read_inventory
from rigup.cli._parser import Commands
from rigup.errors import RigupError
from rigup.facts.pci import AccessControl, PciTopology
from rigup.hardware.topology import consequences, drawing
from rigup.ssh.client import Client


def register(commands: Commands) -> None:
    """Add `rigup topology`."""
    parser = commands.add_parser(
        "topology",
        help="draw how a host's GPUs are connected",
        description="Draws sockets, PCIe switches, GPUs and their links, and says what follows for engines. It changes "
        "nothing. An idle GPU may show a slower link than under load.",
    )
    parser.add_argument("host", metavar="HOST", help="a host of the inventory")
    add_inventory(parser)
    parser.set_defaults(run=_topology)


def _topology(options: argparse.Namespace) -> int:
    """Run `rigup topology`. Raises RigupError if the host cannot be read."""
    host = find_host(read_inventory(options), options.host)
    with Client(host) as client:
        try:
            facts = Facts(client)
            bus = facts.add(PciTopology())
            facts.read()
            topology = bus().topology
            facts = Facts(client)
            control = facts.add(AccessControl(), ports=topology.ports)
            facts.read()
            lines = [*drawing(topology), "", *consequences(topology, control())]
        except FactProcessError as error:
            raise RigupError(f"{host.name}: {error}") from error
    print("\n".join(lines).strip())
    return 0
