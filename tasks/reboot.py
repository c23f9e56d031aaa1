"""At most one reboot a run, only where what is installed is not yet what runs."""

from __future__ import annotations

from pyinfra.api.deploy import deploy
from pyinfra.context import host

from rigup.facts.files import FileText
from rigup.operations import docker, systemd
from rigup.operations import reboot as reboot_operations
from rigup.plan.model import PLAN, kept_plan
from tasks.context import Context
from tasks.driver import PERSISTENCED, PERSISTENCED_DROP_IN

__all__ = ["reboot"]


@deploy("reboot")
def reboot(context: Context) -> None:
    """The running kernel, its arguments and its modules are the installed ones; containers can see the GPUs."""
    settings = context.settings
    former = kept_plan(host.get_fact(FileText, path=PLAN)).get("settings", {}).get("kernel_args", [])
    reboot_operations.when_needed(
        name="Reboot if what runs is not what is installed",
        kernel_args=list(settings.kernel_args),
        modprobe_options=settings.modprobe_options,
        former_args=[argument for argument in former if argument not in settings.kernel_args],
        gpus=context.gpus,
        allowed=settings.reboot == "when-needed",
        timeout=settings.reboot_timeout,
    )
    systemd.converge(
        name="Run the persistence daemon as its drop-in says", unit=PERSISTENCED, inputs=[PERSISTENCED_DROP_IN]
    )
    uuids = [uuid for endpoint in context.plan.endpoints for uuid in endpoint.gpu_uuids]
    docker.cdi(name="List the GPUs for containers", gpus=context.gpus, uuids=uuids)
