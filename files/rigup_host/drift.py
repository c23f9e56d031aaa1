"""Compare the host with its last deploy: the daily audit, without the control machine.

Reads the plan and the ledger on the host and looks at files, units, driver, store and endpoints. Writes only its
result, a JSON file. The full audit (`rigup audit`) runs on the control machine and checks more.

Exit status: 0 as deployed, 2 findings, 1 the plan or the ledger cannot be read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rigup_host import files, http, paths, systemd

ANSWER_S = 20


def main(argv: list[str]) -> int:
    """Look at everything and write the result; return the exit status."""
    parser = argparse.ArgumentParser(prog="rigup-host drift", description="Compare this host with its last deploy.")
    parser.add_argument("--plan", type=Path, default=paths.PLAN, help="the plan that the deploy kept")
    parser.add_argument("--ledger", type=Path, default=paths.LEDGER, help="the ledger of the files it wrote")
    parser.add_argument("--root", type=Path, default=paths.ROOT, help="directory that contains the host's files")
    parser.add_argument("--out", type=Path, default=paths.DAILY_AUDIT, help="where to write the result")
    options = parser.parse_args(argv)
    try:
        plan = files.from_json(options.plan.read_text())
        written = last_written(options.ledger.read_text().splitlines())
    except (OSError, ValueError) as error:
        print(f"the plan or the ledger cannot be read: {error}", file=sys.stderr)
        return 1
    checks: list[tuple[str, Callable[[], Iterable[str]]]] = [
        ("files", lambda: [*changed_files(written, options.root), *changed_units(plan, options.root)]),
        ("units", lambda: stopped_units(plan)),
        ("driver", lambda: driver_versions(options.root)),
        ("store", lambda: store_sizes(plan)),
        ("endpoints", lambda: silent_endpoints(plan)),
    ]
    findings = [{"check": name, "found": found} for name, look in checks for found in look()]
    record = {
        "at": files.now(),
        "plan": plan.get("digest", ""),
        "checks": [name for name, _ in checks],
        "findings": findings,
    }
    files.write(options.out, json.dumps(record, indent=2) + "\n", mode=0o600)
    for finding in findings:
        print(f"{finding['check']}: {finding['found']}")
    print(f"{len(findings)} findings")
    return 2 if findings else 0


def last_written(lines: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each file as a deploy last wrote it, without removed files and the units of endpoints.

    A switch changes those units, so the ledger does not say which one is in force. A last line that was cut off is
    skipped. Raises ValueError if another one is unreadable.
    """
    sums: dict[str, str] = {}
    written = list(lines)
    for number, line in enumerate(written, start=1):
        try:
            entry = files.from_json(line)
        except ValueError:
            if number < len(written):
                raise ValueError(f"line {number} of the ledger is damaged") from None
            continue
        match entry:
            case {"added": "file", "path": str(path), "sha256": str(digest)}:
                sums[path] = digest
    return {path: digest for path, digest in sums.items() if digest and not path.startswith(unit_path(""))}


def unit_path(name: str) -> str:
    """Return the path of an endpoint's unit, without `.service`."""
    return f"/{(paths.UNITS / f'llm@{name}').relative_to(paths.ROOT)}"


def changed_files(written: dict[str, str], root: Path) -> Iterable[str]:
    """Yield the files that do not have the content that was last written."""
    for path, digest in sorted(written.items()):
        file = root / path.lstrip("/")
        if not file.is_file():
            yield f"{path} is gone"
        elif hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            yield f"{path} was changed"


def changed_units(plan: dict[str, Any], root: Path) -> Iterable[str]:
    """Yield the endpoints' units that are not the unit of one of the endpoint's generations."""
    for name in (endpoint["name"] for endpoint in plan.get("endpoints", [])):
        path = f"{unit_path(name)}.service"
        unit = root / path.lstrip("/")
        generations = root / paths.ENDPOINTS.relative_to(paths.ROOT) / name
        if not unit.is_file():
            yield f"{path} is gone"
        elif unit.read_bytes() not in {file.read_bytes() for file in generations.glob("*/llm.service")}:
            yield f"{path} was changed"


def stopped_units(plan: dict[str, Any]) -> Iterable[str]:
    """Yield the units that do not run, or do not start at boot."""
    for unit in ("docker.service", *(f"llm@{endpoint['name']}.service" for endpoint in plan.get("endpoints", []))):
        try:
            state = systemd.show(unit, "ActiveState", "UnitFileState")
        except (OSError, subprocess.CalledProcessError) as error:
            yield f"{unit}: {error}"
            continue
        if state["ActiveState"] != "active":
            yield f"{unit} is {state['ActiveState'] or 'unknown'}"
        if state["UnitFileState"] != "enabled":
            yield f"{unit} does not start at boot"


def driver_versions(root: Path) -> Iterable[str]:
    """Yield the versions of loaded module, module on disk and libraries if they differ: new processes fail then."""
    loaded = root / "sys/module/nvidia/version"
    found = {
        "loaded": loaded.read_text().strip() if loaded.exists() else "none",
        "on disk": output_of(["/sbin/modinfo", "-F", "version", "nvidia"]) or "none",
        "libraries": (
            output_of(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]) or "none"
        ).split()[0],
    }
    if len(set(found.values())) > 1:
        yield ", ".join(f"{name} {version}" for name, version in found.items())


def store_sizes(plan: dict[str, Any]) -> Iterable[str]:
    """Yield the checkpoints with another number of files or bytes than published."""
    for path, checkpoint in {item["path"]: item for item in checkpoints(plan)}.items():
        sizes = [file.stat().st_size for file in Path(path).rglob("*") if file.is_file()]
        if (len(sizes), sum(sizes)) != (checkpoint["files"], checkpoint["bytes"]):
            expected = f"{checkpoint['files']} files with {checkpoint['bytes']} bytes"
            yield f"{path} has {len(sizes)} files with {sum(sizes)} bytes, expected {expected}"


def checkpoints(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the checkpoint of each endpoint."""
    return [endpoint["checkpoint"] for endpoint in plan.get("endpoints", [])]


def silent_endpoints(plan: dict[str, Any]) -> Iterable[str]:
    """Yield the endpoints whose health check does not answer with a success."""
    for endpoint in plan.get("endpoints", []):
        address = f"[{endpoint['address']}]" if ":" in endpoint["address"] else endpoint["address"]
        url = f"http://{address}:{endpoint['port']}{endpoint['ready_path']}"
        try:
            answer = http.get(url, ANSWER_S)
        except http.NoAnswer as error:
            yield str(error)
        else:
            if not 200 <= answer.status < 300:
                yield f"{url} answered {answer.status}"


def output_of(argv: list[str]) -> str:
    """Return what a program prints, without surrounding white space; an empty text if it fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
