#!/usr/bin/env python3
"""The lab's nvidia-container-cli: `info`, `list` and `--version`, for people who look."""

import sys
from pathlib import Path

sys.path.insert(0, "/usr/lib/lab-standins")
import lab_gpu

VERSION_FILE = Path("/usr/lib/lab-standins/toolkit-version")


def main(arguments: list[str]) -> int:
    command = next((word for word in arguments if not word.startswith("-")), "")
    if not command and arguments[:1] in (["--version"], ["-V"]):
        print(f"cli-version: {lab_gpu.on_host(VERSION_FILE).read_text().strip()}")
        return 0
    if command not in ("info", "list"):
        print("Usage: nvidia-container-cli [OPTION...] COMMAND [ARG...]\nCommands: info, list", file=sys.stderr)
        return 1
    try:
        gpus, mounts = lab_gpu.gpus(), lab_gpu.common_mounts()
    except lab_gpu.DriverError as error:
        reason = str(error).removeprefix("ERROR_").lower().replace("_", " ")
        print(f"nvidia-container-cli: initialization error: nvml error: {reason}", file=sys.stderr)
        return 1
    if command == "list":
        print("\n".join(str(mount.host) for mount in mounts))
        return 0
    print(f"NVRM version:   {lab_gpu.module_version()}")
    for gpu in gpus:
        print(f"\nDevice Index:   {gpu['index']}\nDevice Minor:   {gpu['minor']}\nModel:          {gpu['name']}")
        print(
            f"GPU UUID:       {gpu['uuid']}\nBus Location:   {gpu['bdf']}\nArchitecture:   {gpu['compute_capability']}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
