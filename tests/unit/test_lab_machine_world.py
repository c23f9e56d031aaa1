"""The lab's command line and inventory, as far as they work without booting a host."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lab import machine, world
from lab import state as state_module
from lab.host.rooted import resolve
from tests.unit.waiting import HANG_S

CHECKOUT = Path(__file__).resolve().parents[2]


def lab(state: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lab", *argv],
        cwd=CHECKOUT,
        env={**os.environ, "RIGUP_LAB_STATE": str(state)},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )


def made(state: Path, name: str, **spec: object) -> None:
    """Create the files of a host that was never booted."""
    (state / "hosts" / name / "root").mkdir(parents=True)
    (state / "hosts" / name / "host.json").write_text(
        json.dumps({"release": "trixie", "gpus": 4, "login": "ops", **spec})
    )
    (state / "README").touch()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the lab wants root before anything else")


def test_a_wrong_command_gets_a_list_of_commands(tmp_path: Path) -> None:
    result = lab(tmp_path, "upp")
    assert result.returncode == 2
    assert "'up'" in result.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["reset", "rig7"], "lab: lab host rig7 does not exist; existing hosts: rig1\n"),
        (["reboot", "server"], "lab: 'server' is not a lab host: their names are rig1 to rig19\n"),
    ],
)
def test_a_missing_host_gets_a_list_of_existing_ones(tmp_path: Path, argv: list[str], message: str) -> None:
    made(tmp_path, "rig1")
    result = lab(tmp_path, *argv)
    assert (result.returncode, result.stderr) == (1, message)


@needs_root
def test_an_impossible_number_of_hosts_is_refused(tmp_path: Path) -> None:
    result = lab(tmp_path / "state", "up", "--hosts", "20")
    assert (result.returncode, result.stderr) == (1, "lab: 20 hosts: the lab has 1 to 19\n")
    assert not (tmp_path / "state").exists()


@needs_root
def test_an_impossible_number_of_cards_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    result = lab(tmp_path / "state", "up", "--gpus", "9")
    assert (result.returncode, result.stderr) == (1, "lab: 9 GPUs: a lab host has 0 to 8\n")
    assert not (tmp_path / "state").exists()


@needs_root
def test_up_never_resets_an_existing_host(tmp_path: Path) -> None:
    made(tmp_path, "rig1", release="bookworm")
    made(tmp_path, "rig2", login="root")
    result = lab(tmp_path, "up", "--hosts", "2", "--release", "trixie", "--login", "ops")
    assert result.returncode == 1
    assert result.stderr == (
        "lab: rig1 was created with --release bookworm: `python -m lab reset rig1 --release trixie`\n"
        "rig2 was created with --login root: `python -m lab reset rig2 --login ops`\n"
    )


@needs_root
@pytest.mark.parametrize("command", ["up", "down"])
def test_a_directory_with_other_files_stays_unchanged(tmp_path: Path, command: str) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    result = lab(tmp_path, command)
    assert str(tmp_path) in result.stdout + result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_status_without_a_lab_shows_that_nothing_runs(tmp_path: Path) -> None:
    result = lab(tmp_path / "state", "status")
    assert result.returncode == 0
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["mirror", "down"],
        ["hub", "down"],
        ["registry", "down"],
    ]


def test_status_names_a_host_that_is_off(tmp_path: Path) -> None:
    made(tmp_path, "rig2", release="bookworm", login="root")
    made(tmp_path, "rig3", release="noble", login="ubuntu")
    said = lab(tmp_path, "status").stdout
    assert "rig2       off   Debian bookworm, 4 GPUs  ssh " in said
    assert "rig3       off   Ubuntu noble, 4 GPUs  ssh " in said


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (machine, state_module):
        monkeypatch.setattr(module, "STATE", tmp_path)
    monkeypatch.setattr(world, "INVENTORY", tmp_path / "lab.yaml")
    return tmp_path


def test_the_inventory_has_only_the_given_hosts(state: Path) -> None:
    made(state, "rig1")
    made(state, "rig2", login="root")
    made(state, "rig8")
    world.write_inventory(["rig2", "rig1"])
    world.write_inventory()
    hosts = yaml.safe_load((state / "lab.yaml").read_text())["hosts"]
    assert hosts == {
        "rig1": {"address": "10.98.0.11", "user": "ops"},
        "rig2": {"address": "10.98.0.12", "user": "root"},
    }


def test_a_host_that_is_gone_leaves_the_inventory(state: Path) -> None:
    made(state, "rig1")
    world.write_inventory(["rig1", "rig3"])
    assert list(yaml.safe_load((state / "lab.yaml").read_text())["hosts"]) == ["rig1"]


def test_the_inventory_is_one_that_rigup_accepts(state: Path) -> None:
    from rigup.config.inventory import load_inventory

    made(state, "rig1")
    loaded = load_inventory(world.write_inventory(["rig1"]))
    assert list(loaded.hosts) == ["rig1"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("/etc/passwd", "etc/passwd"),
        ("/abs/x", "target/x"),
        ("/rel/x", "target/x"),
        ("/up/x", "x"),
        ("/../../etc", "etc"),
        ("/chain/x", "target/x"),
    ],
)
def test_links_are_followed_inside_the_root(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / "target").mkdir()
    for link, target in {"abs": "/target", "rel": "target", "up": "../../..", "chain": "/abs"}.items():
        (tmp_path / link).symlink_to(target)
    assert resolve(tmp_path, name) == tmp_path / found
