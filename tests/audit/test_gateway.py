"""Endpoints that are reachable from beyond their host: the key, the firewall rule, and that nothing else gets in."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from subject import UNITS, Subject, check, expect, expect_files, expect_none

from rigup.plan.model import EndpointPlan

GATEWAYS = "/etc/rigup/gateways"
# What a gateway's configuration may hold beside what the check reads: nothing that decides who gets in.
HARMLESS = {"user", "group", "maxconn", "log", "mode", "option", "timeout"}
DECIDING = ("bind", "acl", "tcp-request", "http-request", "default_backend", "server")
SECTIONS = ("global", "defaults", "frontend", "backend")


def networks(listed: Any) -> list[str]:
    """The networks of a set as nft tells it, or of the one that it had; those that lie in others are left out."""
    members = listed.get("set", [listed]) if isinstance(listed, dict) else [listed]
    prefixes = [
        f"{each['prefix']['addr']}/{each['prefix']['len']}" if isinstance(each, dict) else each for each in members
    ]
    return collapsed(prefixes)


def collapsed(texts: list[str]) -> list[str]:
    found = [ipaddress.ip_network(text) for text in texts]
    return sorted(map(str, ipaddress.collapse_addresses(found)))  # type: ignore[type-var]


def rules_in_force(rig: Subject, endpoint: EndpointPlan) -> list[dict[str, object]]:
    """The rules of the endpoint's chain, each as what it compares with what, and what becomes of what matches."""
    listed = rig.json("nft -j list chain inet rigup %s", f"endpoint-{endpoint.name}") or {}
    rules = []
    for rule in (entry["rule"] for entry in listed.get("nftables", []) if "rule" in entry):
        told: dict[str, object] = {}
        for part in rule["expr"]:
            if match := part.get("match"):
                left = match["left"]
                name = left["meta"]["key"] if "meta" in left else left["payload"]["field"]
                right = networks(match["right"]) if name == "saddr" else match["right"]
                told[f"{name} {match['op']}"] = right
            else:
                told["then"] = ", ".join(part)
        rules.append(told)
    return rules


def rule_due(endpoint: EndpointPlan) -> dict[str, object]:
    """The one rule of an endpoint's chain: whoever comes from elsewhere than its networks is dropped at its port."""
    return {
        "iif !=": "lo",
        "daddr ==": str(ipaddress.ip_address(str(endpoint.public_address))),
        "dport ==": endpoint.port,
        "saddr !=": collapsed(list(endpoint.allowed_networks)),
        "then": "drop",
    }


def statements(text: str) -> list[str]:
    """The lines of a configuration that say something."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def rules_at_boot(text: str, chain: str) -> list[dict[str, object]]:
    """The rules that a file gives to a chain when nft reads it, in the words of `rules_in_force`."""
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
    """Who gets in by a gateway's configuration, and to what: its lines by their first word, in their order."""
    found: dict[str, list[str]] = {}
    for line in statements(text):
        word, _, rest = line.partition(" ")
        if word in DECIDING or word in SECTIONS:
            found.setdefault(word, []).append(rest)
        elif word not in HARMLESS:
            found.setdefault("else", []).append(line)
    # What a refusal says is for people.
    asked = [re.sub(r" content-type .* unless ", " unless ", rule) for rule in found.get("http-request", [])]
    sources = [re.fullmatch(r"connection reject unless { src (.*) }", rule) for rule in found.get("tcp-request", [])]
    return {
        **found,
        "bind": [re.sub("^ipv[46]@", "", bind) for bind in found.get("bind", [])],
        "acl": sorted(found.get("acl", [])),
        "http-request": asked,
        "tcp-request": [collapsed(match[1].split()) if match else "something else" for match in sources],
    }


def admission_due(endpoint: EndpointPlan) -> dict[str, object]:
    """The same by the plan: its networks, and of them who has the key or asks for the health check."""
    return {
        "global": [""],
        "defaults": [""],
        "frontend": [endpoint.name],
        "backend": [endpoint.name],
        "default_backend": [endpoint.name],
        "bind": [f"{endpoint.public_address}:{endpoint.port}"],
        "server": [f"engine {endpoint.address}:{endpoint.port}"],
        # The host itself comes from the address that it asks.
        "tcp-request": [collapsed([*endpoint.allowed_networks, str(endpoint.public_address)])],
        "acl": sorted(
            (
                "health method GET",
                f"health_path path {endpoint.ready_path}",
                f"known http_auth_bearer -m str -f {endpoint.key_file}",
                f"known req.hdr(x-api-key) -m str -f {endpoint.key_file}",
            )
        ),
        "http-request": [
            "return status 401 unless known || health health_path",
            "del-header authorization",
            "del-header x-api-key",
        ],
    }


@check("critical", "endpoints")
def test_gateway_files(rig: Subject) -> None:
    """Each gateway lets in whom the plan names, also after a boot, and it runs; there is no other."""
    public = [endpoint for endpoint in rig.plan.endpoints if endpoint.public_address]
    if public:
        expect_files(rig, UNITS, "rigup-gateway@.service")
    for endpoint in public:
        expect(admission_due(endpoint), admission(rig.text(f"{GATEWAYS}/{endpoint.name}.cfg") or ""))
        kept = rules_at_boot(rig.text(f"{GATEWAYS}/{endpoint.name}.nft") or "", f"endpoint-{endpoint.name}")
        expect([rule_due(endpoint)], kept)
        shown = rig.unit(endpoint.gateway)
        expect(
            {"now": "active", "at boot": "enabled", "needs daemon-reload": "no"},
            {
                "now": shown["ActiveState"],
                "at boot": shown["UnitFileState"],
                "needs daemon-reload": shown["NeedDaemonReload"],
            },
        )
    names = {f"{endpoint.name}.{kind}" for endpoint in public for kind in ("cfg", "nft")}
    expect_none("no other gateway", sorted({*rig.said(f"ls -1 {GATEWAYS}/").split()} - names))


@check("critical", "endpoints", root=True)
def test_gateway_key(rig: Subject) -> None:
    """Each key is readable to root alone, and the firewall rule is in force."""
    for endpoint in rig.plan.endpoints:
        if endpoint.public_address:
            owner, _, size = rig.said("stat -c '%%U %%a %%s' %s", endpoint.key_file).rpartition(" ")
            expect("root 600", owner if size not in ("", "0") else "no key")
            found = rules_in_force(rig, endpoint)
            expect("1 rule", f"{len(found)} rule{'s' * (len(found) != 1)}")
            expect(rule_due(endpoint), found[0])


@check("critical", "endpoints", root=True)
def test_gateway_opens(rig: Subject) -> None:
    """With the key that lies on the host the gateway lets through."""
    for endpoint in rig.plan.endpoints:
        if endpoint.public_url:
            url = f"{endpoint.public_url}/v1/models"
            # By standard input: no command line ever holds a key.
            ask = "sed 's/^/Authorization: Bearer /' %s | curl -sS -m 20 -o /dev/null -w '%%{http_code}' -H @- %s"
            expect({url: "200"}, {url: rig.said(ask, endpoint.key_file, url)})


@check("critical", "endpoints")
def test_gateway_refuses(rig: Subject) -> None:
    """Without the key nothing but the health check answers."""
    for endpoint in rig.plan.endpoints:
        if endpoint.public_url:
            for path, due in {endpoint.ready_path: "200", "/v1/models": "401", "/metrics": "401"}.items():
                url = f"{endpoint.public_url}{path}"
                expect({url: due}, {url: rig.said("curl -sS -m 20 -o /dev/null -w '%%{http_code}' %s", url)})
