"""Endpoints that are reachable from beyond their host: the key, the firewall rule, and that nothing else gets in."""

from __future__ import annotations

from subject import Subject, check, expect, expect_text

from rigup.gate import GATES, config_path, config_text, firewall_text, parse_gate_names, rule_digest, rules_path


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
            # It brings pyinfra with it, which most audits do without.
            from rigup.facts.gate import GateState, parse_gate_state

            asked = GateState().command(endpoint.name, endpoint.key_file).get_raw_value()
            state = parse_gate_state(rig.said(asked).splitlines())
            expect("root 600", state.key)
            expect(f"rule {rule_digest(endpoint)}", f"rule {state.rule or 'none'}")


@check("critical", "endpoints")
def test_gate_refuses(rig: Subject) -> None:
    """Without the key nothing but the health check answers."""
    for endpoint in rig.plan.endpoints:
        if endpoint.public_url:
            for path, due in {endpoint.ready_path: "200", "/v1/models": "401", "/metrics": "401"}.items():
                url = f"{endpoint.public_url}{path}"
                expect({url: due}, {url: rig.said("curl -sS -m 20 -o /dev/null -w '%%{http_code}' %s", url)})
