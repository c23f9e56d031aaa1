"""The peers of a host: the other hosts of the inventory, which serve verified files to each other. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rigup.config.settings import Settings

PORT = 8730


@dataclass(frozen=True)
class Peer:
    """A host of the inventory, and the address, an IP address once resolved, and port at which it serves files."""

    name: str
    address: str
    port: int = PORT


def fleet_of(hosts: Iterable[tuple[str, str, Settings]]) -> list[Peer]:
    """Return the hosts of an inventory that share files, from the name, ssh address and settings of each."""
    return [
        Peer(name, settings.peer_address or address, settings.peer_port)
        for name, address, settings in sorted(hosts, key=lambda each: each[0])
        if settings.peers
    ]


def peers_of(name: str, fleet: Sequence[Peer]) -> tuple[Peer, ...]:
    """Return the other hosts of a fleet, from one host's point of view; none if it does not share files itself.

    Hosts that have an address in common cannot be told apart, and are left out.
    """
    own = next((each for each in fleet if each.name == name), None)
    if own is None:
        return ()
    shared = {each.address for each in fleet if sum(other.address == each.address for other in fleet) > 1}
    return tuple(each for each in fleet if each.name != name and not {each.address, own.address} & shared)
