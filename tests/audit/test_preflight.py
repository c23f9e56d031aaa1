"""What nothing can be done without."""

from __future__ import annotations

from subject import YOU, Subject, check, expect

from rigup.distros.table import DISTROS


@check("critical", repair=(YOU,))
def test_preflight_system(rig: Subject) -> None:
    """A distribution that rigup knows, on the one architecture that the packages are for."""
    name = DISTROS[rig.distro].name
    expect({"system": name, "machine": "x86_64"}, {"system": name, "machine": rig.said("uname -m")})


@check("critical", "endpoints", "recipe", repair=(YOU,))
def test_preflight_gpus(rig: Subject) -> None:
    """As many GPUs on the bus as the endpoints need."""
    needed = sum(endpoint.gpu_count for endpoint in rig.plan.endpoints)
    if rig.gpus_on_the_bus < needed:
        expect(f"{needed} GPUs on the PCI bus", f"{rig.gpus_on_the_bus}")
