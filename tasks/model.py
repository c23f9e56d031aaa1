"""The checkpoint: its download starts here, as a unit of its own, and goes on while the other steps work."""

from __future__ import annotations

from pathlib import Path

from pyinfra.api.deploy import deploy

from rigup.operations import files, users, venv
from rigup.operations import model as model_operations
from tasks.preflight import Brief

__all__ = ["model"]

FILES = Path(__file__).resolve().parent.parent / "files"
LIBRARY = "/usr/local/lib/rigup"
USER = "rigup-fetch"


@deploy("model")
def model(brief: Brief) -> None:
    """The downloader is there, and every checkpoint that is not in the store is on its way."""
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
        index=brief.settings.pypi_index,
    )
    files.install(
        name="Install the downloader", dest=f"{LIBRARY}/fetch.py", content=(FILES / "fetch.py").read_text(), mode="755"
    )
    files.install(
        name="Install the downloader's unit",
        dest="/etc/systemd/system/model-fetch@.service",
        content=(FILES / "model-fetch@.service").read_text(),
    )
    for checkpoint in brief.plan.checkpoints:
        model_operations.fetch(
            name=f"Start the download of {checkpoint.repo}",
            checkpoint=checkpoint,
            endpoint=brief.settings.hub_endpoint,
        )
