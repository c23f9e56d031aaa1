"""The lab's container toolkit: output and files as the real one's, and GPUs in containers."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lab.mirror.parts import STANDINS
from tests.captures import recorded
from tests.unit.standin_host import StandinHost, card

CAPTURE = "nvidia-ctk-1.20/transcript.txt"
CTK = "nvidia_ctk.py"


@pytest.fixture
def host(tmp_path: Path) -> StandinHost:
    """Four cards with a working driver and toolkit."""
    made = StandinHost.make(tmp_path / "host", [card(index) for index in range(4)])
    made.install("595.91.07")
    made.load("595.91.07")
    made.write("usr/lib/lab-standins/toolkit-version", "1.20.1\n")
    return made


def without_time(text: str) -> str:
    return re.sub(r'time="[^"]*"', 'time="T"', text)


def ctk(host: StandinHost, directory: Path, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(STANDINS / CTK), *shlex.split(command)[1:]],
        capture_output=True,
        text=True,
        cwd=directory,
        env={"LAB_ROOT": str(host.root)},
    )


def test_without_a_driver_library_no_specification_is_written_and_the_error_is_the_real_one(
    host: StandinHost, tmp_path: Path
) -> None:
    command = "nvidia-ctk cdi generate --output=out.yaml"
    real = next(one for one in recorded(CAPTURE) if one.command.startswith(command))
    for library in (host.root / "usr/lib/x86_64-linux-gnu/nvidia").iterdir():
        library.unlink()
    done = ctk(host, tmp_path, real.command)
    assert done.returncode == real.status == 1
    assert without_time(done.stderr).splitlines()[-1] == real.stderr.splitlines()[-1]
    assert not (tmp_path / "out.yaml").exists()


def specification(host: StandinHost) -> dict:
    assert host.run(CTK, "cdi", "generate", "--output=/var/run/cdi/nvidia.yaml").returncode == 0
    return dict(yaml.safe_load((host.root / "var/run/cdi/nvidia.yaml").read_text()))


def test_the_specification_names_each_card_by_index_and_uuid_and_all(host: StandinHost) -> None:
    spec = specification(host)
    uuids = [card(index)["uuid"] for index in range(4)]
    assert [device["name"] for device in spec["devices"]] == ["0", "1", "2", "3", *uuids, "all"]
    assert (spec["kind"], spec["containerEdits"]["env"]) == ("nvidia.com/gpu", ["NVIDIA_VISIBLE_DEVICES=void"])
    mounts = {
        device["name"]: [m["containerPath"] for m in device["containerEdits"]["mounts"]] for device in spec["devices"]
    }
    assert mounts["2"] == mounts[uuids[2]] == [f"/run/lab-gpu/gpus/{uuids[2]}"]
    assert mounts["all"] == [f"/run/lab-gpu/gpus/{uuid}" for uuid in uuids]
    assert json.loads(host.run(CTK, "cdi", "generate", "--format=json").stdout) == spec


def test_the_specification_is_laid_out_as_the_real_one(host: StandinHost) -> None:
    specification(host)
    lines = (host.root / "var/run/cdi/nvidia.yaml").read_text().splitlines()
    assert lines[:6] == [
        "---",
        "cdiVersion: 0.5.0",
        "kind: nvidia.com/gpu",
        "devices:",
        '    - name: "0"',
        "      containerEdits:",
    ]
    assert lines[6].startswith("        ") and lines[7].startswith("            - ")


def test_the_devices_of_the_specification_are_listed(host: StandinHost) -> None:
    empty = host.run(CTK, "cdi", "list")
    assert (empty.stdout, "Found 0 CDI devices" in empty.stderr) == ("", True)
    specification(host)
    done = host.run(CTK, "cdi", "list")
    assert done.stdout.splitlines()[:4] == [f"nvidia.com/gpu={index}" for index in range(4)]
    assert done.stdout.splitlines()[-1] == "nvidia.com/gpu=all"
    assert "Found 9 CDI devices" in done.stderr


def test_an_old_specification_survives_a_driver_that_does_not_work(host: StandinHost) -> None:
    specification(host)
    before = (host.root / "var/run/cdi/nvidia.yaml").read_text()
    host.install("610.57.04")
    done = host.run(CTK, "cdi", "generate", NVIDIA_CTK_CDI_OUTPUT_FILE_PATH="/var/run/cdi/nvidia.yaml")
    assert done.returncode == 1
    assert "ERROR_LIB_RM_VERSION_MISMATCH" in done.stderr
    assert (host.root / "var/run/cdi/nvidia.yaml").read_text() == before


def test_it_prints_its_version(host: StandinHost) -> None:
    assert host.run(CTK, "--version").stdout == "NVIDIA Container Toolkit CLI version 1.20.1\n"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The bundle of a container that requests two cards."""
    directory = tmp_path / "bundle"
    (directory / "rootfs").mkdir(parents=True)
    config = {"process": {"env": ["PATH=/bin", "NVIDIA_VISIBLE_DEVICES=1,3"]}, "root": {"path": "rootfs"}}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """runc, nsenter and mount that log their arguments; nsenter also runs its command."""
    directory = tmp_path / "tools"
    directory.mkdir()
    for name in ("runc", "nsenter", "mount"):
        follow = 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"' if name == "nsenter" else "exit 0"
        program = directory / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >>"{directory}/calls"\n{follow}\n')
        program.chmod(0o755)
    return directory


def path_with(tools: Path) -> str:
    return f"{tools}:{Path(sys.executable).parent}:/usr/bin:/bin"


def calls(tools: Path) -> list[str]:
    return (tools / "calls").read_text().splitlines()


def test_the_runtime_gives_a_container_the_cards_it_asks_for(host: StandinHost, bundle: Path, tools: Path) -> None:
    arguments = ("--root", "/run/x", "create", "--bundle", str(bundle), "box")
    done = host.run("nvidia_container_runtime.py", *arguments, PATH=path_with(tools))
    assert done.returncode == 0, done.stderr
    config = json.loads((bundle / "config.json").read_text())
    targets = [mount["destination"] for mount in config["mounts"]]
    assert [target for target in targets if "/gpus/" in target] == [
        f"/run/lab-gpu/gpus/{card(index)['uuid']}" for index in (1, 3)
    ]
    assert "/usr/bin/nvidia-smi" in targets
    assert config["process"]["env"] == ["PATH=/bin", "NVIDIA_VISIBLE_DEVICES=void"]
    assert calls(tools) == [f"runc {' '.join(arguments)}"]


def test_the_runtime_leaves_a_container_without_gpus_alone(host: StandinHost, bundle: Path, tools: Path) -> None:
    config = {"process": {"env": ["PATH=/bin"]}, "root": {"path": "rootfs"}}
    (bundle / "config.json").write_text(json.dumps(config))
    done = host.run("nvidia_container_runtime.py", "create", "--bundle", str(bundle), "box", PATH=path_with(tools))
    assert done.returncode == 0
    assert json.loads((bundle / "config.json").read_text()) == config


def test_the_runtime_refuses_gpus_without_a_driver(host: StandinHost, bundle: Path, tools: Path) -> None:
    (host.root / "proc/driver/nvidia/version").unlink()
    done = host.run("nvidia_container_runtime.py", "create", "--bundle", str(bundle), "box", PATH=path_with(tools))
    assert done.returncode == 1
    assert "ERROR_DRIVER_NOT_LOADED" in done.stderr
    assert not (tools / "calls").exists()


def prestart(host: StandinHost, bundle: Path, tools: Path) -> subprocess.CompletedProcess[str]:
    state = json.dumps({"ociVersion": "1.0", "id": "box", "pid": 4242, "bundle": str(bundle)})
    return host.run("nvidia_container_runtime_hook.py", "prestart", stdin=state, PATH=path_with(tools))


def test_the_hook_mounts_the_cards_into_the_containers_own_namespace(
    host: StandinHost, bundle: Path, tools: Path
) -> None:
    done = prestart(host, bundle, tools)
    assert done.returncode == 0, done.stderr
    entered, *mounted = calls(tools)
    assert entered.startswith("nsenter --mount=/proc/4242/ns/mnt -- ")
    targets = [line.split()[-1] for line in mounted]
    assert targets[0] == f"{bundle}/rootfs/usr/bin/nvidia-smi"
    assert [target.rpartition("/")[2] for target in targets if "/gpus/" in target] == [
        card(index)["uuid"] for index in (1, 3)
    ]
    assert all(Path(target).is_file() for target in targets)


def test_the_hook_refuses_a_card_that_is_not_there_and_a_missing_driver(
    host: StandinHost, bundle: Path, tools: Path
) -> None:
    config = {"process": {"env": ["NVIDIA_VISIBLE_DEVICES=7"]}, "root": {"path": "rootfs"}}
    (bundle / "config.json").write_text(json.dumps(config))
    assert "7: unknown device" in prestart(host, bundle, tools).stderr
    (host.root / "proc/driver/nvidia/version").unlink()
    done = prestart(host, bundle, tools)
    assert done.returncode == 1
    assert "nvml error: driver_not_loaded" in done.stderr


def test_the_hook_leaves_a_container_alone_that_got_its_gpus_by_cdi(
    host: StandinHost, bundle: Path, tools: Path
) -> None:
    config = {"process": {"env": ["NVIDIA_VISIBLE_DEVICES=void"]}, "root": {"path": "rootfs"}}
    (bundle / "config.json").write_text(json.dumps(config))
    assert prestart(host, bundle, tools).returncode == 0
    assert not (tools / "calls").exists()


def test_gpus_from_the_hook_can_be_lost_to_systemd_unless_docker_manages_cgroups_itself(
    host: StandinHost, bundle: Path, tools: Path
) -> None:
    host.write("run/systemd/generator/lab-device-cgroup", "")
    host.write("etc/docker/daemon.json", '{"exec-opts": ["native.cgroupdriver=cgroupfs"]}')
    assert prestart(host, bundle, tools).returncode == 0
    assert "device-cgroup" not in (tools / "calls").read_text()
    host.write("etc/docker/daemon.json", '{"log-driver": "local"}')
    assert prestart(host, bundle, tools).returncode == 0
    assert f"/run/systemd/generator {bundle}/rootfs/run/lab-gpu/device-cgroup" in (tools / "calls").read_text()
