"""Start, wait for, verify and stop endpoints through systemd."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rigup_host import systemd
from rigup_host.starts import last_start_s
from rigup_host.switch.state import Generation, unit_of

POLL_S = 0.5
SAY_EVERY_S = 10.0
LINE_WIDTH = 120
# Tracebacks of workers may follow the line that says why an engine ended.
LOG_LINES = 2000
# In addition to the limit that systemd has for a start.
GRACE_S = 120
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


@dataclass
class Failed(Exception):
    """An endpoint does not serve. `came_up`: it was active, and failed its verification.

    `invocation` is the invocation of its unit, which selects its log in the journal.
    """

    name: str
    why: str
    invocation: str = ""
    came_up: bool = False


@dataclass(frozen=True)
class State:
    """The state of a unit; `job` says that a start or stop is queued."""

    active: str
    sub: str
    result: str
    invocation: str
    job: bool

    @property
    def runs(self) -> bool:
        """Whether it runs or is starting."""
        return self.active in ("active", "reloading") or (self.active == "activating" and not self.retries)

    @property
    def retries(self) -> bool:
        """Whether it has failed and systemd will start it again."""
        return self.sub.startswith("auto-restart")


def stop(names: Iterable[str]) -> None:
    """Stop endpoints and wait for their end. systemd kills one that takes too long, which is not an error here."""
    if units := [unit_of(name) for name in names]:
        subprocess.run(["systemctl", "stop", "--", *units])


def clear(names: Sequence[str]) -> None:
    """Clear failed states. A unit that is stopped during its start has failed, and stays listed without its file."""
    if names:
        subprocess.run(["systemctl", "reset-failed", "--", *map(unit_of, names)], capture_output=True)


def start(names: Sequence[str], recipes: Mapping[str, str]) -> None:
    """Start endpoints without waiting; one that runs or is starting is left alone."""
    units = [unit_of(name) for name in names]
    if not units:
        return
    print(f"starting {', '.join(f'{recipe} as {name}' for name, recipe in recipes.items())}", flush=True)
    # systemd refuses a unit that has reached its start limit until the counter is reset.
    clear(names)
    systemd.systemctl("start", "--no-block", "--", *units)


def wait(targets: list[Generation]) -> None:
    """Wait until all are active. Raise Failed for the first one that ends or exceeds its time."""
    waiting = {target.name: target for target in targets}
    began = spoke = time.monotonic()
    while waiting:
        for name, target in list(waiting.items()):
            state = show(name)
            if state.active == "active" and not state.job:
                del waiting[name]
            elif not state.job and (state.active in ("failed", "inactive") or state.retries):
                raise not_up(name, state)
            elif time.monotonic() - began > target.start_seconds + GRACE_S:
                raise Failed(name, f"was not ready within {target.start_seconds + GRACE_S} s", state.invocation)
            elif time.monotonic() - spoke >= SAY_EVERY_S:
                spoke = time.monotonic()
                latest = (log_of(state.invocation, 5) or ["no log line yet"])[-1]
                usual = f" of about {usual_s} s" if (usual_s := last_start_s(name)) else ""
                print(f"{name}: starting, {spoke - began:.0f} s{usual}; {latest[:LINE_WIDTH]}", flush=True)
        if waiting:
            time.sleep(POLL_S)


def not_up(name: str, state: State) -> Failed:
    """Return the failure of a start, with the message of the readiness check if there is one."""
    reasons = [line for line in log_of(state.invocation, LOG_LINES) if line.startswith("not ready after ")]
    why = (
        f"did not come up: {reasons[-1]}"
        if reasons
        else f"did not come up: {state.active} ({state.sub}, {state.result})"
    )
    return Failed(name, why, state.invocation)


def verify(target: Generation) -> None:
    """Run the verification of a generation. Raise Failed with its complaints."""
    invocation = show(target.name).invocation
    done = subprocess.run(target.verify, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        complaints = [line for line in done.stderr.splitlines() if line.strip()]
        why = "; ".join(complaints) or f"the verification exited with {done.returncode}"
        raise Failed(target.name, f"came up but failed its verification: {why}", invocation, came_up=True)


def show(name: str) -> State:
    """Return the state of an endpoint's unit. Raise CalledProcessError if systemd does not answer."""
    found = systemd.show(unit_of(name), "ActiveState", "SubState", "Result", "InvocationID", "Job")
    return State(
        active=found["ActiveState"] or "inactive",
        sub=found["SubState"] or "dead",
        result=found["Result"],
        invocation=found["InvocationID"],
        job=found["Job"] not in ("", "0"),
    )


def log_of(invocation: str, lines: int) -> list[str]:
    """Return the last lines that a unit logged in an invocation."""
    # The last lines of a unit may reach the journal after its end is noticed.
    subprocess.run(["journalctl", "--sync"], capture_output=True)
    selected = f"_SYSTEMD_INVOCATION_ID={invocation}"
    argv = ["journalctl", "--no-pager", "--quiet", "--output=cat", f"--lines={lines}", selected]
    output = subprocess.run(argv, capture_output=True, text=True, errors="replace").stdout
    return [CONTROL.sub("", line).rstrip() for line in output.splitlines() if line.strip()]
