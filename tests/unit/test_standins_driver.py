"""The stand-ins of the driver: module build, persistence, device nodes, nvcc."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.mirror.kernel_module import __file__ as kernel_module_file
from lab.mirror.kernel_module import read_modinfo
from lab.mirror.parts import STANDINS, text_of
from tests.unit.standin_host import StandinHost, card
from tests.unit.waiting import until

KERNEL = "6.12.1-test"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The module's source directory, as in the package."""
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "build_modules.py").write_bytes((STANDINS / "build_modules.py").read_bytes())
    (directory / "kernel_module.py").write_bytes(Path(kernel_module_file).read_bytes())
    return directory


def build(source: Path, headers: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "build_modules.py", KERNEL, str(headers), "595.91.07", "Dual MIT/GPL"]
    return subprocess.run(command, cwd=source, capture_output=True, text=True)


def headers(directory: Path, release: str) -> Path:
    place = directory / "include/config/kernel.release"
    place.parent.mkdir(parents=True)
    place.write_text(f"{release}\n")
    return directory


def test_the_build_makes_modules_for_the_kernel_at_the_drivers_version(source: Path, tmp_path: Path) -> None:
    done = build(source, headers(tmp_path / "headers", KERNEL))
    assert done.returncode == 0, done.stderr
    module = read_modinfo((source / "nvidia.ko").read_bytes())
    assert (module["version"], module["license"], module["depends"]) == ("595.91.07", "Dual MIT/GPL", "")
    assert module["vermagic"].split()[0] == KERNEL
    uvm = read_modinfo((source / "nvidia-uvm.ko").read_bytes())
    assert (uvm["name"], uvm["depends"], uvm["parm"].split(":")[0]) == ("nvidia_uvm", "nvidia", "uvm_disable_hmm")


def test_headers_of_another_kernel_or_none_fail_the_build(source: Path, tmp_path: Path) -> None:
    for wrong in (headers(tmp_path / "other", "6.1.0-other"), tmp_path / "absent"):
        done = build(source, wrong)
        assert done.returncode == 1
        assert str(wrong) in done.stderr
    assert not list(source.glob("*.ko"))


def test_dkms_installs_every_module_the_build_makes() -> None:
    names = [line.partition("=")[2] for line in text_of("etc/dkms.conf").splitlines() if line.startswith("BUILT_")]
    assert names == [f'"{name}"' for name in ("nvidia", "nvidia-uvm", "nvidia-modeset", "nvidia-drm", "nvidia-peermem")]


@pytest.fixture
def host(tmp_path: Path) -> StandinHost:
    made = StandinHost.make(tmp_path / "host", [card(0)])
    made.install("595.91.07")
    made.load("595.91.07")
    return made


def mode(host: StandinHost) -> str:
    return host.run("nvidia_smi.py", "--query-gpu=persistence_mode", "--format=csv,noheader").stdout.strip()


@pytest.mark.parametrize(
    ("option", "expected"), [("--persistence-mode", "Enabled"), ("--no-persistence-mode", "Disabled")]
)
def test_the_persistence_daemon_keeps_the_mode_while_it_runs(host: StandinHost, option: str, expected: str) -> None:
    done = host.run("nvidia_persistenced.py", option, "--verbose")
    assert done.returncode == 0, done.stderr
    process = int((host.root / "run/nvidia-persistenced/nvidia-persistenced.pid").read_text())
    try:
        assert mode(host) == expected
    finally:
        os.kill(process, signal.SIGTERM)
    until(lambda: not (host.root / "run/nvidia-persistenced/nvidia-persistenced.pid").exists())
    assert mode(host) == "Disabled"


def test_a_daemon_that_was_killed_no_longer_counts(host: StandinHost) -> None:
    host.write("run/nvidia-persistenced/persistence-mode", "on\n")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host.write("run/nvidia-persistenced/nvidia-persistenced.pid", f"{gone.pid}\n")
    assert mode(host) == "Disabled"


def test_without_a_loaded_module_daemon_and_modprobe_fail(host: StandinHost) -> None:
    assert host.run("nvidia_modprobe.py", "-u", "-c=0").returncode == 0
    (host.root / "proc/driver/nvidia/version").unlink()
    assert host.run("nvidia_modprobe.py", "-u", "-c=0").returncode == 1
    done = host.run("nvidia_persistenced.py", "--persistence-mode")
    assert done.returncode == 1
    assert "failed to initialize" in done.stderr


def test_nvcc_prints_its_release_and_compiles_nothing(tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(text_of("nvcc", RELEASE="13.2", VERSION="13.2.10"))
    told = subprocess.run(["sh", str(nvcc), "--version"], capture_output=True, text=True)
    assert "Cuda compilation tools, release 13.2, V13.2.10" in told.stdout
    assert subprocess.run(["sh", str(nvcc), "a.cu"], capture_output=True).returncode == 1


def test_units_are_what_systemd_accepts() -> None:
    if subprocess.run(["sh", "-c", "command -v systemd-analyze"], capture_output=True).returncode:
        pytest.skip("no systemd-analyze here")
    for unit in sorted((STANDINS / "units").iterdir()):
        done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
        # The unit is not wrong because a program is not installed here.
        faults = [line for line in done.stderr.splitlines() if unit.name in line and "is not executable" not in line]
        faults = [line for line in faults if "not found" not in line and "Failed to create" not in line]
        assert not faults
