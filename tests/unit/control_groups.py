"""Control groups for processes of tests: real ones where they can be made, otherwise a /proc that shows them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

# As a container of Docker's has it, on a host of ours.
CONTAINER = "/system.slice/docker-3f0b6f1c9a1e4d52a7f0c1b2d3e4f5061728394a5b6c7d8e9f00112233445566.scope"


def shown(proc: Path, groups: Mapping[int, str]) -> Path:
    """Make a /proc in which these real processes, and no others, are in these groups; return it."""
    proc.mkdir(parents=True)
    (proc / "net").symlink_to("/proc/net")
    for pid, group in groups.items():
        (proc / str(pid)).mkdir()
        (proc / str(pid) / "fd").symlink_to(f"/proc/{pid}/fd")
        # Version 1's hierarchies, of which one is always there without controllers.
        (proc / str(pid) / "cgroup").write_text(f"1:name=systemd:/\n0::{group}\n")
    return proc


@contextmanager
def made(*names: str) -> Iterator[list[Path]]:
    """Make control groups with these names; skip the test where that cannot be done."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if " cgroup2 " in line]
    groups = [Path(*mounted[:1], f"rigup-test-{os.getpid()}-{name}") for name in names]
    try:
        for group in groups:
            if not mounted:
                raise OSError("no cgroup v2")
            group.mkdir()
    except OSError as error:
        pytest.skip(f"no control groups can be made here: {error}")
    try:
        yield groups
    finally:
        for group in groups:
            group.rmdir()


def join(group: Path) -> None:
    """Move the calling process into a group."""
    (group / "cgroup.procs").write_text(str(os.getpid()))
