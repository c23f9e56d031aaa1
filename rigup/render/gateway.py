"""Render the gateway of an endpoint that other hosts can reach: HAProxy with the API key, and the firewall. Pure.

The engine listens on loopback and has no key. HAProxy, on the public address, passes requests with the key (and the
health check); a firewall rule passes clients from the allowed networks. The engine's own key would not do: vLLM's
protects only paths below /v1, SGLang takes it only on the command line and logs it, and a new key would mean loading
the weights again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from ipaddress import ip_address

from rigup.paths import GATEWAYS, engine_listener
from rigup.plan.model import EndpointPlan
from rigup.templates import filled

DRAIN = r"s/^    server engine [^ ]*$/& disabled/"
"""The `sed` expression that closes a gateway in its configuration: without a server, HAProxy answers 503."""

# In the format of the OpenAI API, so that clients report what is wrong.
REFUSAL = {
    "error": {
        "message": "wrong or missing API key; `rigup key HOST` shows it",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }
}
ABSENT = {
    "error": {
        "message": "the engine does not listen; it may be starting",
        "type": "server_error",
        "param": None,
        "code": "unavailable",
    }
}


def kernel_form(address: str, port: int) -> str:
    """Return an address and port as in `/proc/net/tcp`: words of four bytes in the byte order of x86 and arm64."""
    packed = ip_address(address).packed
    words = [packed[start : start + 4][::-1].hex().upper() for start in range(0, len(packed), 4)]
    return f"{''.join(words)}:{port:04X}"


def config_path(endpoint: EndpointPlan) -> str:
    """Return the path of the gateway's HAProxy configuration on the host."""
    return f"{GATEWAYS}/{endpoint.name}.cfg"


def rules_path(endpoint: EndpointPlan) -> str:
    """Return the path of the gateway's nftables rules on the host."""
    return f"{GATEWAYS}/{endpoint.name}.nft"


def chain_of(name: str) -> str:
    """Return the nftables chain of an endpoint, in the table `inet rigup`; a bare name could be an nft keyword."""
    return f"endpoint-{name}"


def parse_gateway_names(lines: Iterable[str]) -> list[str]:
    """Return the names of endpoints from the paths of their gateways' configurations."""
    return sorted(line.rpartition("/")[2].removesuffix(".cfg") for line in lines if line.endswith(".cfg"))


def config_text(endpoint: EndpointPlan) -> str:
    """Return HAProxy's configuration for an endpoint with a public address."""
    address = _public(endpoint)
    return filled(
        "gateway.cfg.j2",
        endpoint=endpoint,
        bind=f"{'ipv6' if _is_ipv6(address) else 'ipv4'}@{address}:{endpoint.port}",
        engine=f"{endpoint.address}:{endpoint.port}",
        # Requests of the host itself come from the address that they go to.
        sources=" ".join((*endpoint.allowed_networks, address)),
        refusal=json.dumps(REFUSAL),
        absent=json.dumps(ABSENT),
        place=kernel_form(endpoint.address, endpoint.port),
        record=engine_listener(endpoint.name),
    )


def firewall_text(endpoint: EndpointPlan) -> str:
    """Return the rules for `nft -f`, in one transaction: drop clients at this port unless in the allowed networks."""
    return _rules(endpoint, rule_digest(endpoint))


def all_rules_text() -> str:
    """Return the file that loads the rules of every gateway that exists at that time, for `nft -f`."""
    return f'# Written by rigup; the next deploy overwrites changes made here.\ninclude "{GATEWAYS}/*.nft"\n'


def rule_digest(endpoint: EndpointPlan) -> str:
    """Return a digest of the rules, by which to recognize them on the host."""
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
        raise ValueError(f"endpoint {endpoint.name} has no public address")
    return endpoint.public_address


def _is_ipv6(address: str) -> bool:
    return ":" in address
