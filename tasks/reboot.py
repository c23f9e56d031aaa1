"""At most one reboot per run, only if the host does not run what is installed."""

from __future__ import annotations

from pyinfra.api.deploy import deploy
from pyinfra.api.operation import OperationMeta
from pyinfra.context import host

from rigup.facts.files import FileText
from rigup.operations import docker, systemd
from rigup.operations import reboot as reboot_operations
from rigup.paths import PERSISTENCED_DROP_IN, PERSISTENCED_UNIT, PLAN
from rigup.plan.model import kept_plan
from tasks.context import Context


@deploy("reboot")
def reboot(context: Context) -> OperationMeta:
    """Make the host run the installed kernel, arguments and modules, and let containers see the GPUs.

    Returns the operation that restarts the persistence daemon.
    """
    settings = context.settings
    former = kept_plan(host.get_fact(FileText, path=PLAN)).get("settings", {}).get("kernel_args", [])
    reboot_operations.when_needed(
        name="Reboot if required",
        kernel_args=list(settings.kernel_args),
        modprobe_options=settings.modprobe_options,
        former_args=[argument for argument in former if argument not in settings.kernel_args],
        gpus=context.gpus,
        allowed=settings.reboot == "when-needed",
        timeout=settings.reboot_timeout,
    )
    persistence = systemd.converge(
        name="Apply the settings of the persistence daemon", unit=PERSISTENCED_UNIT, inputs=[PERSISTENCED_DROP_IN]
    )
    uuids = [uuid for endpoint in context.plan.endpoints for uuid in endpoint.gpu_uuids]
    docker.cdi(name="Update the GPU list for containers", gpus=context.gpus, uuids=uuids)
    return persistence
