"""Measures the model store: `make bench-store`, or `python -m bench.store --help`.

Our download beside `hf download` and parallel `curl`, at a limited rate and without a limit; eight hosts with
peers beside eight without; and a cold deploy with a slow hub against the longer of its two parts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from bench import fetching
from bench.timing import ROOT, BenchError
from lab import checkpoint, machine, service, world
from lab.errors import LabError
from lab.settings import GATEWAY

RESULTS = ROOT / "bench" / "results" / "store.json"
BIN = Path(sys.executable).parent
MB = 1_000_000
HOST, HUB, HUB_PORT = "rig9", "hub-bench", 8013


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.store", description=__doc__)
    names = ",".join(PARTS)
    parser.add_argument("--parts", default=names, help=f"which to measure; the others' results stay (default: {names})")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"where to write (default: {RESULTS})")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part is named {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    result = json.loads(options.results.read_text()) if options.results.exists() else {}
    try:
        with tempfile.TemporaryDirectory(prefix="rigup-bench-") as name:
            for part in parts:
                result[part] = stamped(PARTS[part], Path(name))
    except (BenchError, LabError) as error:
        print(error, file=sys.stderr)
        return 1
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


def stamped(measure: Callable[[Path], dict[str, Any]], directory: Path) -> dict[str, Any]:
    """What `measure` found, with when and on how busy a machine: parts are measured on different days."""
    load_before = os.getloadavg()[0]
    found = measure(directory)
    measured = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "processors": os.cpu_count(),
        "load_before": round(load_before, 1),
        "load_after": round(os.getloadavg()[0], 1),
    }
    return {"measured": measured, **found}


def measure_single(directory: Path) -> dict[str, Any]:
    """Eight shards of 64 MB on one host."""
    repository = fetching.publish(directory / "single", 8, 1 << 26)
    rows = [row for rate in (0, 100 * MB) for row in fetching.single(repository, directory, rate, 3 if not rate else 1)]
    gb_per_s = {(row["tool"], row["limit_bytes_per_s"]): row["gb_per_s"] for row in rows}
    against = {
        f"of hf download at {rate or 'no limit'}": round(
            gb_per_s["rigup (verified)", rate] / gb_per_s["hf download", rate], 2
        )
        for rate in (0, 100 * MB)
    }
    return {"bytes": fetching.size_of(repository), "runs": rows, **against, "aim": ">= 0.95"}


def measure_fleet(directory: Path) -> dict[str, Any]:
    """Sixteen shards of 16 MB on eight hosts, from a hub that sends 20 MB/s in all."""
    repository = fetching.publish(directory / "fleet", 16, 1 << 24)
    runs = [fetching.fleet(repository, directory, 8, 20 * MB, share) for share in (True, False)]
    return {"bytes": fetching.size_of(repository), "runs": runs, "aim": "checkpoints_from_hub <= 1.1"}


def measure_deploy(directory: Path) -> dict[str, Any]:
    """A cold deploy whose download takes next to nothing; then as long as all else; then eight times as long.

    240 GB take an hour at 500 Mbit/s, a rig's other steps some eight minutes. What serves can only begin after the
    download: no deploy can be shorter than that, whatever it does at the same time.
    """
    total = sum(path.stat().st_size for path in checkpoint.build().rglob("*") if path.is_file())
    rate_file = directory / "rate"
    rate_file.write_text("0")
    argv = [sys.executable, "-m", "lab.hub", "--host", GATEWAY, "--port", str(HUB_PORT)]
    argv += ["--repository", f"{checkpoint.REPOSITORY}={checkpoint.build()}", "--rate-file", str(rate_file)]
    with world.services():
        host = machine.start(HOST)
        service.start(HUB, argv, url=f"http://{GATEWAY}:{HUB_PORT}", cwd=ROOT)
        try:
            everything_else, report = cold_deploy(host, directory)
            after = seconds_after_download(report)
            runs = []
            for times in (1, 8):
                alone = everything_else * times
                rate_file.write_text(str(int(total / alone)))
                seconds, report = cold_deploy(host, directory)
                runs.append(
                    {
                        "download_alone_seconds": round(alone, 1),
                        "seconds": round(seconds, 1),
                        "against_the_larger": round(seconds / alone, 2),
                        "against_the_least_possible": round(seconds / (alone + after), 2),
                        "seconds_per_step": {step["step"]: round(step["seconds"], 1) for step in report["steps"]},
                    }
                )
        finally:
            service.stop(HUB)
            host.remove()
            machine.write_known_hosts()
    return {
        "everything_else_seconds": round(everything_else, 1),
        "of_that_after_the_download": round(after, 1),
        "runs": runs,
        "aim": "against_the_larger <= 1.1",
    }


def seconds_after_download(report: dict[str, Any]) -> float:
    """Of the operations that come after the checkpoint is whole."""
    waited = [operation["operation"].endswith("whole and verified") for operation in report["operations"]]
    return float(sum(operation["seconds"] for operation in report["operations"][waited.index(True) + 1 :]))


def cold_deploy(host: machine.Host, directory: Path) -> tuple[float, dict[str, Any]]:
    """Seconds of a deploy to a bare host, and its report. Raises BenchError."""
    host.reset()
    machine.write_known_hosts()
    inventory = directory / "lab.yaml"
    defaults = {**world.defaults(), "hub_endpoint": f"http://{GATEWAY}:{HUB_PORT}"}
    inventory.write_text(yaml.safe_dump({"defaults": defaults, "hosts": {host.name: world.connection(host)}}))
    environment = {**os.environ, "RIGUP_INVENTORY": str(inventory), "RIGUP_CACHE": str(directory / "facts")}
    began = time.monotonic()
    done = subprocess.run(
        [str(BIN / "pyinfra"), "inventory/lab.py", "deploy.py", "-y"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.monotonic() - began
    if done.returncode:
        raise BenchError(f"the deploy ended with {done.returncode}:\n{done.stdout[-4000:]}")
    named = re.search(r"^  report: (\S+)$", done.stdout, re.MULTILINE)
    if named is None:
        raise BenchError(f"the deploy named no report:\n{done.stdout[-4000:]}")
    return seconds, json.loads((ROOT / named[1]).read_text())


PARTS = {"single": measure_single, "fleet": measure_fleet, "deploy": measure_deploy}


if __name__ == "__main__":
    sys.exit(main())
