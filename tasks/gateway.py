"""Access to endpoints from other hosts: a key, and a firewall rule that allows only the endpoint's networks."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from rigup.operations import apt, files, systemd
from rigup.operations import gateway as gateway_operations
from rigup.paths import FIREWALL, GATEWAY_LUA, GATEWAY_TEMPLATE, NFTABLES_DROP_IN
from rigup.render import gateway as gateways
from rigup.render.systemd import gateway_unit_text, nftables_text
from rigup.resources import FILES
from tasks.context import Context


@deploy("gateway")
def gateway(context: Context) -> None:
    """Give every endpoint with a public address a gateway, and no other."""
    public = [endpoint for endpoint in context.plan.endpoints if endpoint.public_address]
    gateway_operations.absent_others(
        name="Remove gateways that are no longer configured", keep=[each.name for each in public]
    )
    if not public:
        return
    apt.install(name="Install HAProxy and nftables", packages={"haproxy": None, "nftables": None})
    unit = files.install(
        name="Install the gateway's unit",
        dest=GATEWAY_TEMPLATE,
        content=gateway_unit_text(),
    )
    files.install(name="Write the list of firewall rules", dest=FIREWALL, content=gateways.all_rules_text())
    firewall = files.install(
        name="Make nftables load the firewall rules", dest=NFTABLES_DROP_IN, content=nftables_text()
    )
    program = files.install(
        name="Install the gateway's check of the engine",
        dest=GATEWAY_LUA,
        content=(FILES / "gateway.lua").read_text(),
    )
    for endpoint in public:
        gateway_operations.key(
            name=f"Generate the key of {endpoint.name}", endpoint=endpoint.name, path=endpoint.key_file
        )
        config, rules = gateways.config_path(endpoint), gateways.rules_path(endpoint)
        written = [
            files.install(
                name=f"Write the gateway configuration of {endpoint.name}",
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
            name=f"Start the gateway of {endpoint.name} on {endpoint.public_address}",
            unit=endpoint.gateway,
            inputs=[config, rules, endpoint.key_file, GATEWAY_LUA],
            reload_for=[unit, firewall, program, *written],
            timeout=60,
        )
        gateway_operations.firewall(
            name=f"Allow {', '.join(endpoint.allowed_networks)} to reach {endpoint.name}",
            endpoint=endpoint.name,
            key=endpoint.key_file,
            rules=rules,
            digest=gateways.rule_digest(endpoint),
        )
