"""NVIDIA's driver: the locked one is installed, loaded and used."""

from __future__ import annotations

from subject import Subject, expect, expect_none

from rigup.packages import conflicting

NAME = "RTX PRO 6000"


def test_driver_packages(rig: Subject) -> None:
    """The driver's packages, at the locked versions."""
    expect(dict(rig.driver.packages), rig.versions(rig.driver.packages))


def test_driver_pin(rig: Subject) -> None:
    """apt cannot leave the driver's branch by itself."""
    expect(dict(rig.driver.pin), rig.versions(rig.driver.pin))


def test_driver_conflicts(rig: Subject) -> None:
    """No packages of other origins that get in the way of NVIDIA's and Docker's."""
    expect_none("none of the packages that conflict", conflicting(rig.installed))


def test_driver_loaded(rig: Subject) -> None:
    """The module that runs, the one that the next boot takes, and the libraries are of one version."""
    version = rig.driver.version
    libraries = sorted({line.strip() for line in rig.gpus("driver_version")})
    expect(
        {"loaded": version, "on disk": version, "libraries": version},
        {
            "loaded": (rig.text("/sys/module/nvidia/version") or "not loaded").strip(),
            "on disk": rig.said("/sbin/modinfo -F version nvidia") or "none",
            "libraries": ", ".join(libraries) or "nvidia-smi fails",
        },
    )


def test_driver_open_module(rig: Subject) -> None:
    """The open kernel module: the other one does not know these cards."""
    expect("Dual MIT/GPL", rig.said("/sbin/modinfo -F license nvidia") or "no module")


def test_driver_gpus(rig: Subject) -> None:
    """The driver sees every GPU that is on the bus, and knows it by name."""
    names = rig.gpus("name")
    expect(f"{rig.gpus_on_the_bus} GPUs", f"{len(names)} GPUs")
    expect_none(f"{NAME} cards", [name for name in names if NAME not in name])


def test_driver_persistence(rig: Subject) -> None:
    """The driver stays loaded between jobs, or does not, as the settings say; its daemon runs and is enabled."""
    mode = "Enabled" if rig.settings.persistence else "Disabled"
    unit = rig.unit("nvidia-persistenced.service")
    expect(
        {"mode": mode, "daemon": "active", "at boot": "enabled"},
        {
            "mode": ", ".join(sorted(set(rig.gpus("persistence_mode")))) or "nvidia-smi fails",
            "daemon": unit.get("ActiveState"),
            "at boot": unit.get("UnitFileState"),
        },
    )
