"""Stands in for `systemctl` under `RIGUP_ROOT`; every change that it makes is a step.

Where `RIGUP_CUTS` names a directory, the host is copied into it before each step, under the step's number: all that a
kill at that step would leave is files. What runs is a file in `running` with the generation that it was started with;
while there is a `booting`, starts only wait there in a queue. It is begun a thousand times and imports little for that.
"""

from __future__ import annotations

import os
import sys

ROOT = os.environ["RIGUP_ROOT"]
AT_BOOT = f"{ROOT}/etc/systemd/system/multi-user.target.wants"
PLACES = (f"{ROOT}/run/systemd/system", f"{ROOT}/usr/local/lib/systemd/system")


def text_of(path: str) -> str:
    with open(path) as file:
        return file.read()


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def step() -> None:
    """Keep what is there before it."""
    if cuts := os.environ.get("RIGUP_CUTS"):
        os.spawnlp(os.P_WAIT, "cp", "cp", "--archive", ROOT, f"{cuts}/{len(os.listdir(cuts))}")


def main(words: list[str]) -> int:
    verb, units = words[0], [word for word in words[1:] if not word.startswith("-")]
    running = f"{ROOT}/booting" if os.path.exists(f"{ROOT}/booting") else f"{ROOT}/running"
    for unit in units:
        there = [f"{place}/{unit}" for place in PLACES if os.path.exists(f"{place}/{unit}")]
        started, link = f"{running}/{unit}", f"{AT_BOOT}/{unit}"
        runs, enabled = os.path.exists(started), os.path.islink(link)
        if verb == "show":
            print(f"ActiveState={'active' if runs else 'inactive'}\nSubState=x\nResult=x\nInvocationID=1\nJob=")
        elif verb == "start" and not runs:
            if not there:
                return 5
            step()
            write(started, text_of(there[0]).partition("Generation=")[2].strip())
        elif verb == "stop" and runs:
            step()
            os.unlink(started)
        elif verb == "enable" and not enabled:
            step()
            os.symlink(f"/usr/local/lib/systemd/system/{unit}", link)
        elif verb == "disable" and enabled:
            step()
            os.unlink(link)
    return 0


def watched(program: str) -> None:
    """Run a program; what it renames and removes are steps too."""
    sys.addaudithook(lambda event, _: step() if event in ("os.rename", "os.remove") else None)
    sys.argv = sys.argv[1:]
    exec(compile(text_of(program), program, "exec"), {"__name__": "__main__", "__file__": program})


if __name__ == "__main__":
    if sys.argv[1].endswith("/rigup-host"):
        watched(sys.argv[1])
    else:
        sys.exit(main(sys.argv[1:]))
