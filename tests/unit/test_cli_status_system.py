"""`rigup status --system`: kernel, driver and boot settings beside what the inventory says."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from rigup.cli import _status_system
from rigup.cli._status_system import Row, exit_code, system_of, systems_table
from rigup.config.inventory import Host, load_inventory
from rigup.facts.kernel import KernelStateValue, ModuleParametersValue
from rigup.facts.nvidia import DriverStateValue

K1, K2 = "6.12.57+deb13-amd64", "6.12.63+deb13-amd64"
ARGUMENTS = ("quiet", "iommu=pt", "pcie_aspm=off", "pcie_port_pm=off")
V1, V2 = "595.71.05", "595.91.07"
LOADED = ModuleParametersValue({"nvidia_uvm": {"uvm_disable_hmm": "1"}})


@pytest.fixture
def host(tmp_path: Path) -> Host:
    path = tmp_path / "lab.yaml"
    path.write_text("hosts:\n  rig1: {address: 192.0.2.1}\n")
    return load_inventory(path).host("rig1")


def test_a_host_that_runs_what_it_should(host: Host) -> None:
    kernel = KernelStateValue(K1, ARGUMENTS, (K1,), frozenset({K1}))
    driver = DriverStateValue(V1, True, {K1: V1}, V1)
    found = system_of(host, kernel, driver, LOADED)
    assert all(row.ok for row in found.rows) and found.reboot == ()
    assert Row("driver, libraries", V1, V1) in found.rows
    assert Row("kernel argument iommu=pt", "in effect", "in effect") in found.rows
    assert exit_code({"rig1": found}) == 0


def test_a_driver_that_was_upgraded_behind_its_back_and_a_newer_kernel(host: Host) -> None:
    kernel = KernelStateValue(K1, ("quiet", "iommu=pt"), (K1, K2), frozenset({K1, K2}))
    driver = DriverStateValue(V1, True, {K1: V2}, V2, nouveau=False)
    found = system_of(host, kernel, driver, ModuleParametersValue({"nvidia_uvm": {"uvm_disable_hmm": "0"}}))
    assert [(row.what, row.found, row.expected) for row in found.rows if not row.ok] == [
        ("kernel that boots next", K2, K1),
        ("driver, loaded", V1, V2),
        ("driver, on disk for this kernel", V2, V1),
        ("driver, for the next kernel", "none", V2),
        ("driver, libraries", V2, V1),
        ("kernel argument pcie_aspm=off", "missing", "in effect"),
        ("kernel argument pcie_port_pm=off", "missing", "in effect"),
        ("nvidia_uvm uvm_disable_hmm", "0", "1"),
    ]
    assert found.reboot == (
        f"kernel {K2} is installed, {K1} runs",
        "the kernel was booted without pcie_aspm=off pcie_port_pm=off",
        f"NVIDIA module {V1} is loaded, {V2} is installed",
        "module nvidia_uvm was loaded without uvm_disable_hmm=1",
    )
    assert exit_code({"rig1": found}) == 2


def test_nouveau_and_a_host_that_is_away(host: Host) -> None:
    kernel = KernelStateValue(K1, ARGUMENTS, (K1,), frozenset({K1}))
    found = system_of(host, kernel, DriverStateValue(nouveau=True), ModuleParametersValue())
    assert Row("nouveau", "loaded", "not loaded") in found.rows
    away = _status_system.SystemStatus("no answer within 5 s")
    assert exit_code({"rig1": found, "rig2": away}) == 1
    console = Console(file=io.StringIO(), width=100)
    console.print(systems_table({"rig2": away}))
    assert "no answer within 5 s" in console.file.getvalue()  # type: ignore[attr-defined]
