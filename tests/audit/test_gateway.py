"""The gateway step: key, firewall rule and access rules of endpoints that other machines can reach."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from rigup.audit.check import check
from rigup.audit.expect import expect, expect_file, expect_none, expect_owner, expect_units
from rigup.audit.subject import Subject
from rigup.paths import BALANCERS, FIREWALL, GATEWAY_LUA, GATEWAY_TEMPLATE, GATEWAYS, NFTABLES_DROP_IN
from rigup.plan.balancer import NAME
from rigup.plan.model import EndpointPlan
from rigup.resources import FILES
from rigup.templates import filled

# Statements that a gateway's configuration may contain without a check: none of them decides who is admitted.
HARMLESS = {"user", "group", "maxconn", "log", "mode", "option", "timeout", "stick-table", "http-after-response"}
DECIDING = ("lua-load", "bind", "acl", "tcp-request", "http-request", "default_backend", "server")
SECTIONS = ("global", "defaults", "frontend", "backend")


def networks(listed: Any) -> list[str]:
    """Return the networks of a set, or the only one, from nft's JSON; networks within others are merged."""
    members = listed.get("set", [listed]) if isinstance(listed, dict) else [listed]
    prefixes = [
        f"{each['prefix']['addr']}/{each['prefix']['len']}" if isinstance(each, dict) else each for each in members
    ]
    return collapsed(prefixes)


def collapsed(texts: list[str]) -> list[str]:
    found = [ipaddress.ip_network(text) for text in texts]
    return sorted(map(str, ipaddress.collapse_addresses(found)))  # type: ignore[type-var]


def rules_in_force(rig: Subject, name: str) -> list[dict[str, object]]:
    """Return the rules of a chain in the kernel, each as its comparisons and its verdict."""
    listed = rig.json("nft -j list chain inet rigup %s", f"endpoint-{name}") or {}
    rules = []
    for rule in (entry["rule"] for entry in listed.get("nftables", []) if "rule" in entry):
        parts: dict[str, object] = {}
        for part in rule["expr"]:
            if match := part.get("match"):
                left = match["left"]
                name = left["meta"]["key"] if "meta" in left else left["payload"]["field"]
                right = networks(match["right"]) if name == "saddr" else match["right"]
                parts[f"{name} {match['op']}"] = right
            else:
                parts["then"] = ", ".join(part)
        rules.append(parts)
    return rules


def admitted(rig: Subject, endpoint: EndpointPlan) -> list[str]:
    """Return the networks that may connect: the endpoint's, and the addresses of the load balancer."""
    return [*endpoint.allowed_networks, *(rig.balancer.hosts.values() if rig.balancer else ())]


def expected_rule(rig: Subject, endpoint: EndpointPlan) -> dict[str, object]:
    """Return the expected rule of an endpoint's chain: drop what comes to its port from outside its networks."""
    return {
        "iif !=": "lo",
        "daddr ==": str(ipaddress.ip_address(str(endpoint.public_address))),
        "dport ==": endpoint.port,
        "saddr !=": collapsed(admitted(rig, endpoint)),
        "then": "drop",
    }


def statements(text: str) -> list[str]:
    """Return the lines of a configuration without comments and empty lines."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def rules_at_boot(text: str, chain: str) -> list[dict[str, object]]:
    """Return the rules that nft gives a chain when it reads this file, in the form of `rules_in_force`."""
    head = ("add table inet rigup", f"flush chain inet rigup {chain}")
    where, who = r"iif != (\S+) ip6? daddr (\S+) tcp dport (\d+)", r"ip6? saddr != { (.*) }"
    form = rf'add rule inet rigup {chain} {where} {who} drop comment "[^"]*"'
    rules: list[dict[str, object]] = []
    for line in statements(text):
        if match := re.fullmatch(form, line):
            iif, address, port, sources = match.groups()
            source = collapsed(sources.split(", "))
            rule = {"iif !=": iif, "daddr ==": address, "dport ==": int(port), "saddr !=": source, "then": "drop"}
            rules.append(rule)
        elif line not in head and not line.startswith(f"add chain inet rigup {chain} {{ type filter hook input "):
            rules.append({"then": line})
    return rules


def admission(text: str) -> dict[str, object]:
    """Return whom a gateway's configuration admits, and to what: its lines by their first word, in order."""
    found: dict[str, list[str]] = {}
    for line in statements(text):
        word, _, rest = line.partition(" ")
        if word in DECIDING or word in SECTIONS:
            found.setdefault(word, []).append(rest)
        elif word not in HARMLESS:
            found.setdefault("else", []).append(line)
    # The text of a refusal does not matter.
    asked = [re.sub(r" content-type .* (unless|if) ", r" \1 ", rule) for rule in found.get("http-request", [])]
    sources = [re.fullmatch(r"connection reject unless { src (.*) }", rule) for rule in found.get("tcp-request", [])]
    return {
        **found,
        "bind": [re.sub("^ipv[46]@", "", bind) for bind in found.get("bind", [])],
        "acl": sorted(found.get("acl", [])),
        "http-request": asked,
        "tcp-request": [
            collapsed(match[1].split()) if match else rule
            for rule, match in zip(found.get("tcp-request", []), sources, strict=True)
        ],
    }


def expected_admission(rig: Subject, endpoint: EndpointPlan) -> dict[str, object]:
    """Return the expected admission: clients of its networks that have the key or ask for the health check.

    The load balancer is known by the SHA-256 of its key and its address, and may ask whether the endpoint drains.
    """
    # As in /proc/net/tcp: words of four bytes, the last byte first.
    packed = ipaddress.ip_address(endpoint.address).packed
    words = [packed[at : at + 4][::-1].hex().upper() for at in range(0, len(packed), 4)]
    place = f"{''.join(words)}:{endpoint.port:04X}"
    record = f"/run/rigup-engines/{endpoint.name}/listener"
    known = ["known var(txn.balancer) -m bool"] * bool(rig.balancer)
    listens = f"{{ lua.engine_listens({place},{record}) -m str yes }}"
    asked = " /rigup/ready" * bool(rig.balancer)
    first, last, late = list[str](), list[str](), list[str]()
    if rig.balancer:
        admits = f"{{ src,concat(=,txn.digest) -m str -f {BALANCERS} }}"
        first = ["set-var(txn.digest) http_auth_bearer,sha2(256),hex,lower"]
        first.append(f"set-var(txn.balancer) bool(true) if {admits}")
        late = [f"tarpit status 503 if {{ var(txn.balancer) -m bool }} !{listens}"]
        drains = f"{{ lua.exists(/run/rigup-draining/{endpoint.name}) -m str yes }}"
        last = [
            f"return status 503 if {{ path{asked} }} {drains}",
            f"set-path {endpoint.ready_path} if {{ path{asked} }}",
        ]
    return {
        "global": [""],
        "lua-load": [GATEWAY_LUA],
        "defaults": [""],
        "frontend": [endpoint.name],
        "backend": [endpoint.name],
        "default_backend": [endpoint.name],
        "bind": [f"{endpoint.public_address}:{endpoint.port} proto h1"],
        "server": [f"engine {endpoint.address}:{endpoint.port}"],
        # The host's own requests come from the gateway's address.
        "tcp-request": [
            collapsed([*admitted(rig, endpoint), str(endpoint.public_address)]),
            "connection track-sc0 src",
            "connection reject if { sc0_conn_cur gt 1024 }",
        ],
        "acl": sorted(
            (
                "body req.hdr(content-length) -m found",
                "body req.hdr(transfer-encoding) -m found",
                "health method GET",
                f"health_path path {endpoint.ready_path}{asked}",
                *known,
                f"known http_auth_bearer -m str -f {endpoint.key_file}",
                f"known req.hdr(x-api-key) -m str -f {endpoint.key_file}",
            )
        ),
        "http-request": [
            *first,
            "return status 401 unless known || health health_path !body",
            "set-var(txn.known) bool(true) if known",
            "del-header authorization",
            "del-header x-api-key",
            *last,
            "set-timeout server 10s unless { var(txn.known) -m bool }",
            *late,
            f"return status 503 unless {listens}",
        ],
    }


def shared_files() -> dict[str, str]:
    """Return what all gateways of a host share: the rules' return with nftables, and the check of the engine."""
    lua = (FILES / "gateway.lua").read_text()
    rules = f'# Written by rigup; the next deploy overwrites changes made here.\ninclude "{GATEWAYS}/*.nft"\n'
    return {NFTABLES_DROP_IN: filled("nftables.conf.j2"), FIREWALL: rules, GATEWAY_LUA: lua}


@check("critical", "endpoints")
def test_gateway_files(rig: Subject) -> None:
    """Each gateway must run and admit only whom the plan names, also after a reboot; there must be no others."""
    public = [endpoint for endpoint in rig.plan.endpoints if endpoint.public_address]
    if public:
        expect_units(rig, GATEWAY_TEMPLATE.rpartition("/")[2])
        for path, text in shared_files().items():
            expect_file(rig, path, text)
    for endpoint in public:
        expect(expected_admission(rig, endpoint), admission(rig.text(f"{GATEWAYS}/{endpoint.name}.cfg") or ""))
        kept = rules_at_boot(rig.text(f"{GATEWAYS}/{endpoint.name}.nft") or "", f"endpoint-{endpoint.name}")
        expect([expected_rule(rig, endpoint)], kept)
        for kind in ("cfg", "nft"):
            expect_owner(rig, f"{GATEWAYS}/{endpoint.name}.{kind}")
        shown = rig.unit(endpoint.gateway)
        expect(
            {"now": "active", "at boot": "enabled", "needs daemon-reload": "no"},
            {
                "now": shown["ActiveState"],
                "at boot": shown["UnitFileState"],
                "needs daemon-reload": shown["NeedDaemonReload"],
            },
        )
    due = [endpoint.name for endpoint in public] + [NAME] * bool(rig.balancer and rig.name in rig.balancer.hosts)
    names = {f"{name}.{kind}" for name in due for kind in ("cfg", "nft")}
    there = rig.names(f"find {GATEWAYS}/ -mindepth 1 -maxdepth 1 -printf '%f\\0'")
    expect_none("no other gateway", sorted({*there} - names))


@check("critical", "endpoints", root=True)
def test_gateway_key(rig: Subject) -> None:
    """Only root may read an API key, and the firewall rule must be in force."""
    for endpoint in rig.plan.endpoints:
        if endpoint.public_address:
            owner, _, size = rig.output("stat -c '%%U %%a %%s' %s", endpoint.key_file).rpartition(" ")
            expect("root 600", owner if size not in ("", "0") else "no key")
            found = rules_in_force(rig, endpoint.name)
            expect("1 rule", f"{len(found)} rule{'s' * (len(found) != 1)}")
            expect(expected_rule(rig, endpoint), found[0])


@check("critical", "endpoints", root=True)
def test_gateway_opens(rig: Subject) -> None:
    """The gateway must admit requests that have the key stored on the host."""
    for endpoint in rig.plan.endpoints:
        if endpoint.public_url:
            url = f"{endpoint.public_url}/v1/models"
            # Through standard input: a key must never be in a command line.
            ask = "sed 's/^/Authorization: Bearer /' %s | curl -q -sS -m 20 -o /dev/null -w '%%{http_code}' -H @- %s"
            expect({url: "200"}, {url: rig.output(ask, endpoint.key_file, url)})


@check("critical", "endpoints")
def test_gateway_refuses(rig: Subject) -> None:
    """Without the key, only the health check may answer."""
    for endpoint in rig.plan.endpoints:
        if endpoint.public_url:
            for path, code in {endpoint.ready_path: "200", "/v1/models": "401", "/metrics": "401"}.items():
                url = f"{endpoint.public_url}{path}"
                expect({url: code}, {url: rig.output("curl -q -sS -m 20 -o /dev/null -w '%%{http_code}' %s", url)})
