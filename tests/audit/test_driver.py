"""NVIDIA's driver: the locked one is installed, loaded and used."""

from __future__ import annotations

from subject import YOU, Subject, check, expect, expect_at_least, expect_none, expect_repository

from rigup.distros.driver import conflicting

NAME = "RTX PRO 6000"


@check("critical", "driver_branch", "driver_version")
def test_driver_packages(rig: Subject) -> None:
    """The driver's packages, at the locked versions."""
    expect(dict(rig.driver.packages), rig.versions(rig.driver.packages))


@check("major", "driver_branch")
def test_driver_pin(rig: Subject) -> None:
    """apt cannot leave the driver's branch by itself."""
    expect(dict(rig.driver.pin), rig.versions(rig.driver.pin))


@check("major")
def test_driver_conflicts(rig: Subject) -> None:
    """No packages of other origins that get in the way of NVIDIA's and Docker's."""
    expect_none("none of the packages that conflict", conflicting(rig.installed))


@check("critical", "driver_branch", "driver_version", repair=("driver", "reboot"))
def test_driver_safe(rig: Subject) -> None:
    """Not older than the first driver that knows these cards (575.57.08, NVIDIA's GPU Operator platform support)."""
    expect_at_least("NVIDIA driver", "575.57.08", (rig.text("/sys/module/nvidia/version") or "0").strip())


@check("major", "cuda_mirror")
def test_driver_repository(rig: Subject) -> None:
    """apt knows NVIDIA's repository, at the mirror that the settings name, by its own key."""
    expect_repository(rig, f"{rig.settings.cuda_mirror}/{rig.distro}/x86_64/", "cuda-archive-keyring")


@check("critical", root=True, repair=(YOU,))
def test_driver_processes(rig: Subject) -> None:
    """No process runs on libraries of a driver that was replaced under it."""
    listed = rig.said("grep -lsE 'lib(nvidia|cuda)[^ ]* \\(deleted\\)' /proc/[0-9]*/maps || true").splitlines()
    names = [rig.said("cat %s/comm", path.removesuffix("/maps")) or path for path in listed]
    expect_none("no process on removed libraries of the driver", names)


@check("critical", "driver_branch", "driver_version", repair=("driver", "reboot"))
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


@check("critical")
def test_driver_open_module(rig: Subject) -> None:
    """The open kernel module: the other one does not know these cards."""
    expect("Dual MIT/GPL", rig.said("/sbin/modinfo -F license nvidia") or "no module")


@check("critical", repair=("driver", "reboot"))
def test_driver_gpus(rig: Subject) -> None:
    """The driver sees every GPU that is on the bus, and knows it by name."""
    names = rig.gpus("name")
    expect(f"{rig.gpus_on_the_bus} GPUs", f"{len(names)} GPUs")
    expect_none(f"{NAME} cards", [name for name in names if NAME not in name])


@check("major", "persistence", repair=("driver", "reboot"))
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
