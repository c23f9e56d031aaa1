"""Run deploys and audits from tests: an inventory of lab hosts, and `pyinfra` as a user would call it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lab.machine import Host, LabError

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

DEPLOY = ("pyinfra", "inventory/lab.py", "deploy.py", "-y")
AUDIT = ("tests/audit", "-q", "-p", "no:cacheprovider")


def status_of(url: str, *headers: str) -> str:
    """Return the HTTP status that the control machine gets; 000 if it cannot connect."""
    argv = ["curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", url]
    argv += [word for header in headers for word in ("-H", header)]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def wait_for_ordered_reboot(host: Host) -> None:
    """Wait until a reboot that a killed run has ordered is over, as a person would who sees it begin."""
    ordered = (
        "systemctl list-units --no-legend 'run-*.timer' | grep -q . || systemctl list-jobs | grep -q reboot.target"
    )
    # The look itself may be ended by the reboot.
    with contextlib.suppress(LabError):
        host.shell(f"while {ordered}; do sleep 0.1; done", check=False)
    host.wait()


@dataclass(frozen=True)
class Result:
    """The result of a command: exit code (negative: the signal that killed it), output, and seconds."""

    code: int
    output: str
    seconds: float
    root: Path = ROOT

    @property
    def report(self) -> dict[str, Any]:
        """The report that the deploy has written."""
        named = re.search(r"^  report: (\S+)$", self.output, re.MULTILINE)
        assert named, f"no report was written:\n{self.output}"
        report: dict[str, Any] = json.loads((self.root / named[1]).read_text())
        return report

    def changed(self) -> list[str]:
        """Return the operations that changed something, as `host step | operation`."""
        done = self.report["operations"]
        return [f"{o['host']} {o['step']} | {o['operation']}" for o in done if o["result"] == "changed"]


@dataclass
class Rigs:
    """An inventory file of some lab hosts, and the commands of the project in `root` that use it.

    `top` are keys beside `defaults` and `hosts`.
    """

    directory: Path
    hosts: dict[str, dict[str, Any]]
    defaults: dict[str, Any] = field(default_factory=dict)
    root: Path = ROOT
    top: dict[str, Any] = field(default_factory=dict)

    @property
    def inventory(self) -> Path:
        return self.directory / "lab.yaml"

    @property
    def lock(self) -> Path:
        return self.directory / "lab.lock"

    def write(self, **changes: Any) -> None:
        """Write the inventory; `changes` are settings for all hosts, added to the lab's own."""
        text = yaml.safe_dump({"defaults": {**self.defaults, **changes}, "hosts": self.hosts, **self.top})
        self.inventory.write_text(text)

    def environment(self, **extra: str) -> dict[str, str]:
        return {
            **os.environ,
            "RIGUP_INVENTORY": str(self.inventory),
            "RIGUP_CACHE": str(self.directory / "facts"),
            "PYINFRA_PROGRESS": "off",
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "160",
            "PYTHONPATH": str(self.root),
            **extra,
        }

    def run(self, *argv: str, timeout: float = 900, **extra: str) -> Result:
        """Run a program of the virtual environment in the project and wait for it."""
        start = time.monotonic()
        done = subprocess.run(
            [str(BIN / argv[0]), *argv[1:]],
            cwd=self.root,
            env=self.environment(**extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        return Result(done.returncode, done.stdout, time.monotonic() - start, self.root)

    def deploy(self, *arguments: str, timeout: float = 900, **extra: str) -> Result:
        return self.run(*DEPLOY[:3], *(arguments or ("-y",)), timeout=timeout, **extra)

    def audit(self, *arguments: str, **extra: str) -> Result:
        return self.run("pytest", *AUDIT, *arguments, **extra)

    def deploy_killed_at(self, pattern: str, delay: float = 0.3, timeout: float = 600) -> str:
        """Kill a deploy; see `killed_at`."""
        return self.killed_at(pattern, "deploy.py", delay, timeout)

    def killed_at(self, pattern: str, what: str, delay: float = 0.3, timeout: float = 600) -> str:
        """Start `what` and kill it with SIGKILL `delay` seconds after it prints `pattern`.

        Returns its output; raises AssertionError if it exits before.
        """
        seen: list[str] = []
        deadline = time.monotonic() + timeout
        with self.begun(*DEPLOY[:2], what, "-y", "-v") as process:
            assert process.stdout is not None
            for line in process.stdout:
                seen.append(line)
                if re.search(pattern, line):
                    time.sleep(delay)
                    return "".join(seen)
                assert time.monotonic() < deadline, f"no {pattern!r} within {timeout} s:\n{''.join(seen)}"
        raise AssertionError(f"{what} ended before {pattern!r}:\n{''.join(seen)}")

    def deploy_killed_after(self, seconds: float) -> None:
        """Start a deploy and kill it after that time unless it has exited."""
        with self.begun(*DEPLOY, output=subprocess.DEVNULL) as process, contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)

    @contextlib.contextmanager
    def begun(self, *argv: str, output: int = subprocess.PIPE, **extra: str) -> Iterator[subprocess.Popen[str]]:
        """Start a program; kill it and its children when the block ends."""
        process = subprocess.Popen(
            [str(BIN / argv[0]), *argv[1:]],
            cwd=self.root,
            env=self.environment(**extra),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
