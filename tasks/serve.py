"""The endpoints, each a systemd unit that becomes active once it answers."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from rigup.diagnosis.explain import fatal_text
from rigup.operations import files, model, serving, systemd, verify
from rigup.paths import CLIENT, CLIENT_REQUIREMENTS, COMMIT_UNIT, FATAL_LINES, PLAN, SYSTEM_UNITS, draining
from rigup.render.systemd import commit_unit_text
from tasks.context import Context
from tasks.venvs import tool


@deploy("serve")
def serve(context: Context) -> None:
    """Serve every endpoint as the plan says; if that fails, the previous generation serves again."""
    endpoints = context.plan.endpoints
    unit = files.install(
        name="Install the unit that completes an interrupted switch",
        dest=f"{SYSTEM_UNITS}/{COMMIT_UNIT}",
        content=commit_unit_text(),
    )
    systemd.enabled(name="Enable the unit that completes an interrupted switch", unit=COMMIT_UNIT, reload_for=[unit])
    tool(
        context,
        "the verification client",
        path=CLIENT,
        locked="client-requirements.lock",
        requirements=CLIENT_REQUIREMENTS,
    )
    files.install(name="Write the fatal log lines of the readiness check", dest=FATAL_LINES, content=fatal_text())
    # Before the longest wait: refused arguments fail the deploy at once.
    for endpoint in endpoints:
        serving.arguments_checked(name=f"Check the arguments of {endpoint.name}", endpoint=endpoint)
    for checkpoint in context.plan.checkpoints:
        model.wait(
            name=f"Download and verify {checkpoint.repo}",
            checkpoint=checkpoint,
            timeout=context.settings.fetch_timeout,
        )
    for endpoint in endpoints:
        verify.cards_verified(name=f"Verify the GPUs of {endpoint.name}", endpoint=endpoint, gpus=context.gpus)
    for endpoint in endpoints:
        files.absent(name=f"Remove other units of {endpoint.name}", path=f"{SYSTEM_UNITS}/{endpoint.unit}")
    named = ", ".join(f"{endpoint.recipe} as {endpoint.name}" for endpoint in endpoints)
    serving.serve(
        name=f"Serve {named}",
        endpoints=endpoints,
        reload_for=context.prepared,
        max_unavailable=context.settings.max_unavailable,
        drain_s=context.settings.drain_timeout if context.balancer else 0,
    )
    serving.tidy(name="Remove the files of earlier generations", endpoints=endpoints)
    for endpoint in endpoints:
        # A switch that was ended from outside leaves this.
        files.absent(name=f"Let load balancers use {endpoint.name}", path=draining(endpoint.name))
    # It has the recipes' environments, which may hold a secret.
    files.install(name="Write the plan to the host", dest=PLAN, content=context.plan.text(), mode="600", secret=True)
