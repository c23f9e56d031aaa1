"""The balancer step: who may use the load balancer, where it sends requests, and that its endpoints serve."""

from __future__ import annotations

import hashlib
import ipaddress
import re

from rigup.audit.check import check
from rigup.audit.expect import expect, expect_none, expect_owner
from rigup.audit.subject import Subject
from rigup.paths import BALANCER_CLIENTS, BALANCER_KEY, BALANCERS, GATEWAYS, client_key_file, gateway_unit
from rigup.plan.balancer import NAME, SERVERS_PATH, Balancer

CONFIG = f"{GATEWAYS}/{NAME}.cfg"


def here(rig: Subject) -> Balancer | None:
    """Return the load balancer if it runs on this host."""
    return rig.balancer if rig.balancer and rig.name in rig.balancer.hosts else None


def address(rig: Subject, balancer: Balancer) -> str:
    return balancer.hosts[rig.name]


def inside(rig: Subject, balancer: Balancer) -> list[str]:
    """Return the addresses that the load balancer tells about its endpoints."""
    return sorted({address(rig, balancer), *(backend.address for backend in balancer.backends)})


def admission(text: str) -> dict[str, object]:
    """Return whom a configuration lets in, what it asks them for, and where it sends requests."""
    lines = [line.strip() for line in text.splitlines()]
    servers: dict[str, list[str]] = {}
    pool = ""
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "backend":
            pool = rest
        elif word == "server":
            servers.setdefault(pool, []).append(rest.partition(" track ")[0])
    rules = [line.removeprefix("http-request ") for line in lines if line.startswith("http-request ")]
    refused = next((at for at, rule in enumerate(rules) if rule.startswith("return status 401 ")), len(rules))
    before = [re.sub(r" (content-type|lf-string) .* if ", " if ", rule) for rule in rules[:refused]]
    return {
        "bind": [line.partition("@")[2] for line in lines if line.startswith("bind ")],
        "sources": [
            sorted(line.split()[6:-1]) for line in lines if line.startswith("tcp-request connection reject unless")
        ],
        "known": [line for line in lines if line.startswith("acl known ")],
        "before the key": [rule for rule in before if rule.startswith(("return", "use-service", "redirect"))],
        "the key": [rule for rule in rules if rule.startswith("set-var(txn.key)")],
        "without the key": [rule.rpartition("' ")[2] for rule in rules if rule.startswith("return status 401 ")],
        "servers": servers,
    }


def expected_admission(rig: Subject, balancer: Balancer) -> dict[str, object]:
    """Return the expected admission: whoever is in the networks and has a key, and hosts that ask for endpoints."""
    digest = f"sha2(256),hex,lower,map_str({BALANCER_CLIENTS})"
    servers: dict[str, list[str]] = {}
    for model in balancer.models:
        listed = [f"{each.name} {each.address}:{each.port}" for each in model.backends]
        servers |= {f"{kind}:{model.name.replace('/', ':')}": listed for kind in ("model", "any")}
    return {
        "bind": [f"{address(rig, balancer)}:{balancer.port} proto h1"],
        "sources": [sorted((*balancer.allowed_networks, *inside(rig, balancer)))],
        "known": ["acl known var(txn.key) -m found"],
        "before the key": [
            f"return status 200 if METH_GET {{ path {SERVERS_PATH} }} {{ src {' '.join(inside(rig, balancer))} }}",
            "return status 200 if METH_GET { path /health } serves",
            "return status 503 if METH_GET { path /health }",
        ],
        "the key": [
            f"set-var(txn.key) http_auth_bearer,{digest}",
            f"set-var(txn.key) req.hdr(x-api-key),{digest} unless {{ var(txn.key) -m found }}",
        ],
        "without the key": ["unless known"],
        "servers": servers,
    }


@check("critical", "endpoints")
def test_balancer_files(rig: Subject) -> None:
    """The load balancer must run, admit only whom the inventory names, and send requests to its endpoints only."""
    if balancer := here(rig):
        expect(expected_admission(rig, balancer), admission(rig.text(CONFIG) or ""))
        expect_owner(rig, CONFIG)
        shown = rig.unit(gateway_unit(NAME))
        expect(
            {"now": "active", "at boot": "enabled"}, {"now": shown["ActiveState"], "at boot": shown["UnitFileState"]}
        )


@check("critical", "endpoints", root=True)
def test_balancer_keys(rig: Subject) -> None:
    """Only root may read keys, and gateways and load balancer must know the keys of the inventory and no others."""
    if rig.balancer is None:
        return
    if balancer := here(rig):
        secret = [BALANCER_KEY, BALANCER_CLIENTS]
        secret += [client_key_file(name) for name in balancer.keys] if rig.name == balancer.first else []
        for path in secret:
            expect_owner(rig, path, "600")
        listed = [line.partition(" ")[2] for line in (rig.text(BALANCER_CLIENTS) or "").splitlines()]
        expect({"keys": sorted(balancer.keys)}, {"keys": sorted(listed)})
        networks = [*balancer.allowed_networks, *inside(rig, balancer)]
        rules = rig.json("nft -j list chain inet rigup %s", f"endpoint-{NAME}") or {}
        found = [rule["rule"]["expr"] for rule in rules.get("nftables", []) if "rule" in rule]
        expect(["drop"], [next(iter(rule[-1])) for rule in found])
        expect_none("the networks of the inventory alone", missing(networks, str(found)))
    if any(endpoint.public_address for endpoint in rig.plan.endpoints):
        expect_owner(rig, BALANCERS, "600")
        admitted = [line.partition("=")[0] for line in (rig.text(BALANCERS) or "").splitlines()]
        expect({BALANCERS: sorted(rig.balancer.hosts.values())}, {BALANCERS: sorted(admitted)})


def missing(networks: list[str], rule: str) -> list[str]:
    """Return the networks that a rule in nft's JSON does not name."""
    every = ipaddress.collapse_addresses(map(ipaddress.ip_network, networks))  # type: ignore[type-var]
    return [str(each) for each in every if f"'{each.network_address}'" not in rule]


@check("critical", "endpoints", root=True)
def test_balancer_opens(rig: Subject) -> None:
    """The load balancer must admit requests that have a key."""
    balancer = here(rig)
    if balancer is None or rig.name != balancer.first:
        return
    url = f"{balancer.url(rig.name)}/v1/models"
    # Through standard input: a key must never be in a command line.
    ask = "sed 's/^/Authorization: Bearer /' %s | curl -q -sS -m 20 -o /dev/null -w '%%{http_code}' -H @- %s"
    known = {
        line.rpartition(" ")[2]: line.partition(" ")[0] for line in (rig.text(BALANCER_CLIENTS) or "").splitlines()
    }
    for name in balancer.keys:
        path = client_key_file(name)
        expect({name: "200"}, {name: rig.output(ask, path, url)})
        digest = hashlib.sha256((rig.text(path) or "").strip().encode()).hexdigest()
        expect({name: digest}, {name: known.get(name, "no key")})


@check("critical", "endpoints")
def test_balancer_refuses(rig: Subject) -> None:
    """Without a key, nothing but its own health may answer."""
    if balancer := here(rig):
        for path in ("/v1/models", "/metrics"):
            url = f"{balancer.url(rig.name)}{path}"
            expect({url: "401"}, {url: rig.output("curl -q -sS -m 20 -o /dev/null -w '%%{http_code}' %s", url)})


@check("major", "endpoints")
def test_balancer_backends(rig: Subject) -> None:
    """The load balancer must send requests to all endpoints of the inventory."""
    if balancer := here(rig):
        told = rig.json("curl -q -sS -m 20 %s", f"{balancer.url(rig.name)}{SERVERS_PATH}") or {}
        down = [each.name for each in balancer.backends if not told.get(each.name, {}).get("up")]
        expect_none("every endpoint takes requests", [f"{name} takes none" for name in down])
