"""The preflight step: what a host must have before anything is deployed."""

from __future__ import annotations

from rigup.audit.check import YOU, check
from rigup.audit.expect import expect
from rigup.audit.subject import Subject
from rigup.distros.table import DISTROS


@check("critical", repair=(YOU,))
def test_preflight_system(rig: Subject) -> None:
    """The distribution must be supported, on x86_64: the packages exist for nothing else."""
    name = DISTROS[rig.distro].name
    expect({"system": name, "machine": "x86_64"}, {"system": name, "machine": rig.output("uname -m")})


@check("critical", "endpoints", "recipe", repair=(YOU,))
def test_preflight_gpus(rig: Subject) -> None:
    """The host must have as many GPUs as its endpoints need."""
    needed = sum(endpoint.gpu_count for endpoint in rig.plan.endpoints)
    if rig.gpus_on_the_bus < needed:
        expect(f"{needed} GPUs on the PCI bus", f"{rig.gpus_on_the_bus}")
