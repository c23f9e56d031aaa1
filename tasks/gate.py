"""The way to endpoints from beyond their host: a key, and a firewall rule that admits the endpoint's networks alone."""

from __future__ import annotations

from pathlib import Path

from pyinfra.api.deploy import deploy

from rigup import gate as gates
from rigup.operations import apt, files, systemd
from rigup.operations import gate as gate_operations
from tasks.preflight import Brief

__all__ = ["gate"]

FILES = Path(__file__).resolve().parent.parent / "files"


@deploy("gate")
def gate(brief: Brief) -> None:
    """Every endpoint with a public address has its gate there; every other endpoint has none."""
    public = [endpoint for endpoint in brief.plan.endpoints if endpoint.public_address]
    gate_operations.absent_others(name="Close gates that are no longer wanted", keep=[each.name for each in public])
    if not public:
        return
    apt.install(name="Install the gate's programs", packages={"haproxy": None, "nftables": None})
    unit = files.install(
        name="Install the gate's unit",
        dest="/etc/systemd/system/rigup-gate@.service",
        content=(FILES / "rigup-gate@.service").read_text(),
    )
    for endpoint in public:
        gate_operations.key(name=f"Have a key for {endpoint.name}", endpoint=endpoint.name, path=endpoint.key_file)
        config, rules = gates.config_path(endpoint), gates.rules_path(endpoint)
        written = [
            files.install(
                name=f"Write the gate of {endpoint.name}",
                dest=config,
                content=gates.config_text(endpoint),
                validate=["haproxy", "-c", "-q", "-f", "%s"],
            ),
            files.install(
                name=f"Write the firewall rule of {endpoint.name}",
                dest=rules,
                content=gates.firewall_text(endpoint),
                validate=["nft", "-c", "-f", "%s"],
            ),
        ]
        systemd.converge(
            name=f"Open the gate of {endpoint.name} on {endpoint.public_address}",
            unit=endpoint.gate,
            inputs=[config, rules, endpoint.key_file],
            reload_for=[unit, *written],
            timeout=60,
        )
        gate_operations.firewall(
            name=f"Admit {', '.join(endpoint.networks)} to {endpoint.name}",
            endpoint=endpoint.name,
            key=endpoint.key_file,
            rules=rules,
            digest=gates.rule_digest(endpoint),
        )
