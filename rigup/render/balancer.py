"""Render the load balancer: HAProxy in front of the gateways of all hosts, with named keys. Pure.

A model is found in the path, or in a body of at most BODY_BYTES. Requests of one conversation go to one endpoint, where
its beginning is cached, unless that one has half as many requests again as the others.
"""

from __future__ import annotations

import json
from ipaddress import collapse_addresses, ip_address, ip_network

from rigup.paths import GATEWAYS, RUNTIME
from rigup.plan.balancer import NAME, SERVERS_PATH, Balancer
from rigup.render.firewall import Opening
from rigup.render.gateway import READINESS
from rigup.templates import filled

CONFIG = f"{GATEWAYS}/{NAME}.cfg"
"""The path of its HAProxy configuration on a host."""

LOADED = f"{RUNTIME}/load-balancer-loaded"
"""When it was written, HAProxy last read its files without a restart."""

BODY_BYTES = 1 << 20
"""How much of a body is read to find its model. HAProxy keeps a buffer of this size for each request that it reads."""

# Where the words begin that a conversation is known by, and which role must have said them: chats, messages of the
# Anthropic protocol, responses, completions. System prompts are the same in many conversations.
OPENINGS = (
    *(
        (f"$.{messages}[{at}].role", f"$.{messages}[{at}].content{part}")
        for messages in ("messages", "input")
        for at in range(3)
        for part in ("", "[0].text")
    ),
    ("", "$.input"),
    ("", "$.prompt"),
)


def _error(message: str, kind: str, code: str) -> str:
    """Return an answer in the format of the OpenAI API, so that clients report what is wrong."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


REFUSALS = {
    "key": _error("wrong or missing API key; `rigup key` shows it", "invalid_request_error", "invalid_api_key"),
    "path": _error("unknown path; requests go to /v1/... or /MODEL/v1/...", "invalid_request_error", "unknown_url"),
    "model": _error(
        "there is no such model; /v1/models lists those of this key", "invalid_request_error", "model_not_found"
    ),
    "unnamed": _error("the request names no model", "invalid_request_error", "model_missing"),
    "forbidden": _error("this key may not use that model", "invalid_request_error", "model_not_allowed"),
    "size": _error(
        f"the body is longer than {BODY_BYTES} bytes and its model is not among the first: put the model first, or "
        "into the path: /MODEL/v1/...",
        "invalid_request_error",
        "request_too_large",
    ),
    "rate": _error("too many requests per minute with this key", "requests", "rate_limit_exceeded"),
    "concurrency": _error("too many requests at the same time with this key", "requests", "rate_limit_exceeded"),
}
FAILURES = {
    400: _error("not an HTTP request", "invalid_request_error", "bad_request"),
    408: _error("the request did not arrive in time", "invalid_request_error", "request_timeout"),
    500: _error("the load balancer failed", "server_error", "internal_error"),
    502: _error("the endpoint ended its answer early", "server_error", "bad_gateway"),
    503: _error("no endpoint of this model serves at the moment", "server_error", "unavailable"),
    504: _error("the endpoint did not answer in time", "server_error", "timeout"),
}


def config_text(balancer: Balancer, host: str) -> str:
    """Return HAProxy's configuration for the load balancer on a host."""
    address = balancer.hosts[host]
    inside = sorted({address, *(backend.address for backend in balancer.backends)})
    return filled(
        "balancer.cfg.j2",
        balancer=balancer,
        address=address,
        bind=f"{'ipv6' if ':' in address else 'ipv4'}@{address}:{balancer.port}",
        sources=" ".join((*balancer.allowed_networks, *inside)),
        inside=" ".join(inside),
        body_bytes=BODY_BYTES,
        ready_path=READINESS,
        servers_path=SERVERS_PATH,
        servers=_servers(balancer),
        lists={key: models_text(balancer, key) for key in balancer.keys},
        openings=OPENINGS,
        refusals=REFUSALS,
        failures=FAILURES,
    )


def models_text(balancer: Balancer, key: str) -> str:
    """Return the list of models that a key may ask for, as `/v1/models` has it."""
    # The date of the OpenAI API's field; an inventory has none.
    cards = [{"id": name, "object": "model", "created": 0, "owned_by": "rigup"} for name in balancer.names_for(key)]
    return json.dumps({"object": "list", "data": cards})


def opening(balancer: Balancer, host: str) -> Opening:
    """Return what the firewall opens: the port, to the allowed networks and to the hosts behind the load balancer."""
    address = ip_address(balancer.hosts[host])
    every = [ip_network(each) for each in (*balancer.allowed_networks, *(each.address for each in balancer.backends))]
    family = [each for each in every if each.version == address.version]
    return Opening(NAME, str(address), balancer.port, tuple(map(str, collapse_addresses(family))))  # type: ignore[type-var]


def hosts_text(balancer: Balancer, host: str, timeout_s: int) -> str:
    """Return what the switch of a host needs to drain it: the load balancers, and the names of its endpoints there."""
    mine = [each for each in balancer.backends if each.host == host]
    data = {
        "urls": [f"{balancer.url(name)}{SERVERS_PATH}" for name in balancer.hosts],
        "endpoints": {each.endpoint: {"name": each.name, "address": each.address} for each in mine},
        "timeout_s": timeout_s,
    }
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def _servers(balancer: Balancer) -> str:
    """Return the format of the answer about servers: whether each gets new requests, and how many run there."""
    entries = []
    for model in balancer.models:
        for backend in model.backends:
            settled, free = (f"{kind}:{model.pool}/{backend.name}" for kind in ("model", "any"))
            counts = f"%[srv_conn({settled})],%[srv_conn({free})]"
            entries.append(f'"{backend.name}":{{"up":%[srv_is_up({settled})],"running":[{counts}]}}')
    return f"{{{','.join(entries)}}}"
