"""The load balancer: one address for the endpoints of all hosts, with named keys."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pyinfra.api.deploy import deploy
from pyinfra.api.operation import OperationMeta

from rigup.operations import balancer as balancer_operations
from rigup.operations import files, systemd
from rigup.operations import gateway as gateway_operations
from rigup.operations import verify as verify_operations
from rigup.paths import BALANCER_CLIENTS, BALANCER_KEY, BALANCER_LUA, client_key_file, gateway_unit
from rigup.plan.balancer import NAME
from rigup.render import balancer as balancers
from rigup.resources import FILES
from tasks.context import Context


@deploy("balancer")
def balancer_keys(context: Context) -> None:
    """Create the load balancer's keys before the gateways are configured to accept them."""
    if context.balancer is None or not context.balances:
        return
    words = {BALANCER_KEY: "key "}
    if context.plan.host == context.balancer.first:
        words |= {client_key_file(name): "" for name in context.balancer.keys}
    balancer_operations.keys(name="Generate the keys of the load balancer", paths=words)


@deploy("balancer")
def balancer(context: Context, shared: Sequence[OperationMeta]) -> None:
    """Run the load balancer on the hosts that the inventory names.

    `shared` are the operations that write what it has in common with gateways.
    """
    if context.balancer is None or not context.balances:
        return
    host, unit = context.plan.host, gateway_unit(NAME)
    opening = balancers.opening(context.balancer, host)
    config = balancers.config_text(context.balancer, host)
    written = [
        files.install(
            name="Install the load balancer's program",
            dest=BALANCER_LUA,
            content=(FILES / "balancer.lua").read_text(),
        ),
        balancer_operations.digests(
            name="Write which keys clients may use",
            dest=BALANCER_CLIENTS,
            keys={name: (context.balancer.first, client_key_file(name)) for name in context.balancer.keys},
            form="{digest} {label}",
        ),
        files.install(
            name="Write the configuration of the load balancer",
            dest=balancers.CONFIG,
            content=config,
            validate=["haproxy", "-c", "-q", "-f", "%s"],
        ),
    ]
    rules = files.install(
        name="Write the firewall rule of the load balancer",
        dest=opening.path,
        content=opening.text,
        validate=["nft", "-c", "-f", "%s"],
    )
    systemd.converge(
        name=f"Start the load balancer on {context.balancer.url(host)}",
        unit=unit,
        reload_for=[*shared, *written, rules],
        timeout=60,
    )
    gateway_operations.reloaded(
        name="Reload the load balancer",
        unit=unit,
        inputs=[balancers.CONFIG, BALANCER_LUA, BALANCER_CLIENTS, BALANCER_KEY],
        mark=balancers.LOADED,
        reload_for=written,
    )
    gateway_operations.firewall(
        name=f"Allow {', '.join(opening.networks)} to reach the load balancer",
        endpoint=NAME,
        key=BALANCER_KEY,
        rules=opening.path,
        digest=opening.digest,
    )
    if host == context.balancer.first:
        verify_operations.balancer_verified(
            name="Verify that the load balancer asks for a key",
            url=context.balancer.url(host),
            unit=unit,
            key_file=client_key_file(next(iter(context.balancer.keys))),
            digest=hashlib.sha256(config.encode()).hexdigest()[:12],
        )
