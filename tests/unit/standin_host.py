"""A host in a directory for the stand-ins of NVIDIA's tools, which use LAB_ROOT as their root."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab.host.hardware import describe
from lab.mirror.parts import STANDINS
from tests.unit.waiting import HANG_S

LIBRARIES = "usr/lib/x86_64-linux-gnu/nvidia"


@dataclass(frozen=True)
class StandinHost:
    """The part of a host that the stand-ins read."""

    root: Path

    @classmethod
    def make(cls, root: Path, gpus: list[dict[str, Any]]) -> "StandinHost":
        """Create a host without an installed or loaded driver."""
        host = cls(root)
        host.write("usr/lib/lab-hardware/lab.json", json.dumps({"gpus": gpus}))
        (root / "run").mkdir()
        return host

    def write(self, path: str, text: str) -> Path:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        return place

    def install(self, version: str) -> None:
        """Install the driver's userspace."""
        for old in (self.root / LIBRARIES).glob("*"):
            old.unlink()
        self.write(f"{LIBRARIES}/libnvidia-ml.so.{version}", "")

    def load(self, version: str) -> None:
        """Load the driver's kernel module."""
        line = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build  (root@rig1)  \n"
        self.write("proc/driver/nvidia/version", line)

    def run(
        self, program: str, *arguments: str, stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a stand-in on this host."""
        variables = {**os.environ, "LAB_ROOT": str(self.root), **environment}
        command = [sys.executable, str(STANDINS / program), *arguments]
        return subprocess.run(command, capture_output=True, text=True, input=stdin, env=variables, timeout=HANG_S)


def card(number: int, /, **more: Any) -> dict[str, Any]:
    """Return one of the lab's cards as in lab.json."""
    return {**asdict(describe("rig1", 8).gpus[number]), **more}
