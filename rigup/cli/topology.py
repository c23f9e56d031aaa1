"""`rigup topology`: how a host's GPUs are connected, and what follows."""

from __future__ import annotations

import argparse

from pyinfra.api.exceptions import FactProcessError

from rigup.cli._facts import Facts
from rigup.cli._hosts import add_host, add_inventory, find_host, read_inventory
from rigup.cli._output import print_json
from rigup.cli._parser import Commands, add_json
from rigup.errors import RigupError
from rigup.facts.pci import AccessControl, PciTopology
from rigup.hardware.topology import consequences, drawing
from rigup.ssh.client import Client

JSON = {
    "host": "its name",
    "gpus": "a list: gpu (the driver's number), address, path (root bus, bridges and itself), node, link, iommu",
    "acs": "by name: the access control register of each bridge above GPUs that has one",
    "follows": "what follows for engines, a list of sentences",
}


def register(commands: Commands) -> None:
    """Add `rigup topology`."""
    parser = commands.add_parser(
        "topology",
        help="draw how a host's GPUs are connected",
        description="Draws sockets, PCIe switches, GPUs and their links, and says what follows for engines. It changes "
        "nothing. An idle GPU may show a slower link than under load.",
    )
    add_host(parser)
    add_inventory(parser)
    add_json(parser, JSON)
    parser.set_defaults(run=_topology)


def _topology(options: argparse.Namespace) -> int:
    """Run `rigup topology`. Raises RigupError if the host cannot be read."""
    host = find_host(read_inventory(options), options.host)
    with Client(host) as client:
        try:
            facts = Facts(client)
            bus = facts.add(PciTopology())
            facts.read()
            topology = bus()
            facts = Facts(client)
            control = facts.add(AccessControl(), ports=topology.ports)
            facts.read()
            access_control, follows = control(), consequences(topology, control())
        except FactProcessError as error:
            raise RigupError(f"{host.name}: {error}") from error
    if options.json:
        gpus = [
            {
                "gpu": topology.indices.get(gpu.address),
                "address": gpu.address,
                "path": list(gpu.path),
                "node": gpu.node,
                "link": str(gpu.link),
                "iommu": gpu.iommu,
            }
            for gpu in topology.gpus
        ]
        print_json({"host": host.name, "gpus": gpus, "acs": access_control, "follows": follows})
    else:
        print("\n".join([*drawing(topology), "", *follows]).strip())
    return 0
