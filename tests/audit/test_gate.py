"""Endpoints that are reachable from beyond their host: the key, the firewall rule, and that nothing else gets in."""

from __future__ import annotations

import ipaddress
from typing import Any

from subject import Subject, check, expect, expect_text

from rigup.gate import GATES, chain_of, config_path, config_text, firewall_text, parse_gate_names, rules_path
from rigup.plan import EndpointPlan


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
    listed = rig.json("nft -j list chain inet rigup %s", chain_of(endpoint.name)) or {}
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


@check("critical", "endpoints")
def test_gate_files(rig: Subject) -> None:
    """Each gate is the one that the plan describes, and it runs; there is no other."""
    public = [endpoint for endpoint in rig.plan.endpoints if endpoint.public_address]
    for endpoint in public:
        expect_text(config_path(endpoint), config_text(endpoint), rig.text(config_path(endpoint)))
        expect_text(rules_path(endpoint), firewall_text(endpoint), rig.text(rules_path(endpoint)))
        shown = rig.unit(endpoint.gate)
        expect("active, enabled", f"{shown.get('ActiveState')}, {shown.get('UnitFileState')}")
    expect(sorted(each.name for each in public), parse_gate_names(rig.said(f"ls -1 {GATES}/").splitlines()))


@check("critical", "endpoints", root=True)
def test_gate_key(rig: Subject) -> None:
    """Each key is readable to root alone, and the firewall rule is in force."""
    for endpoint in rig.plan.endpoints:
        if endpoint.public_address:
            owner, _, size = rig.said("stat -c '%%U %%a %%s' %s", endpoint.key_file).rpartition(" ")
            expect("root 600", owner if size not in ("", "0") else "no key")
            rule = {
                "iif !=": "lo",
                "daddr ==": str(ipaddress.ip_address(endpoint.public_address)),
                "dport ==": endpoint.port,
                "saddr !=": collapsed(list(endpoint.networks)),
                "then": "drop",
            }
            found = rules_in_force(rig, endpoint)
            expect("1 rule", f"{len(found)} rule{'s' * (len(found) != 1)}")
            expect(rule, found[0])


@check("critical", "endpoints")
def test_gate_refuses(rig: Subject) -> None:
    """Without the key nothing but the health check answers."""
    for endpoint in rig.plan.endpoints:
        if endpoint.public_url:
            for path, due in {endpoint.ready_path: "200", "/v1/models": "401", "/metrics": "401"}.items():
                url = f"{endpoint.public_url}{path}"
                expect({url: due}, {url: rig.said("curl -sS -m 20 -o /dev/null -w '%%{http_code}' %s", url)})
