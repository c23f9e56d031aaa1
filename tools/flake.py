"""Run a test command many times beside two busy loops, to find what fails by chance: `make flake N=20`.

Progress is kept outside the checkout, under ~/.cache/rigup-flake, for each state of the tree: a restart continues with
the runs that are missing. The first failure stops it with the end of its log.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

LOOPS = 2
# Ends with its parent too, however that ends.
LOOP = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"
TAIL_LINES = 60


def main() -> int:
    parser = argparse.ArgumentParser(description="Run tests many times beside two busy loops.")
    parser.add_argument("runs", type=int, help="how many runs must pass")
    parser.add_argument("command", nargs="+", help="the command that runs the tests")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    state = tree_state()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rigup-flake" / state
    folder.mkdir(parents=True, exist_ok=True)
    with busy_loops():
        for number in range(1, options.runs + 1):
            passed = folder / f"{number}.passed"
            if passed.exists():
                continue
            log = folder / f"{number}.log"
            began = time.monotonic()
            status = run(options.command, log)
            if tree_state() != state:
                print("the tree changed during this run: nothing is known about either state", file=sys.stderr)
                return 1
            if status:
                print(*log.read_text(errors="replace").splitlines()[-TAIL_LINES:], sep="\n")
                print(f"run {number} of {options.runs} failed ({status}); its log: {log}", file=sys.stderr)
                return 1
            passed.write_text(f"{time.monotonic() - began:.0f} s\n")
            print(f"run {number} of {options.runs} passed in {passed.read_text().strip()}", flush=True)
    times = ", ".join((folder / f"{number}.passed").read_text().strip() for number in range(1, options.runs + 1))
    print(f"{options.runs} runs passed beside {LOOPS} busy loops, in {times}")
    return 0


def tree_state() -> str:
    """Return a name for the content of this checkout: its commit, and a digest of what differs from it."""
    digest = hashlib.sha256(git("diff", "HEAD", "--binary"))
    for name in git("ls-files", "--others", "--exclude-standard", "-z").split(b"\0"):
        if name:
            digest.update(name + b"\0" + Path(os.fsdecode(name)).read_bytes())
    return f"{git('rev-parse', 'HEAD').decode().strip()}-{digest.hexdigest()[:16]}"


def git(*words: str) -> bytes:
    return subprocess.run(["git", *words], stdout=subprocess.PIPE, check=True).stdout


@contextmanager
def busy_loops() -> Iterator[None]:
    """Keep LOOPS processors busy for as long as the context lasts."""
    argv = [sys.executable, "-c", LOOP, str(os.getpid())]
    loops = [subprocess.Popen(argv) for _ in range(LOOPS)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def run(command: Sequence[str], log: Path) -> int:
    """Run the command to its end, with its output in `log`; returns its exit status."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


if __name__ == "__main__":
    sys.exit(main())
