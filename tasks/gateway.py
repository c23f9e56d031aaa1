"""Access to endpoints from other hosts: a key, and a firewall rule that allows only the endpoint's networks."""

from __future__ import annotations

from pyinfra.api.deploy import deploy
from pyinfra.api.operation import OperationMeta

from rigup.operations import apt, files, systemd
from rigup.operations import balancer as balancer_operations
from rigup.operations import gateway as gateway_operations
from rigup.paths import BALANCER_KEY, BALANCERS, FIREWALL, GATEWAY_LUA, GATEWAY_TEMPLATE, NFTABLES_DROP_IN
from rigup.plan.balancer import NAME
from rigup.plan.model import EndpointPlan
from rigup.render import firewall
from rigup.render import gateway as gateways
from rigup.render.systemd import gateway_unit_text, nftables_text
from rigup.resources import FILES
from tasks.context import Context


@deploy("gateway")
def gateway(context: Context) -> list[OperationMeta]:
    """Give every endpoint with a public address a gateway, and no other.

    Returns the operations that write the files which the load balancer has in common with gateways.
    """
    public = [endpoint for endpoint in context.plan.endpoints if endpoint.public_address]
    keep = [each.name for each in public] + [NAME] * context.balances
    gateway_operations.absent_others(name="Remove gateways that are no longer configured", keep=keep)
    if not keep:
        return []
    shared = _shared()
    if public and context.balancer:
        admitted = {address: (name, BALANCER_KEY) for name, address in context.balancer.hosts.items()}
        written = balancer_operations.digests(
            name="Admit the load balancer", dest=BALANCERS, keys=admitted, form="{label}={digest}"
        )
        shared.append(written)
    for endpoint in public:
        _gateway(context, endpoint, shared)
    return shared


def _shared() -> list[OperationMeta]:
    """Install what all gateways of a host share."""
    apt.install(name="Install HAProxy and nftables", packages={"haproxy": None, "nftables": None})
    unit = files.install(
        name="Install the gateway's unit",
        dest=GATEWAY_TEMPLATE,
        content=gateway_unit_text(),
    )
    files.install(name="Write the list of firewall rules", dest=FIREWALL, content=firewall.all_rules_text())
    drop_in = files.install(
        name="Make nftables load the firewall rules", dest=NFTABLES_DROP_IN, content=nftables_text()
    )
    program = files.install(
        name="Install the gateway's check of the engine",
        dest=GATEWAY_LUA,
        content=(FILES / "gateway.lua").read_text(),
    )
    return [unit, drop_in, program]


def _gateway(context: Context, endpoint: EndpointPlan, shared: list[OperationMeta]) -> None:
    addresses = tuple(context.balancer.hosts.values()) if context.balancer else ()
    gateway_operations.key(name=f"Generate the key of {endpoint.name}", endpoint=endpoint.name, path=endpoint.key_file)
    config, opening = gateways.config_path(endpoint), gateways.opening(endpoint, addresses)
    written = [
        files.install(
            name=f"Write the gateway configuration of {endpoint.name}",
            dest=config,
            content=gateways.config_text(endpoint, addresses),
            validate=["haproxy", "-c", "-q", "-f", "%s"],
        ),
        files.install(
            name=f"Write the firewall rule of {endpoint.name}",
            dest=opening.path,
            content=opening.text,
            validate=["nft", "-c", "-f", "%s"],
        ),
    ]
    systemd.converge(
        name=f"Start the gateway of {endpoint.name} on {endpoint.public_address}",
        unit=endpoint.gateway,
        inputs=[config, opening.path, endpoint.key_file, GATEWAY_LUA, *([BALANCERS] if addresses else [])],
        reload_for=[*shared, *written],
        timeout=60,
    )
    gateway_operations.firewall(
        name=f"Allow {', '.join(opening.networks)} to reach {endpoint.name}",
        endpoint=endpoint.name,
        key=endpoint.key_file,
        rules=opening.path,
        digest=opening.digest,
    )
