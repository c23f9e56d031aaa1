#!/usr/bin/env python3
"""The lab's nvidia-persistenced: keeps persistence mode on while it runs, unless disabled by an option."""

import argparse
import os
import pwd
import signal
import sys
import syslog
from pathlib import Path

ROOT = Path(os.environ.get("LAB_ROOT", "/"))
MODULE_VERSION = ROOT / "proc/driver/nvidia/version"
RUNTIME = ROOT / "run/nvidia-persistenced"


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nvidia-persistenced")
    parser.add_argument("-V", "--verbose", action="store_true")
    parser.add_argument("-u", "--user")
    parser.add_argument("-g", "--group")
    # The real default is on; the units of distributions switch it off.
    parser.add_argument("--persistence-mode", dest="persistence", action="store_true", default=True)
    parser.add_argument("--no-persistence-mode", dest="persistence", action="store_false")
    return parser.parse_args(arguments)


def serve(persistence: bool, started: int) -> None:
    """Run until SIGTERM or SIGINT; closing `started` tells the parent to report success.

    nvidia-smi reads the mode from the file next to the pid file.
    """

    def stop(_signal: int, _frame: object) -> None:
        (RUNTIME / "persistence-mode").unlink(missing_ok=True)
        (RUNTIME / "nvidia-persistenced.pid").unlink(missing_ok=True)
        syslog.syslog(f"Shutdown ({os.getpid()})")
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if persistence:
        (RUNTIME / "persistence-mode").write_text("on\n")
    (RUNTIME / "nvidia-persistenced.pid").write_text(f"{os.getpid()}\n")
    syslog.syslog(f"Started ({os.getpid()})")
    os.close(started)
    while True:
        signal.pause()


def main(arguments: list[str]) -> int:
    options = options_of(arguments)
    syslog.openlog("nvidia-persistenced", 0, syslog.LOG_DAEMON)
    if not MODULE_VERSION.exists():
        syslog.syslog(
            syslog.LOG_ERR, "Failed to query NVIDIA devices. Please ensure that the NVIDIA device files exist."
        )
        print("nvidia-persistenced failed to initialize. Check syslog for more details.", file=sys.stderr)
        return 1
    RUNTIME.mkdir(parents=True, exist_ok=True)
    if options.user and os.geteuid() == 0:
        account = pwd.getpwnam(options.user)
        os.chown(RUNTIME, account.pw_uid, account.pw_gid)
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        os.setsid()
        quiet = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(quiet, descriptor)
        serve(options.persistence, writer)
    os.close(writer)
    os.read(reader, 1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
