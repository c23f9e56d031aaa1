"""The endpoints, each a systemd unit that is active only once it answers."""

from __future__ import annotations

from pathlib import Path

from pyinfra.api.deploy import deploy

from rigup.diagnosis import fatal_text
from rigup.operations import files, model, systemd, venv
from rigup.render import CLIENT, FATAL_LINES, PROVE, SMOKE, WAIT_READY, served_argv, unit_text
from tasks.preflight import Brief

__all__ = ["serve"]

FILES = Path(__file__).resolve().parent.parent / "files"


@deploy("serve")
def serve(brief: Brief) -> None:
    """Every endpoint of the plan serves what the plan says."""
    for checkpoint in brief.plan.checkpoints:
        model.wait(
            name=f"Have {checkpoint.repo} whole and verified",
            checkpoint=checkpoint,
            timeout=brief.settings.fetch_timeout,
        )
    files.install(
        name="Install the readiness check", dest=WAIT_READY, content=(FILES / "wait_ready.py").read_text(), mode="755"
    )
    for path in (PROVE, SMOKE):
        content = (FILES / Path(path).name).read_text()
        files.install(name=f"Install the proof: {Path(path).name}", dest=path, content=content, mode="755")
    requirements = f"{CLIENT}-requirements.lock"
    content = (FILES / Path(requirements).name).read_text()
    files.install(name="Name the proof's packages", dest=requirements, content=content)
    venv.synced(
        name="Install the proof's packages", path=CLIENT, requirements=requirements, index=brief.settings.pypi_index
    )
    files.install(name="Install what the readiness check knows", dest=FATAL_LINES, content=fatal_text())
    for endpoint in brief.plan.endpoints:
        unit = f"/etc/systemd/system/{endpoint.unit}"
        written = files.install(name=f"Write the unit of {endpoint.name}", dest=unit, content=unit_text(endpoint))
        systemd.converge(
            name=f"Serve {endpoint.recipe} as {endpoint.name}",
            unit=endpoint.unit,
            inputs=[endpoint.env_file, *(f"{endpoint.directory}/{name}" for name in endpoint.patched_files)],
            command=served_argv(endpoint),
            reload_for=[written],
            timeout=endpoint.ready_timeout + 120,
        )
