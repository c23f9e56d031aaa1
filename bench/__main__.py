"""Measure a deploy that finds nothing to do, and the audit, and compare them with the usual alternatives.

All tools check the same lab host in the same run: pyinfra with `@rig`, pyinfra with its own ssh connector, Ansible
with pipelining; the audit over its own backend and over testinfra's. Each at several distances, with one host and
with eight. A run counts only if it found nothing to change.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench import desired, summary
from bench.delay import Address, delayed
from bench.rig import HOSTS, Bench
from bench.timing import BIN, DEPLOY, ROOT, BenchError, Case, Command, plural, run
from lab import machine, world
from lab.errors import LabError
from lab.settings import CACHE
from rigup.config.inventory import load_inventory, lock_path

REQUIREMENTS = ROOT / "bench" / "requirements.txt"
RESULTS = ROOT / "bench" / "results"
NOTHING = "done in .*nothing changed"
NOTHING_BY_ANSIBLE = r"(?s)\A(?!.*(?:changed|failed|unreachable)=[1-9]).*changed=0"

# With eight hosts Ansible takes minutes, mostly on this machine and not on the network.
ANSIBLE_FLEET_MS = (0,)

# Time for the host to close the last run's sessions and write its log.
SETTLE_S = 0.5

# Runs of one tool at one distance: minimum, maximum, and seconds after which no further run starts.
RUNS = {
    "rig": (3, 7, 12),
    "ssh": (2, 3, 20),
    "ansible": (1, 2, 45),
    "paramiko": (2, 3, 12),
    "testinfra-ssh": (1, 2, 30),
}
LONG = ("ansible", "testinfra-ssh", "paramiko")
DEFAULT_RUNS = (3, 7, 8)
FLEET_RUNS = (1, 3, 8)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--host", default="rig1", help="the lab host to measure, deployed first if needed (default: rig1)"
    )
    parser.add_argument("--round-trips", default="0,10,50", help="round trips in milliseconds (default: 0,10,50)")
    parser.add_argument("--hosts", default=f"1,{HOSTS}", help=f"how many hosts at once (default: 1,{HOSTS})")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the directory for benchmark.json")
    options = parser.parse_args()
    distances = [int(word) for word in options.round_trips.split(",")]
    counts = [int(word) for word in options.hosts.split(",")]
    began = time.monotonic()
    try:
        with world.services(), tempfile.TemporaryDirectory(prefix="rigup-bench-") as directory:
            cases = measure(options.host, Path(directory), tools(), distances, counts)
    except (BenchError, LabError) as error:
        print(error, file=sys.stderr)
        return 1
    seconds = round(time.monotonic() - began)
    result = {"measured": about(seconds), "cases": [case.as_json() for case in cases], **summary.ratios(cases)}
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / "benchmark.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    summary.render(result)
    print(f"\n{path} written after {seconds} s")
    return 0


def tools() -> Path:
    """Return the programs of the benchmark's own virtual environment; the first call installs it."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    directory = CACHE / f"bench-{digest}"
    ready = directory / ".ready"
    if not ready.exists():
        say(f"installing {REQUIREMENTS.name} into {directory}")
        venv.create(directory, with_pip=True, clear=True)
        pip = [str(directory / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--requirement", str(REQUIREMENTS)], check=True)
        ready.touch()
    return directory / "bin"


def measure(name: str, directory: Path, programs: Path, distances: Sequence[int], counts: Sequence[int]) -> list[Case]:
    """Measure all cases. Raises BenchError."""
    there = machine.get(name).exists
    host = machine.start(name, say=say)
    bench = Bench(host, directory)
    try:
        converge(bench)
        with bench.doubles() as doubles:
            measurement = Measurement(bench, programs)
            measurement.floor(doubles)
            for distance in distances:
                for count in counts:
                    measurement.at(distance, doubles[:count])
            return measurement.cases
    finally:
        if not there:
            host.remove()
            machine.write_known_hosts()


def converge(bench: Bench) -> None:
    """Deploy until nothing changes, and install what Ansible's apt module needs. Raises BenchError."""
    bench.write_own_inventory(lock_path(world.INVENTORY))
    say(f"deploying to {bench.host.name} until nothing changes")
    deploy = Command(DEPLOY, {"RIGUP_INVENTORY": str(bench.deployed)}, "rigup: done")
    for _ in range(3):
        if re.search(NOTHING, run(deploy)[1]):
            break
    else:
        raise BenchError(f"{bench.host.name} does not converge: each deploy changes something")
    # Ansible's apt module would install it at its first run.
    bench.host.shell("dpkg -s python3-apt >/dev/null || apt-get -qq install python3-apt >/dev/null", timeout=300)


class Measurement:
    """Runs the tools in turn, so that other load on the machine affects all of them."""

    def __init__(self, bench: Bench, programs: Path) -> None:
        self.cases: list[Case] = []
        self._bench = bench
        self._programs = programs
        self._variables = desired.variables(
            bench.host, load_inventory(bench.deployed), bench.host.name, bench.directory
        )

    def floor(self, doubles: Sequence[Address]) -> None:
        """Measure the lower bound: the program itself, and a connection without anything to do."""
        inventory = self._bench.inventory("floor", doubles[:1])
        version = Command([str(BIN / "pyinfra"), "--version"])
        self._take_turns([(Case("floor", "pyinfra --version"), version)])
        # These runs record which facts the deploy and the audit read, over the shortest distance.
        for argv in (DEPLOY, (str(BIN / "pytest"), "tests/audit")):
            run(Command(argv, self._environment(self._bench.inventory("all", doubles))))
        live = Command(DEPLOY, self._environment(inventory, RIGUP_PREFETCH="off"), NOTHING)
        self._take_turns([(Case("deploy", "rig, nothing read ahead"), live)])

    def at(self, distance: int, doubles: Sequence[Address]) -> None:
        """Measure everything over one distance."""
        if distance == 0:
            self._over(distance, doubles)
            return
        with delayed(doubles, distance / 1000) as proxies:
            self._over(distance, proxies)

    def _over(self, distance: int, addresses: Sequence[Address]) -> None:
        count = len(addresses)
        say(f"{plural(count, 'host')} at {distance} ms")
        inventory = self._bench.inventory(f"n{count}d{distance}", addresses)
        empty = [*DEPLOY[:2], "bench/empty.py", "-y"]
        nothing_known = {"RIGUP_CACHE": str(self._bench.directory / "nothing")}
        deploys = [
            (Case("deploy", "rig", count, distance), Command(DEPLOY, self._environment(inventory), NOTHING)),
            (
                Case("deploy", "ssh", count, distance),
                Command(DEPLOY, self._environment(inventory, RIGUP_CONNECTOR="ssh"), NOTHING),
            ),
            (
                Case("floor", "empty deploy", count, distance),
                Command(empty, self._environment(inventory, **nothing_known)),
            ),
        ]
        if count == 1 or distance in ANSIBLE_FLEET_MS:
            deploys.append((Case("deploy", "ansible", count, distance), self._ansible(inventory)))
        audits = [(Case("audit", "rig", count, distance), self._audit(inventory))]
        if count == 1:
            # They visit hosts one after the other: eight take eight times as long.
            for tool, backend in (("testinfra-ssh", "ssh"), ("paramiko", "paramiko")):
                audits.append((Case("audit", tool, count, distance), self._audit(inventory, backend)))
        with tempfile.TemporaryDirectory(prefix="rigup-cp-") as control:
            try:
                # Short ones first: what the long ones leave behind on the host would slow them down.
                for long in (False, True):
                    todo = [job for job in (*deploys, *audits) if (job[0].tool in LONG) is long]
                    self._take_turns(todo, {"ANSIBLE_SSH_CONTROL_PATH_DIR": control})
            finally:
                # Close the connections that Ansible keeps open.
                for socket in Path(control).iterdir():
                    subprocess.run(["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "-"], capture_output=True)

    def _environment(self, inventory: Path, **extra: str) -> Mapping[str, str]:
        return {
            "RIGUP_INVENTORY": str(inventory),
            "RIGUP_CACHE": str(self._bench.facts),
            "RIGUP_STATS": "1",
            "PYINFRA_PROGRESS": "off",
            **extra,
        }

    def _ansible(self, inventory: Path) -> Command:
        hosts = self._bench.ansible_inventory(inventory, self._variables)
        argv = [str(self._programs / "ansible-playbook"), "-i", str(hosts), "bench/playbook.yml"]
        home = {"ANSIBLE_CONFIG": "bench/ansible.cfg", "ANSIBLE_HOME": str(self._bench.directory / "ansible")}
        return Command(argv, home, NOTHING_BY_ANSIBLE)

    def _audit(self, inventory: Path, backend: str | None = None) -> Command:
        argv = [str(BIN / "pytest"), "tests/audit", "-p", "no:cacheprovider"]
        extra = {}
        if backend is not None:
            argv += ["-p", "bench.audit_over"]
            extra = {"BENCH_BACKEND": backend, "BENCH_SSH_CONFIG": str(self._bench.ssh_config(inventory))}
        return Command(argv, self._environment(inventory, **extra), r"\d+ passed")

    def _take_turns(self, todo: Sequence[tuple[Case, Command]], environment: Mapping[str, str] | None = None) -> None:
        """Run all in turn until each ran often enough."""
        jobs = [
            (case, Command(command.argv, {**command.environment, **(environment or {})}, command.expect))
            for case, command in todo
        ]
        left = jobs
        while left:
            for case, command in left:
                time.sleep(SETTLE_S)
                seconds, said = run(command)
                case.seconds.append(seconds)
                counted = [int(number) for number in re.findall(r"remote executions: (\d+)", said)]
                case.executions = sum(counted) / len(counted) if counted else None
            left = [(case, command) for case, command in left if not _often_enough(case)]
        for case, _ in jobs:
            self.cases.append(case)
            say(f"  {case.job:6} {case.tool:24} {case.median:7.2f} s  ({len(case.seconds)} runs)")


def _often_enough(case: Case) -> bool:
    least, most, budget_s = FLEET_RUNS if case.hosts > 1 else RUNS.get(case.tool, DEFAULT_RUNS)
    done = len(case.seconds)
    return done >= most or (done >= least and sum(case.seconds) > budget_s)


def about(seconds: int) -> dict[str, object]:
    """Return when and on what machine this was measured."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "processors": os.cpu_count(),
        "processor": model[1] if model else platform.machine(),
        "python": platform.python_version(),
        "pyinfra": version("pyinfra"),
        "testinfra": version("pytest-testinfra"),
        "ansible-core": next(
            line.partition("==")[2] for line in REQUIREMENTS.read_text().splitlines() if line.startswith("ansible-core")
        ),
    }


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
