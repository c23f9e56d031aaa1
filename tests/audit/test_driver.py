"""The driver step: the locked NVIDIA driver is installed, loaded and used."""

from __future__ import annotations

from rigup.audit.check import YOU, check
from rigup.audit.expect import expect, expect_at_least, expect_file, expect_none, expect_repository
from rigup.audit.subject import Subject
from rigup.distros.driver import PREFERENCES, conflicting
from rigup.paths import APT_CUDA_PREFERENCES, PERSISTENCED_DROP_IN
from rigup.templates import filled


@check("critical", "driver_branch", "driver_version")
def test_driver_packages(rig: Subject) -> None:
    """The driver's packages must have the locked versions."""
    expect(dict(rig.driver.packages), rig.versions(rig.driver.packages))


@check("major", "driver_branch")
def test_driver_pin(rig: Subject) -> None:
    """apt must not leave the driver's branch on its own."""
    expect(dict(rig.driver.pin), rig.versions(rig.driver.pin))


@check("major", repair=("driver", "docker"))
def test_driver_conflicts(rig: Subject) -> None:
    """Packages of other origins must not conflict with NVIDIA's and Docker's."""
    expect_none("no conflicting packages", conflicting(rig.installed))


@check("critical", "driver_branch", "driver_version", repair=("driver", "reboot"))
def test_driver_safe(rig: Subject) -> None:
    """Drivers before 575.57.08 do not support these cards (NVIDIA's GPU Operator platform support)."""
    expect_at_least("NVIDIA driver", "575.57.08", (rig.text("/sys/module/nvidia/version") or "0").strip())


@check("major", "cuda_mirror")
def test_driver_repository(rig: Subject) -> None:
    """apt must read NVIDIA's repository from the configured mirror, signed by the key in the lock."""
    expect_repository(rig, "cuda")
    if rig.distro.startswith("ubuntu"):
        expect_file(rig, APT_CUDA_PREFERENCES, PREFERENCES)


@check("critical", root=True, repair=(YOU,))
def test_driver_processes(rig: Subject) -> None:
    """A process that uses libraries of a replaced driver fails at its next CUDA call: restart it."""
    listed = rig.output("grep -lsE 'lib(nvidia|cuda)[^ ]* \\(deleted\\)' /proc/[0-9]*/maps || true").splitlines()
    names = [rig.output("cat %s/comm", path.removesuffix("/maps")) or path for path in listed]
    expect_none("no process that uses removed driver libraries", names)


@check("critical", "driver_branch", "driver_version", repair=("driver", "reboot"))
def test_driver_loaded(rig: Subject) -> None:
    """The loaded module, the module on disk and the libraries must have the same version."""
    version = rig.driver.version
    libraries = sorted({line.strip() for line in rig.gpus("driver_version")})
    expect(
        {"loaded": version, "on disk": version, "libraries": version},
        {
            "loaded": (rig.text("/sys/module/nvidia/version") or "not loaded").strip(),
            "on disk": rig.output("/sbin/modinfo -F version nvidia") or "none",
            "libraries": ", ".join(libraries) or "nvidia-smi fails",
        },
    )


@check("critical")
def test_driver_open_module(rig: Subject) -> None:
    """Only the open kernel module supports these cards."""
    expect("Dual MIT/GPL", rig.output("/sbin/modinfo -F license nvidia") or "no module")


@check("critical", repair=("driver", "reboot"))
def test_driver_gpus(rig: Subject) -> None:
    """The driver must see every GPU on the PCI bus."""
    expect(f"{rig.gpus_on_the_bus} GPUs", f"{len(rig.gpus('name'))} GPUs")


@check("major", "persistence", repair=("driver", "reboot"))
def test_driver_persistence(rig: Subject) -> None:
    """Persistence mode must be as configured, and its daemon must run now and start at boot."""
    mode = "Enabled" if rig.settings.persistence else "Disabled"
    option = "--persistence-mode" if rig.settings.persistence else "--no-persistence-mode"
    expect_file(rig, PERSISTENCED_DROP_IN, filled("nvidia-persistenced.conf.j2", mode=option))
    unit = rig.unit("nvidia-persistenced.service")
    expect(
        {"mode": mode, "daemon": "active", "at boot": "enabled"},
        {
            "mode": ", ".join(sorted(set(rig.gpus("persistence_mode")))) or "nvidia-smi fails",
            "daemon": unit.get("ActiveState"),
            "at boot": unit.get("UnitFileState"),
        },
    )
