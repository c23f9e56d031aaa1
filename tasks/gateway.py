"""The way to endpoints from beyond their host: a key, and a firewall rule that admits the endpoint's networks alone."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from rigup.operations import apt, files, systemd
from rigup.operations import gateway as gateway_operations
from rigup.render import gateway as gateways
from rigup.resources import FILES
from tasks.preflight import Context

__all__ = ["gateway"]


@deploy("gateway")
def gateway(context: Context) -> None:
    """Every endpoint with a public address has its gateway there; every other endpoint has none."""
    public = [endpoint for endpoint in context.plan.endpoints if endpoint.public_address]
    gateway_operations.absent_others(
        name="Close gateways that are no longer wanted", keep=[each.name for each in public]
    )
    if not public:
        return
    apt.install(name="Install the gateway's programs", packages={"haproxy": None, "nftables": None})
    unit = files.install(
        name="Install the gateway's unit",
        dest="/etc/systemd/system/rigup-gateway@.service",
        content=(FILES / "rigup-gateway@.service").read_text(),
    )
    for endpoint in public:
        gateway_operations.key(name=f"Have a key for {endpoint.name}", endpoint=endpoint.name, path=endpoint.key_file)
        config, rules = gateways.config_path(endpoint), gateways.rules_path(endpoint)
        written = [
            files.install(
                name=f"Write the gateway of {endpoint.name}",
                dest=config,
                content=gateways.config_text(endpoint),
                validate=["haproxy", "-c", "-q", "-f", "%s"],
            ),
            files.install(
                name=f"Write the firewall rule of {endpoint.name}",
                dest=rules,
                content=gateways.firewall_text(endpoint),
                validate=["nft", "-c", "-f", "%s"],
            ),
        ]
        systemd.converge(
            name=f"Open the gateway of {endpoint.name} on {endpoint.public_address}",
            unit=endpoint.gateway,
            inputs=[config, rules, endpoint.key_file],
            reload_for=[unit, *written],
            timeout=60,
        )
        gateway_operations.firewall(
            name=f"Admit {', '.join(endpoint.allowed_networks)} to {endpoint.name}",
            endpoint=endpoint.name,
            key=endpoint.key_file,
            rules=rules,
            digest=gateways.rule_digest(endpoint),
        )
