"""The endpoints, each a systemd unit that is active only once it answers."""

from __future__ import annotations

from pathlib import Path

from pyinfra.api.deploy import deploy

from rigup.diagnosis.explain import fatal_text
from rigup.operations import files, model, serving, systemd, venv
from rigup.plan.model import PLAN
from rigup.render.systemd import CLIENT, FATAL_LINES, JUDGE, PROVE, SMOKE, WAIT_READY
from rigup.resources import FILES
from tasks.preflight import Context

__all__ = ["serve"]

LIBRARY = "/usr/local/lib/rigup"
COMMIT_UNIT = "rigup-commit.service"
# What is imported comes first: a program that is installed without it would not run.
PROGRAMS = {
    "readiness check": WAIT_READY,
    "proof": PROVE,
    "smoke set's way to ask": f"{LIBRARY}/smoke_ask.py",
    "smoke set": SMOKE,
    "judge of arguments": JUDGE,
    "switch's record": f"{LIBRARY}/switch_record.py",
    "switch's way to the units": f"{LIBRARY}/switch_units.py",
    "switch": serving.SWITCH,
}


@deploy("serve")
def serve(context: Context) -> None:
    """Every endpoint of the plan serves what the plan says, or what served before still does."""
    endpoints = context.plan.endpoints
    for what, path in PROGRAMS.items():
        content = (FILES / Path(path).name).read_text()
        files.install(name=f"Install the {what}", dest=path, content=content, mode="755")
    unit = files.install(
        name="Install what finishes a switch after a power cut",
        dest=f"/etc/systemd/system/{COMMIT_UNIT}",
        content=(FILES / COMMIT_UNIT).read_text(),
    )
    systemd.enabled(name="Finish an interrupted switch at boot", unit=COMMIT_UNIT, reload_for=[unit])
    requirements = f"{CLIENT}-requirements.lock"
    content = (FILES / Path(requirements).name).read_text()
    files.install(name="Name the proof's packages", dest=requirements, content=content)
    venv.synced(
        name="Install the proof's packages",
        path=CLIENT,
        requirements=requirements,
        index=context.settings.pypi_index,
        _env=context.proxies.environment,
    )
    files.install(name="Install what the readiness check knows", dest=FATAL_LINES, content=fatal_text())
    # What the engine refuses is told before the longest wait.
    for endpoint in endpoints:
        serving.judged(name=f"Have the engine judge the arguments of {endpoint.name}", endpoint=endpoint)
    for checkpoint in context.plan.checkpoints:
        model.wait(
            name=f"Download and verify {checkpoint.repo}",
            checkpoint=checkpoint,
            timeout=context.settings.fetch_timeout,
        )
    for endpoint in endpoints:
        files.absent(name=f"Have no other unit of {endpoint.name}", path=f"/etc/systemd/system/{endpoint.unit}")
    named = ", ".join(f"{endpoint.recipe} as {endpoint.name}" for endpoint in endpoints)
    serving.serve(
        name=f"Serve {named}",
        endpoints=endpoints,
        reload_for=context.prepared,
        max_unavailable=context.settings.max_unavailable,
    )
    serving.tidy(name="Remove the files of earlier generations", endpoints=endpoints)
    # With the recipes' environments in it, which may hold a secret.
    files.install(name="Keep the plan on the host", dest=PLAN, content=context.plan.text(), mode="600", secret=True)
