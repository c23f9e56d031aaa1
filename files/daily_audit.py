#!/usr/bin/env python3
"""A quick look at the host by itself, once a day: is it still what the last deploy made of it?

It reads the plan that the host keeps, the ledger of what was written, and the host; it changes nothing but the result,
one JSON file. The full audit (`rigup audit`) runs on the control machine and sees more.

Exit status: 0 as deployed, 2 findings, 1 it could not look.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ANSWER_S = 20
# The endpoints' units are not the ledger's to tell: a switch puts them into force, takes them back and removes them.
UNITS = "/usr/local/lib/systemd/system/llm@"
GENERATIONS = "etc/rigup/endpoints"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Look whether this host is still as it was deployed.")
    parser.add_argument("--plan", type=Path, default=Path("/etc/rigup/plan.json"))
    parser.add_argument("--ledger", type=Path, default=Path("/var/lib/rigup/ledger"))
    parser.add_argument("--root", type=Path, default=Path("/"), help="below which the host's files are")
    parser.add_argument("--out", type=Path, default=Path("/var/lib/rigup/daily-audit.json"))
    options = parser.parse_args(argv)
    try:
        plan = json.loads(options.plan.read_text())
        written = last_written(options.ledger.read_text().splitlines())
    except (OSError, ValueError) as error:
        print(f"cannot look: {error}", file=sys.stderr)
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
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "plan": plan.get("digest", ""),
        "checks": [name for name, _ in checks],
        "findings": findings,
    }
    write(options.out, json.dumps(record, indent=2) + "\n")
    for finding in findings:
        print(f"{finding['check']}: {finding['found']}")
    print(f"{len(findings)} findings")
    return 2 if findings else 0


def last_written(lines: Iterable[str]) -> dict[str, str]:
    """The SHA-256 that each file had when a deploy wrote it last; removed ones and endpoints' units are left out."""
    sums: dict[str, str] = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry.get("added") == "file":
            sums[entry["path"]] = entry["sha256"]
    return {path: digest for path, digest in sums.items() if digest and not path.startswith(UNITS)}


def changed_files(written: dict[str, str], root: Path) -> Iterable[str]:
    for path, digest in sorted(written.items()):
        file = root / path.lstrip("/")
        if not file.is_file():
            yield f"{path} is gone"
        elif hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            yield f"{path} was changed"


def changed_units(plan: dict[str, Any], root: Path) -> Iterable[str]:
    """Each endpoint's unit is that of one of its generations, whichever a switch has left in force."""
    for name in (endpoint["name"] for endpoint in plan.get("endpoints", [])):
        path = f"{UNITS}{name}.service"
        unit = root / path.lstrip("/")
        made = {file.read_bytes() for file in (root / GENERATIONS / name).glob("*/llm.service")}
        if not unit.is_file():
            yield f"{path} is gone"
        elif unit.read_bytes() not in made:
            yield f"{path} was changed"


def stopped_units(plan: dict[str, Any]) -> Iterable[str]:
    for unit in ("docker.service", *(f"llm@{endpoint['name']}.service" for endpoint in plan.get("endpoints", []))):
        shown = said(["systemctl", "show", "--property=ActiveState,UnitFileState", "--", unit])
        state = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
        if state.get("ActiveState") != "active":
            yield f"{unit} is {state.get('ActiveState', 'unknown')}"
        if state.get("UnitFileState") != "enabled":
            yield f"{unit} does not start at boot"


def driver_versions(root: Path) -> Iterable[str]:
    """The loaded module, the one on disk and the libraries: apart, a new process fails."""
    loaded = root / "sys/module/nvidia/version"
    found = {
        "loaded": loaded.read_text().strip() if loaded.exists() else "none",
        "on disk": said(["/sbin/modinfo", "-F", "version", "nvidia"]) or "none",
        "libraries": (said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]) or "none").split()[0],
    }
    if len(set(found.values())) > 1:
        yield ", ".join(f"{name} {version}" for name, version in found.items())


def store_sizes(plan: dict[str, Any]) -> Iterable[str]:
    for path, checkpoint in {item["path"]: item for item in checkpoints(plan)}.items():
        sizes = [file.stat().st_size for file in Path(path).rglob("*") if file.is_file()]
        if (len(sizes), sum(sizes)) != (checkpoint["files"], checkpoint["bytes"]):
            due = f"{checkpoint['files']} files with {checkpoint['bytes']} bytes"
            yield f"{path} has {len(sizes)} files with {sum(sizes)} bytes, not {due}"


def checkpoints(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [endpoint["checkpoint"] for endpoint in plan.get("endpoints", [])]


def silent_endpoints(plan: dict[str, Any]) -> Iterable[str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for endpoint in plan.get("endpoints", []):
        address = f"[{endpoint['address']}]" if ":" in endpoint["address"] else endpoint["address"]
        url = f"http://{address}:{endpoint['port']}{endpoint['ready_path']}"
        try:
            with opener.open(url, timeout=ANSWER_S):
                pass
        except (OSError, urllib.error.URLError) as error:
            yield f"{url}: {getattr(error, 'reason', error)}"


def said(argv: list[str]) -> str:
    """What a program prints; nothing where it fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def write(path: Path, text: str) -> None:
    """Write beside and rename, so that no reader ever sees half of it."""
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    os.replace(beside, path)


if __name__ == "__main__":
    sys.exit(main())
