"""Measure the model store: `make bench-store`, or `python -m bench.store --help`.

Compares our download with `hf download` and parallel `curl`, with and without a rate limit; eight hosts with and
without peers; and a cold deploy from a slow hub with the longer of its two parts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from bench import fetching
from bench.timing import DEPLOY, ROOT, BenchError, Command, run
from lab import checkpoint, machine, service, world
from lab.errors import LabError
from lab.settings import GATEWAY
from rigup.run.report import DOWNLOAD_ENDS

RESULTS = ROOT / "bench" / "results" / "store.json"
MB = 1_000_000
HOST, HUB, HUB_PORT = "rig9", "hub-bench", 8013


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.store", description=__doc__)
    names = ",".join(PARTS)
    parser.add_argument("--parts", default=names, help=f"what to measure; other results stay (default: {names})")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"where to write (default: {RESULTS})")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; parts are {', '.join(PARTS)}")
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
    """Return the result of `measure` with the time and the machine's load: parts may run on different days."""
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
    """Download eight shards of 64 MB to one host."""
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
    """Download sixteen shards of 16 MB to eight hosts, from a hub that sends 20 MB/s in total."""
    repository = fetching.publish(directory / "fleet", 16, 1 << 24)
    runs = [fetching.fleet(repository, directory, 8, 20 * MB, share) for share in (True, False)]
    return {"bytes": fetching.size_of(repository), "runs": runs, "aim": "checkpoints_from_hub <= 1.1"}


def measure_deploy(directory: Path) -> dict[str, Any]:
    """Deploy to a bare host with a download that takes almost no time, as long as all other steps, and 8 times that.

    240 GB take an hour at 500 Mbit/s, the other steps of a rig some eight minutes. Serving can only start after the
    download, which limits what overlapping the other steps can gain.
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
    """Return the seconds of all operations after the checkpoint is verified."""
    waited = [bool(DOWNLOAD_ENDS.match(operation["operation"])) for operation in report["operations"]]
    return float(sum(operation["seconds"] for operation in report["operations"][waited.index(True) + 1 :]))


def cold_deploy(host: machine.Host, directory: Path) -> tuple[float, dict[str, Any]]:
    """Return the seconds of a deploy to a bare host, and its report. Raises BenchError."""
    host.reset()
    machine.write_known_hosts()
    inventory = directory / "lab.yaml"
    defaults = {**world.defaults(), "hub_endpoint": f"http://{GATEWAY}:{HUB_PORT}"}
    inventory.write_text(yaml.safe_dump({"defaults": defaults, "hosts": {host.name: world.connection(host)}}))
    environment = {"RIGUP_INVENTORY": str(inventory), "RIGUP_CACHE": str(directory / "facts")}
    report = r"(?m)^  report: (\S+)$"
    seconds, output = run(Command(DEPLOY, environment, report))
    return seconds, json.loads((ROOT / re.findall(report, output)[0]).read_text())


PARTS = {"single": measure_single, "fleet": measure_fleet, "deploy": measure_deploy}


if __name__ == "__main__":
    sys.exit(main())
