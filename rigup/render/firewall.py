"""Render the firewall rules of gateways and of the load balancer. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from rigup.paths import GATEWAYS
from rigup.templates import filled


@dataclass(frozen=True)
class Opening:
    """An address and port, and the networks from which the firewall lets clients in; `name` names files and chain."""

    name: str
    address: str
    port: int
    networks: tuple[str, ...]

    @property
    def path(self) -> str:
        """The path of its nftables rules on the host."""
        return f"{GATEWAYS}/{self.name}.nft"

    @property
    def text(self) -> str:
        """The rules for `nft -f`, in one transaction: drop clients at this port unless in the networks."""
        return self._rules(self.digest)

    @property
    def digest(self) -> str:
        """A digest of the rules, by which to recognize them on the host."""
        return hashlib.sha256(self._rules("").encode()).hexdigest()[:12]

    def _rules(self, digest: str) -> str:
        return filled(
            "gateway.nft.j2",
            opening=self,
            chain=chain_of(self.name),
            family="ip6" if ":" in self.address else "ip",
            networks=", ".join(self.networks),
            digest=digest,
        )


def chain_of(name: str) -> str:
    """Return the nftables chain of an opening, in the table `inet rigup`; a bare name could be an nft keyword."""
    return f"endpoint-{name}"


def all_rules_text() -> str:
    """Return the file that loads the rules of every gateway that exists at that time, for `nft -f`."""
    return f'# Written by rigup; the next deploy overwrites changes made here.\ninclude "{GATEWAYS}/*.nft"\n'
