"""The docker step: Docker, its NVIDIA runtime and the GPUs that it offers to containers."""

from __future__ import annotations

import json
from typing import Any

from rigup.audit.check import check
from rigup.audit.expect import expect, expect_at_least, expect_none, expect_repository
from rigup.audit.subject import Subject
from rigup.host_config import DAEMON_JSON, log_driver


def configured(rig: Subject) -> dict[str, Any]:
    """Return Docker's daemon.json. The check fails if it is not JSON."""
    try:
        written: dict[str, Any] = json.loads(rig.text(DAEMON_JSON) or "{}")
    except ValueError:
        written = {}
        expect(f"valid JSON in {DAEMON_JSON}", "none")
    return written


def daemon(rig: Subject) -> dict[str, Any]:
    """Return what the running daemon reports about itself."""
    return rig.json("docker info --format '{{json .}}'") or {}


@check("major", "docker_version")
def test_docker_packages(rig: Subject) -> None:
    """Docker's packages must have the locked versions."""
    expected = rig.locked("docker")
    expect(expected, rig.versions(expected))


@check("major", "container_toolkit_version")
def test_docker_toolkit(rig: Subject) -> None:
    """The container toolkit's four packages must all have the locked version."""
    expected = rig.locked("toolkit")
    expect(expected, rig.versions(expected))


@check("critical", "container_toolkit_version")
def test_docker_toolkit_safe(rig: Subject) -> None:
    """Versions before 1.20.1 let containers escape (CVE-2025-23266) or keep Docker from starting at boot."""
    expect_at_least("container toolkit", "1.20.1", rig.installed.get("nvidia-container-toolkit", "0"))


@check("major", "docker_mirror", "toolkit_mirror")
def test_docker_repositories(rig: Subject) -> None:
    """apt must read Docker's and the container toolkit's repositories, each signed by its key in the lock."""
    expect_repository(rig, "docker")
    expect_repository(rig, "toolkit")


@check("critical")
def test_docker_running(rig: Subject) -> None:
    """Docker must run now and start at boot."""
    unit = rig.unit("docker.service")
    expect(
        {"now": "active", "at boot": "enabled"}, {"now": unit.get("ActiveState"), "at boot": unit.get("UnitFileState")}
    )


@check("major", "docker_log_driver", "registry_mirror")
def test_docker_config(rig: Subject) -> None:
    """daemon.json must contain rigup's keys, in addition to any others."""
    written = configured(rig)
    expected: dict[str, object] = {
        "runtimes.nvidia": {"path": "nvidia-container-runtime", "args": []},
        "writable by": "root only",
        "features.cdi": True,
        "log-driver": log_driver(written, rig.settings.docker_log_driver),
    }
    found = {
        "runtimes.nvidia": written.get("runtimes", {}).get("nvidia", "nothing"),
        "writable by": rig.output("find %s -maxdepth 0 -user root ! -perm /022 -printf 'root only'", DAEMON_JSON),
        "features.cdi": written.get("features", {}).get("cdi", "nothing"),
        "log-driver": written.get("log-driver", "json-file" if "log-opts" in written else "nothing"),
    }
    if rig.settings.registry_mirror:
        expected["registry-mirrors"] = rig.settings.registry_mirror
        mirrors = written.get("registry-mirrors", [])
        found["registry-mirrors"] = expected["registry-mirrors"] if expected["registry-mirrors"] in mirrors else mirrors
    expect(expected, found)


@check("critical", root=True)
def test_docker_runtime(rig: Subject) -> None:
    """The running daemon must know the nvidia runtime."""
    expect("nvidia among the runtimes", "nvidia among the runtimes" if "nvidia" in daemon(rig).get("Runtimes", {}) else
           ", ".join(daemon(rig).get("Runtimes", {})) or "docker info fails")  # fmt: skip


@check("minor", "docker_log_driver", root=True)
def test_docker_log_driver(rig: Subject) -> None:
    """The running daemon must use the configured log driver."""
    expect(
        log_driver(configured(rig), rig.settings.docker_log_driver),
        daemon(rig).get("LoggingDriver", "docker info fails"),
    )


@check("critical", repair=("docker", "reboot"))
def test_docker_cdi(rig: Subject) -> None:
    """Containers must be able to request each GPU, and all of them; the list must be refreshed at each boot."""
    listed = set(rig.output("nvidia-ctk cdi list").split())
    expected = [f"nvidia.com/gpu={index}" for index in (*range(rig.gpus_on_the_bus), "all")]
    expect_none(
        f"{len(expected)} devices for containers", [f"no {device}" for device in expected if device not in listed]
    )
    expect("enabled", rig.unit("nvidia-cdi-refresh.service").get("UnitFileState"))
