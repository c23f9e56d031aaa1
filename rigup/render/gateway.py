"""Render the gateway of an endpoint that other hosts can reach: HAProxy with the API key, and the firewall. Pure.

The engine listens on loopback and has no key. HAProxy, on the public address, passes requests with the key (and the
health check); a firewall rule passes clients from the allowed networks. The engine's own key would not do: vLLM's
protects only paths below /v1, SGLang takes it only on the command line and logs it, and a new key would mean loading
the weights again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from ipaddress import collapse_addresses, ip_address, ip_network

from rigup.paths import GATEWAYS, draining, engine_listener
from rigup.plan.model import EndpointPlan
from rigup.render.firewall import Opening
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

READINESS = "/rigup/ready"
"""The path at which a load balancer asks whether an endpoint takes new requests."""
DRAINING = {
    "error": {
        "message": "the endpoint takes no new requests from load balancers",
        "type": "server_error",
        "param": None,
        "code": "draining",
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


def parse_gateway_names(lines: Iterable[str]) -> list[str]:
    """Return the names of endpoints from the paths of their gateways' configurations."""
    return sorted(line.rpartition("/")[2].removesuffix(".cfg") for line in lines if line.endswith(".cfg"))


def config_text(endpoint: EndpointPlan, balancers: Sequence[str] = ()) -> str:
    """Return HAProxy's configuration for an endpoint with a public address; `balancers` are their IP addresses."""
    address = _public(endpoint)
    return filled(
        "gateway.cfg.j2",
        endpoint=endpoint,
        bind=f"{'ipv6' if _is_ipv6(address) else 'ipv4'}@{address}:{endpoint.port}",
        engine=f"{endpoint.address}:{endpoint.port}",
        # Requests of the host itself come from the address that they go to.
        sources=" ".join((*endpoint.allowed_networks, *balancers, address)),
        balancers=balancers,
        readiness=READINESS,
        draining=json.dumps(DRAINING),
        drains=draining(endpoint.name),
        refusal=json.dumps(REFUSAL),
        absent=json.dumps(ABSENT),
        place=kernel_form(endpoint.address, endpoint.port),
        record=engine_listener(endpoint.name),
    )


def opening(endpoint: EndpointPlan, balancers: Sequence[str] = ()) -> Opening:
    """Return what the firewall opens: the public address, to the allowed networks and to the load balancers."""
    networks = endpoint.allowed_networks
    if balancers:
        # nft refuses networks within others.
        every = [ip_network(each) for each in (*networks, *balancers)]
        networks = tuple(map(str, collapse_addresses(every)))  # type: ignore[type-var]
    return Opening(endpoint.name, _public(endpoint), endpoint.port, networks)


def _public(endpoint: EndpointPlan) -> str:
    if endpoint.public_address is None:
        raise ValueError(f"endpoint {endpoint.name} has no public address")
    return endpoint.public_address


def _is_ipv6(address: str) -> bool:
    return ":" in address
