"""What stands in front of an endpoint that is reachable from beyond its host: the key and the networks. All pure.

The engine listens on loopback and knows no key. HAProxy, on the public address, lets through what has the key (and the
health check); a firewall rule lets through who is in the endpoint's networks. Why not the engine's own key: vLLM's
guards only paths below /v1, SGLang takes one on its command line alone and logs it, and another one would mean loading
the weights again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from rigup.plan.model import EndpointPlan
from rigup.render.templates import filled

__all__ = [
    "DRAIN",
    "GATEWAYS",
    "chain_of",
    "config_path",
    "config_text",
    "firewall_text",
    "parse_gateway_names",
    "rule_digest",
    "rules_path",
]

GATEWAYS = "/etc/rigup/gateways"
DRAIN = r"s/^    server engine [^ ]*$/& disabled/"
"""What `sed` does to a gateway's configuration so that it lets nobody through: without a server HAProxy answers 503."""

# In the wire format of the OpenAI API, so that clients say what is wrong.
REFUSAL = {
    "error": {
        "message": "wrong or missing API key; `rigup key HOST` shows it",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }
}


def config_path(endpoint: EndpointPlan) -> str:
    """Where the gateway's HAProxy configuration lies on the host."""
    return f"{GATEWAYS}/{endpoint.name}.cfg"


def rules_path(endpoint: EndpointPlan) -> str:
    """Where the gateway's nftables rules lie on the host."""
    return f"{GATEWAYS}/{endpoint.name}.nft"


def chain_of(name: str) -> str:
    """The nftables chain of an endpoint, in the table `inet rigup`; a bare name might be a word of nft's own."""
    return f"endpoint-{name}"


def parse_gateway_names(lines: Iterable[str]) -> list[str]:
    """Endpoints' names, from the paths of their gateways' configurations."""
    return sorted(line.rpartition("/")[2].removesuffix(".cfg") for line in lines if line.endswith(".cfg"))


def config_text(endpoint: EndpointPlan) -> str:
    """HAProxy's configuration for an endpoint with a public address."""
    address = _public(endpoint)
    return filled(
        "gateway.cfg.j2",
        endpoint=endpoint,
        bind=f"{'ipv6' if _is_ipv6(address) else 'ipv4'}@{address}:{endpoint.port}",
        engine=f"{endpoint.address}:{endpoint.port}",
        # The host itself comes from the address that it asks.
        sources=" ".join((*endpoint.allowed_networks, address)),
        refusal=json.dumps(REFUSAL),
    )


def firewall_text(endpoint: EndpointPlan) -> str:
    """What `nft -f` reads, in one transaction: whoever is not in the endpoint's networks is dropped at its port."""
    return _rules(endpoint, rule_digest(endpoint))


def rule_digest(endpoint: EndpointPlan) -> str:
    """By which the host's present rule is known to be this one."""
    return hashlib.sha256(_rules(endpoint, "").encode()).hexdigest()[:12]


def _rules(endpoint: EndpointPlan, digest: str) -> str:
    return filled(
        "gateway.nft.j2",
        endpoint=endpoint,
        chain=chain_of(endpoint.name),
        family="ip6" if _is_ipv6(_public(endpoint)) else "ip",
        networks=", ".join(endpoint.allowed_networks),
        digest=digest,
    )


def _public(endpoint: EndpointPlan) -> str:
    if endpoint.public_address is None:
        raise ValueError(f"endpoint {endpoint.name} is on loopback alone")
    return endpoint.public_address


def _is_ipv6(address: str) -> bool:
    return ":" in address
