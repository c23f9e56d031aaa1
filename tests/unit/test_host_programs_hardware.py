"""rigup-host hardware: power limits and access control, set and put back."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.unit import pci_tree
from tests.unit.host_world import program, run_program

CONTROLS = {pci_tree.PORT: 0x1D, pci_tree.DOWN_A: 0x1D, pci_tree.DOWN_B: 0, pci_tree.OTHER_PORT: 0x1F}
SMI = """
state={state}
case "$1" in
--query-gpu=*)
  i=0; for gpu in GPU-a GPU-b GPU-c; do
    echo "$i, $gpu, $(cat "$state/$gpu" 2>/dev/null || echo 600.00)"; i=$((i + 1)); done;;
-i)
  watts=${{3#--power-limit=}}
  if [ "${{watts%.*}}" -lt 150 ]; then
    echo "Provided power limit $watts W is not a valid power limit which should be between 150.00 W and 600.00 W"
    exit 6
  fi
  echo "$watts.00" | sed 's/\\(\\..*\\)\\.00$/\\1/' >"$state/$2";;
esac
"""


class World:
    def __init__(self, root: Path) -> None:
        self.root, self.tools, self.state = root, root / "bin", root / "state"
        self.state.mkdir()
        program(self.tools, "nvidia-smi", SMI.format(state=self.state))
        pci_tree.write(root, CONTROLS)
        (root / "etc/rigup").mkdir(parents=True)

    def run(self, what: str, power: dict[str, int] | None = None, acs: bool = True) -> subprocess.CompletedProcess[str]:
        text = json.dumps({"power": power or {}, "acs": acs})
        (self.root / "etc/rigup/hardware.json").write_text(text)
        return run_program("hardware", what, tools=self.tools, RIGUP_ROOT=str(self.root))

    def limits(self) -> list[float]:
        gpus = ("GPU-a", "GPU-b", "GPU-c")
        return [float((self.state / gpu).read_text()) if (self.state / gpu).exists() else 600.0 for gpu in gpus]

    def controls(self) -> dict[str, int]:
        return {address: pci_tree.control(self.root, address) for address in CONTROLS}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_limits_are_set_for_all_or_by_number_or_uuid_and_put_back(world: World) -> None:
    assert world.run("apply", {"all": 450}).returncode == 0
    assert world.limits() == [450, 450, 450]
    assert world.run("apply", {"1": 300, "GPU-c": 200}).returncode == 0
    # The first one is no longer limited.
    assert world.limits() == [600, 300, 200]
    assert world.run("restore").returncode == 0
    assert world.limits() == [600, 600, 600]


def test_what_is_as_it_should_be_is_not_set_again(world: World) -> None:
    assert world.run("apply").returncode == 0
    assert not (world.tools / "nvidia-smi.calls").exists()
    world.run("apply", {"all": 450})
    world.run("apply", {"all": 450})
    assert (world.tools / "nvidia-smi.calls").read_text().count("--power-limit=450") == 3


def test_a_card_that_refuses_is_named_and_the_others_are_set(world: World) -> None:
    result = world.run("apply", {"0": 100, "1": 300})
    assert result.returncode == 1
    assert result.stderr == (
        "GPU 0: 100 W: Provided power limit 100 W is not a valid power limit which should be between 150.00 W and "
        "600.00 W\n"
    )
    assert world.limits() == [600, 300, 600]


def test_access_control_is_cleared_above_gpus_only_and_put_back(world: World) -> None:
    stranger = world.root / "sys/devices/pci0000:80/0000:80:01.1"
    stranger.mkdir(parents=True)
    (stranger / "vendor").write_text("0x1022\n")
    (stranger / "class").write_text("0x060400\n")
    (stranger / "config").write_bytes(pci_tree.config_space(0x1D))
    (world.root / "sys/bus/pci/devices/0000:80:01.1").symlink_to(stranger)

    assert world.run("apply", acs=False).returncode == 0
    assert set(world.controls().values()) == {0}
    assert pci_tree.control(world.root, "0000:80:01.1") == 0x1D
    # A hot reset brings it back, and the next run clears it again.
    world.run("apply", acs=False)
    assert world.run("restore").returncode == 0
    assert world.controls() == CONTROLS


def test_a_kernel_that_forbids_it_is_reported(world: World) -> None:
    config = (world.root / "sys/bus/pci/devices" / pci_tree.PORT / "config").resolve()
    config.chmod(0o444)
    if os.access(config, os.W_OK) and subprocess.run(["chattr", "+i", str(config)], capture_output=True).returncode:
        pytest.skip("root may write everything here")
    try:
        result = world.run("apply", acs=False)
    finally:
        subprocess.run(["chattr", "-i", str(config)], capture_output=True)
    assert result.returncode == 1
    assert f"access control (ACS) of {pci_tree.PORT} cannot be changed. With Secure Boot" in result.stderr
    assert world.controls()[pci_tree.OTHER_PORT] == 0


def test_without_a_driver_it_says_so(world: World) -> None:
    program(world.tools, "nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    result = world.run("apply", {"all": 450})
    assert (result.returncode, result.stderr) == (1, "NVIDIA-SMI has failed\n")
