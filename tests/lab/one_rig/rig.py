"""One deployed lab host for tests that break it by hand, and the breaks.

The host itself is the fixture `one_rig`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from lab.machine import Host
from tests.lab.rigs import Result, Rigs

NAME = "rig6"


@dataclass(frozen=True)
class Drift:
    """Something broken by hand: where, by which command on the host, and which operations repair it."""

    place: str
    command: str
    operations: tuple[str, ...]


DRIFTS = (
    Drift(
        "a file edited",
        "echo 'vm.swappiness = 60' >> /etc/sysctl.d/60-rigup.conf",
        ("base | Write the kernel settings",),
    ),
    Drift("a kernel setting", "sysctl -qw vm.swappiness=60", ("base | Apply vm.swappiness",)),
    Drift("a mode", "chmod 666 /etc/apt/apt.conf.d/10rigup-lock-timeout", ("base | Make apt wait for its lock",)),
    Drift("an owner", "chown ops /etc/profile.d/rigup-cuda.sh", ("cuda | Add the CUDA toolkit to the PATH",)),
    Drift("a file removed", "rm /etc/apt/sources.list.d/docker.sources", ("docker | Add the docker repository",)),
    Drift(
        "packages at another version",
        "apt-get install -qq -y --allow-downgrades nvidia-container-toolkit=1.19.1-1 "
        "nvidia-container-toolkit-base=1.19.1-1 libnvidia-container-tools=1.19.1-1 libnvidia-container1=1.19.1-1 "
        ">/dev/null",
        ("docker | Install the container toolkit",),
    ),
    Drift(
        "a package removed",
        "dpkg --remove --force-depends curl >/dev/null",
        ("base | Install required tools",),
    ),
    Drift("a unit disabled", "systemctl disable --quiet docker.service", ("docker | Enable Docker",)),
    Drift(
        "a unit stopped",
        "systemctl stop nvidia-persistenced.service",
        # The unit of the GPUs' settings stops and starts with it.
        ("reboot | Apply the settings of the persistence daemon", "hardware | Apply the GPUs' settings"),
    ),
    Drift(
        "a virtual environment half installed",
        "rm /usr/local/lib/rigup/venv/requirements.lock",
        ("model | Install the downloader's packages",),
    ),
    Drift(
        "a program edited",
        "sed -i '1a # by hand' /usr/local/lib/rigup/host/current/rigup_host/wait_ready.py",
        ("base | Install the host programs",),
    ),
    Drift(
        "a secret file edited",
        "echo BY_HAND=1 >> /etc/rigup/endpoints/main/*/env",
        ("config | Write the environment file of main", "serve | Serve vllm-nvfp4-cu130 as main"),
    ),
    Drift(
        "a key in Docker's configuration",
        """sed -i 's/"log-driver": "local"/"log-driver": "json-file"/' /etc/docker/daemon.json""",
        # After a restart of Docker, containers must show that they see the GPUs.
        ("docker | Configure Docker in daemon.json", "verify | Verify that main serves"),
    ),
)


@dataclass(frozen=True)
class OneRig:
    """The host, and commands that inspect and change it."""

    host: Host
    rigs: Rigs

    def plan(self, connector: str = "rig", code: int = 2) -> list[dict[str, Any]]:
        """Return the entries of `rigup plan` over `connector`, which must exit with `code`."""
        result = self.rigs.run("rigup", "plan", "--json", RIGUP_CONNECTOR=connector)
        assert result.code == code, result.output
        told = json.loads(result.output)["hosts"][NAME]
        assert told["result"] == "ok", result.output
        entries: list[dict[str, Any]] = told["entries"]
        return entries

    def deploy(self) -> Result:
        """Deploy over `@rig`, which must succeed."""
        result = self.rigs.deploy(RIGUP_STATS="1")
        assert result.code == 0, result.output
        return result

    def drift(self) -> None:
        """Apply all DRIFTS to the host."""
        for drift in DRIFTS:
            self.host.shell(drift.command)


def names(entries: list[dict[str, Any]], *results: str) -> set[str]:
    """Return the entries of a plan with one of these results, as `step | operation`."""
    return {f"{entry['step']} | {entry['operation']}" for entry in entries if entry["result"] in results}
