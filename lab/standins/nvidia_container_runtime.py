#!/usr/bin/env python3
"""The lab's nvidia-container-runtime: adds the GPUs in NVIDIA_VISIBLE_DEVICES, then executes runc."""

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, "/usr/lib/lab-standins")
import lab_gpu


def bundle_of(arguments: list[str]) -> Path:
    """Return the bundle of a runc command line; the current directory by default."""
    for position, word in enumerate(arguments):
        if word in ("--bundle", "-b"):
            return Path(arguments[position + 1])
        if word.startswith("--bundle="):
            return Path(word.partition("=")[2])
    return Path()


def add_gpus(config: dict[str, Any]) -> None:
    """Add the mounts and the variable of a CDI specification. Raises DriverError without a driver."""
    environment = config["process"].setdefault("env", [])
    chosen = lab_gpu.select(lab_gpu.visible_devices(environment))
    if not chosen:
        return
    for mount in [*lab_gpu.common_mounts(), *map(lab_gpu.gpu_mount, chosen)]:
        options = ["ro", "nosuid", "nodev", "rbind", "rprivate"]
        entry = {"destination": str(mount.container), "type": "bind", "source": str(mount.host), "options": options}
        config.setdefault("mounts", []).append(entry)
    environment[:] = [entry for entry in environment if not entry.startswith("NVIDIA_VISIBLE_DEVICES=")]
    environment.append("NVIDIA_VISIBLE_DEVICES=void")


def main(arguments: list[str]) -> int:
    if "create" in arguments or "run" in arguments:
        path = bundle_of(arguments) / "config.json"
        config = json.loads(path.read_text())
        try:
            add_gpus(config)
        except lab_gpu.DriverError as error:
            print(f"failed to create NVIDIA Container Runtime: failed to initialize NVML: {error}", file=sys.stderr)
            return 1
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(config))
        beside.replace(path)
    os.execvp("runc", ["runc", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
