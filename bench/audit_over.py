"""A pytest plugin that runs the unchanged audit over one of testinfra's own backends.

BENCH_BACKEND is `ssh` or `paramiko`, BENCH_SSH_CONFIG an ssh configuration with the hosts. Like the audit's own
backend, they use sudo if the deploy does.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import testinfra.backend
from testinfra.backend.paramiko import ParamikoBackend
from testinfra.backend.ssh import SshBackend

from rigup.ssh.login import uses_sudo
from rigup.ssh.testinfra_backend import NAME, inventory


class Ssh(SshBackend):  # type: ignore[misc]
    """Testinfra's `ssh://HOST`."""

    def __init__(self, hostname: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(
            hostname, ssh_config=os.environ["BENCH_SSH_CONFIG"], sudo=uses_sudo(inventory().host(hostname))
        )


class Paramiko(ParamikoBackend):  # type: ignore[misc]
    """Testinfra's `paramiko://HOST`."""

    def __init__(self, hostname: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(
            hostname, ssh_config=os.environ["BENCH_SSH_CONFIG"], sudo=uses_sudo(inventory().host(hostname))
        )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Replace the audit's own backend."""
    name = {"ssh": "Ssh", "paramiko": "Paramiko"}[os.environ["BENCH_BACKEND"]]
    testinfra.backend.BACKENDS[NAME] = f"{__name__}.{name}"
