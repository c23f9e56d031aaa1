"""Checkpoints: their downloads start here, as units of their own, and run while the other steps work."""

from __future__ import annotations

from pyinfra.api.deploy import deploy
from pyinfra.api.hiddenvalue import HiddenValue

from rigup.lock.hub import token_for
from rigup.operations import apt, files, systemd, users
from rigup.operations import model as model_operations
from rigup.operations.model import Sources
from rigup.paths import (
    FETCH_REQUIREMENTS,
    FETCH_STORE_DROP_IN,
    FETCH_TEMPLATE,
    FETCH_VENV,
    HUB_TOKEN,
    PEERS_DROP_IN,
    PEERS_UNIT,
    RSYNCD_CONFIG,
    SYSTEM_UNITS,
)
from rigup.render.peers import daemon_config
from rigup.render.systemd import (
    fetch_store_text,
    fetch_unit_text,
    mount_text,
    mount_unit,
    peers_allow_text,
    peers_unit_text,
)
from tasks.context import Context
from tasks.venvs import tool

USER = "rigup-fetch"
PEERS_USER = "rigup-peers"


@deploy("model")
def model(context: Context) -> None:
    """Install the downloader, and start the download of every checkpoint that is not in the store."""
    if context.settings.model_disk:
        _mount_store(context.settings.model_store, context.settings.model_disk)
    users.system(name="Create the downloader's user", user=USER)
    tool(
        context,
        "the downloader's packages",
        path=FETCH_VENV,
        locked="fetch-requirements.lock",
        requirements=FETCH_REQUIREMENTS,
    )
    files.install(
        name="Install the downloader's unit",
        dest=FETCH_TEMPLATE,
        content=fetch_unit_text(),
    )
    settings = context.settings
    token = token_for(settings.hub_endpoint)
    if token:
        files.install(name="Write the hub token", dest=HUB_TOKEN, content=HiddenValue(token), mode="600", secret=True)  # type: ignore[no-untyped-call]
    else:
        files.absent(name="Remove the hub token", path=HUB_TOKEN)
    if context.peers:
        _serve_peers(context)
    else:
        systemd.stopped(name="Stop serving peers", unit=PEERS_UNIT)
    sources = Sources(
        hubs=tuple(url for url in (settings.hub_mirror, settings.hub_endpoint) if url),
        name=context.plan.host,
        peers=context.peers,
        directory=settings.model_source,
        token=HUB_TOKEN if token else None,
    )
    for checkpoint in context.plan.checkpoints:
        model_operations.fetch(name=f"Start the download of {checkpoint.repo}", checkpoint=checkpoint, sources=sources)


def _mount_store(path: str, label: str) -> None:
    """Mount the store's own disk, and let nothing be downloaded while it is not mounted."""
    unit = mount_unit(path)
    written = files.install(
        name="Write the mount unit of the store's disk",
        dest=f"{SYSTEM_UNITS}/{unit}",
        content=mount_text(path, label),
    )
    files.install(
        name="Make downloads wait for the store's disk",
        dest=FETCH_STORE_DROP_IN,
        content=fetch_store_text(path),
    )
    systemd.converge(name="Mount the store's disk", unit=unit, reload_for=[written], timeout=100)


def _serve_peers(context: Context) -> None:
    """Serve verified files to the other hosts of the inventory, and to nobody else."""
    allowed = [each.address for each in context.peers]
    apt.install(name="Install rsync", packages={"rsync": None})
    users.system(name="Create the user that serves the peers", user=PEERS_USER)
    config = files.install(
        name="Write the configuration for peers",
        dest=RSYNCD_CONFIG,
        content=daemon_config(
            context.settings.model_store,
            context.settings.peer_port,
            allowed,
            [each.path for each in context.plan.checkpoints],
        ),
    )
    unit = files.install(
        name="Install the peers' unit",
        dest=f"{SYSTEM_UNITS}/{PEERS_UNIT}",
        content=peers_unit_text(),
    )
    allow = files.install(
        name="Let packets of the peers through", dest=PEERS_DROP_IN, content=peers_allow_text(allowed)
    )
    systemd.converge(
        name="Serve the peers",
        unit=PEERS_UNIT,
        inputs=[RSYNCD_CONFIG, PEERS_DROP_IN],
        reload_for=[config, unit, allow],
    )
