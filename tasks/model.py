"""Checkpoints: their downloads start here, as units of their own, and run while the other steps work."""

from __future__ import annotations

from pyinfra.api.deploy import deploy
from pyinfra.api.hiddenvalue import HiddenValue

from rigup.lock.hub import token_for
from rigup.operations import apt, files, systemd, users, venv
from rigup.operations import model as model_operations
from rigup.operations.model import Sources
from rigup.plan.peers import CONFIG, UNIT
from rigup.render.peers import daemon_config
from rigup.render.systemd import mount_text, mount_unit
from rigup.resources import FILES
from tasks.context import Context

__all__ = ["model"]

LIBRARY = "/usr/local/lib/rigup"
USER = "rigup-fetch"
PROGRAMS = ("fetch.py", "fetch_hub.py", "fetch_request.py", "fetch_sources.py", "fetch_store.py")
TOKEN = "/etc/rigup/hub-token"


@deploy("model")
def model(context: Context) -> None:
    """Install the downloader, and start the download of every checkpoint that is not in the store."""
    if context.settings.model_disk:
        _mount_store(context.settings.model_store, context.settings.model_disk)
    users.system(name="Create the downloader's user", user=USER)
    files.install(
        name="Write the requirements of the downloader",
        dest=f"{LIBRARY}/fetch-requirements.lock",
        content=(FILES / "fetch-requirements.lock").read_text(),
    )
    venv.synced(
        name="Install the downloader's packages",
        path=f"{LIBRARY}/venv",
        requirements=f"{LIBRARY}/fetch-requirements.lock",
        index=context.settings.pypi_index,
        _env=context.proxies.environment,
    )
    for program in PROGRAMS:
        files.install(
            name=f"Install the downloader ({program})",
            dest=f"{LIBRARY}/{program}",
            content=(FILES / program).read_text(),
            mode="755",
        )
    files.install(
        name="Install the downloader's unit",
        dest="/etc/systemd/system/model-fetch@.service",
        content=(FILES / "model-fetch@.service").read_text(),
    )
    settings = context.settings
    token = token_for(settings.hub_endpoint)
    if token:
        files.install(name="Write the hub token", dest=TOKEN, content=HiddenValue(token), mode="600", secret=True)  # type: ignore[no-untyped-call]
    else:
        files.absent(name="Remove the hub token", path=TOKEN)
    if context.peers:
        _serve_peers(context)
    else:
        systemd.stopped(name="Stop serving peers", unit=UNIT)
    sources = Sources(
        hubs=tuple(url for url in (settings.hub_mirror, settings.hub_endpoint) if url),
        name=context.plan.host,
        peers=context.peers,
        directory=settings.model_source,
        token=TOKEN if token else None,
    )
    for checkpoint in context.plan.checkpoints:
        model_operations.fetch(name=f"Start the download of {checkpoint.repo}", checkpoint=checkpoint, sources=sources)


def _mount_store(path: str, label: str) -> None:
    """Mount the store's own disk, and let nothing be downloaded while it is not mounted."""
    unit = mount_unit(path)
    written = files.install(
        name="Write the mount unit of the store's disk",
        dest=f"/etc/systemd/system/{unit}",
        content=mount_text(path, label),
    )
    files.install(
        name="Make downloads wait for the store's disk",
        dest="/etc/systemd/system/model-fetch@.service.d/store.conf",
        content=f"# Written by rigup; the next deploy undoes changes made here.\n[Unit]\nRequiresMountsFor={path}\n",
    )
    systemd.converge(name="Mount the store's disk", unit=unit, reload_for=[written], timeout=100)


def _serve_peers(context: Context) -> None:
    """Serve verified files to the other hosts of the inventory, and to nobody else."""
    apt.install(name="Install rsync", packages={"rsync": None})
    config = files.install(
        name="Write the configuration for peers",
        dest=CONFIG,
        content=daemon_config(
            context.settings.model_store, context.settings.peer_port, [each.address for each in context.peers]
        ),
    )
    unit = files.install(
        name="Install the peers' unit",
        dest=f"/etc/systemd/system/{UNIT}",
        content=(FILES / "rigup-peers.service").read_text(),
    )
    systemd.converge(
        name="Serve the peers",
        unit=UNIT,
        inputs=[CONFIG],
        reload_for=[config, unit],
    )
