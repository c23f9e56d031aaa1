"""pyinfra's own command line, run often: a process that has imported it forks for each run.

Reading pyinfra's modules is most of what a small run costs. What a run is given is its own: arguments, directory,
environment, and the three standard streams.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

STREAMS = ("stdin", "stdout", "stderr")


@cache
def _parent() -> subprocess.Popen[str]:
    """Ends with this process, as its input does."""
    argv = [sys.executable, "-P", __file__]
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, bufsize=1, start_new_session=True)


def run(
    arguments: Sequence[str], cwd: Path, env: Mapping[str, str], stdin: str, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """One run of pyinfra to its end. Raises TimeoutError."""
    parent = _parent()
    assert parent.stdin and parent.stdout
    argv = ["pyinfra", *arguments]
    with TemporaryDirectory() as directory:
        streams = {name: Path(directory) / name for name in STREAMS}
        for path in streams.values():
            path.write_text(stdin if path.name == "stdin" else "")
        print(json.dumps({"argv": argv, "cwd": str(cwd), "env": dict(env), "at": directory}), file=parent.stdin)
        if not select.select([parent.stdout], [], [], timeout_s)[0]:
            _parent.cache_clear()
            # With the run that hangs.
            os.killpg(parent.pid, signal.SIGKILL)
            raise TimeoutError(f"{argv} has not ended within {timeout_s} s")
        status = int(parent.stdout.readline())
        return subprocess.CompletedProcess(argv, status, *(streams[name].read_text() for name in STREAMS[1:]))


def serve() -> None:
    # The real ones: importing pyinfra replaces them by gevent's.
    fork, wait = os.fork, os.waitpid
    from pyinfra_cli.main import main

    import rigup.ssh.connector  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        child = fork()
        if child == 0:
            os.chdir(asked["cwd"])
            os.environ.clear()
            os.environ.update(asked["env"])
            for number, name in enumerate(STREAMS):
                os.dup2(os.open(f"{asked['at']}/{name}", os.O_RDWR | os.O_APPEND), number)
            sys.argv = asked["argv"]
            sys.exit(main())
        print(os.waitstatus_to_exitcode(wait(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
