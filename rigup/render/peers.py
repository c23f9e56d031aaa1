"""The peers of a host: the other hosts of the inventory, which serve each other what they have verified. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rigup.config.settings import Settings

__all__ = ["CONFIG", "PORT", "UNIT", "Peer", "daemon_config", "fleet_of", "peers_of"]

CONFIG = "/etc/rigup/rsyncd.conf"
UNIT = "rigup-peers.service"

PORT = 8730


@dataclass(frozen=True)
class Peer:
    """A host of the inventory, and where it serves files to the others."""

    name: str
    address: str
    port: int = PORT


def fleet_of(hosts: Iterable[tuple[str, str, Settings]]) -> list[Peer]:
    """The hosts of an inventory that share their files, from each one's name, address for ssh and settings."""
    return [
        Peer(name, settings.peer_address or address, settings.peer_port)
        for name, address, settings in sorted(hosts, key=lambda each: each[0])
        if settings.peers
    ]


def peers_of(name: str, fleet: Sequence[Peer]) -> tuple[Peer, ...]:
    """The others of a fleet, as one host sees them; none where it takes no part itself.

    Hosts behind one address cannot be told apart by it, and are left out.
    """
    own = next((each for each in fleet if each.name == name), None)
    if own is None:
        return ()
    shared = {each.address for each in fleet if sum(other.address == each.address for other in fleet) > 1}
    return tuple(each for each in fleet if each.name != name and not {each.address, own.address} & shared)


def daemon_config(store: str, port: int, allowed: Sequence[str]) -> str:
    """The configuration of the rsync daemon that serves the store, read-only, to these addresses alone."""
    return f"""\
# Written by rigup; the next deploy undoes changes made here.
port = {port}
use chroot = no
read only = yes
list = no
reverse lookup = no
hosts allow = {" ".join(sorted(allowed))}
hosts deny = *
timeout = 60
[models]
path = {store}
exclude = .arriving
"""
