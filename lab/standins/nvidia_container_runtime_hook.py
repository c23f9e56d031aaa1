#!/usr/bin/env python3
"""The lab's nvidia-container-runtime-hook: what `docker run --gpus` calls before a container starts.

`prestart` reads the container's state (OCI runtime specification: pid and bundle as JSON) from standard input and
bind-mounts the driver's files into the container's root file system, inside its mount namespace.
"""

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, "/usr/lib/lab-standins")
import lab_gpu


def prestart() -> None:
    state = json.load(sys.stdin)
    bundle = Path(state["bundle"])
    config = json.loads((bundle / "config.json").read_text())
    wanted = lab_gpu.visible_devices(config["process"].get("env", []))
    # `void`: the container got its GPUs from a CDI specification.
    if wanted in ("", "void", "none"):
        return
    mounts = [*lab_gpu.common_mounts(), *map(lab_gpu.gpu_mount, lab_gpu.select(wanted))]
    mounts += lab_gpu.device_cgroup_mounts()
    rootfs = bundle / config["root"]["path"]
    words = [word for mount in mounts for word in (str(mount.host), str(mount.container))]
    # The container has not changed its root yet, so its namespace still contains this program.
    enter = ["nsenter", f"--mount=/proc/{state['pid']}/ns/mnt", "--"]
    subprocess.run([*enter, sys.executable, sys.argv[0], "mount", str(rootfs), *words], check=True)


def mount(rootfs: Path, words: list[str]) -> None:
    for source, target in zip(words[::2], words[1::2], strict=True):
        place = rootfs / target.lstrip("/")
        if Path(source).is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        subprocess.run(["mount", "--bind", "-o", "ro", source, str(place)], check=True)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["mount"]:
        mount(Path(arguments[1]), arguments[2:])
    elif arguments == ["prestart"]:
        try:
            prestart()
        except lab_gpu.DriverError as error:
            print("Auto-detected mode as 'legacy'", file=sys.stderr)
            print(
                f"nvidia-container-cli: initialization error: nvml error: {str(error).removeprefix('ERROR_').lower()}",
                file=sys.stderr,
            )
            return 1
    elif arguments not in (["poststart"], ["poststop"]):
        print("Commands:\n  prestart\n        run the prestart hook\n  poststart\n        no-op", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
