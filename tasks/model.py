"""The checkpoint: its download starts here, as a unit of its own, and goes on while the other steps work."""

from __future__ import annotations

from pyinfra.api.deploy import deploy
from pyinfra.api.hiddenvalue import HiddenValue

from rigup.lock.hub import token_for
from rigup.operations import apt, files, systemd, users, venv
from rigup.operations import model as model_operations
from rigup.operations.model import Sources
from rigup.render.peers import CONFIG, UNIT, daemon_config
from rigup.render.systemd import mount_text, mount_unit
from rigup.resources import FILES
from tasks.preflight import Context

__all__ = ["model"]

LIBRARY = "/usr/local/lib/rigup"
USER = "rigup-fetch"
PROGRAMS = ("fetch.py", "fetch_hub.py", "fetch_request.py", "fetch_sources.py", "fetch_store.py")
TOKEN = "/etc/rigup/hub-token"


@deploy("model")
def model(context: Context) -> None:
    """The downloader is there, and every checkpoint that is not in the store is on its way."""
    if context.settings.model_disk:
        _mount_store(context.settings.model_store, context.settings.model_disk)
    users.system(name="Make the downloader's user", user=USER)
    files.install(
        name="Name the downloader's packages",
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
        files.install(name="Hand over the hub token", dest=TOKEN, content=HiddenValue(token), mode="600", secret=True)
    else:
        files.absent(name="Have no hub token", path=TOKEN)
    if context.peers:
        _serve_peers(context)
    else:
        systemd.stopped(name="Serve nobody", unit=UNIT)
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
    """The store's own disk is mounted, and nothing is downloaded while it is not."""
    unit = mount_unit(path)
    written = files.install(
        name="Name the store's disk", dest=f"/etc/systemd/system/{unit}", content=mount_text(path, label)
    )
    files.install(
        name="Let the download wait for the store's disk",
        dest="/etc/systemd/system/model-fetch@.service.d/store.conf",
        content=f"# Written by rigup; the next deploy undoes changes made here.\n[Unit]\nRequiresMountsFor={path}\n",
    )
    systemd.converge(name="Mount the store's disk", unit=unit, reload_for=[written], timeout=100)


def _serve_peers(context: Context) -> None:
    """What this host has verified is there for the other hosts of the inventory, and for nobody else."""
    apt.install(name="Install rsync", packages={"rsync": None})
    config = files.install(
        name="Say who the peers are",
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
