"""Endpoints as systemd has them: started, waited for, proven, stopped, and what they said when they ended."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from switch_record import Generation, unit_of

POLL_S = 0.5
SAY_EVERY_S = 10.0
LINE_WIDTH = 120
# Of one that ended: tracebacks of its workers may come after the line that is looked for.
LOG_LINES = 2000
# Beyond what systemd itself allows a start.
GRACE_S = 120
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


@dataclass
class Failed(Exception):
    """An endpoint does not serve, or not as it should; `proof` tells that it was up and failed its proof.

    `invocation` is that of its unit, under which the journal has its log.
    """

    name: str
    why: str
    invocation: str = ""
    proof: bool = False


@dataclass(frozen=True)
class State:
    """What `systemctl show` says of a unit."""

    active: str
    sub: str
    result: str
    invocation: str
    job: bool

    @property
    def runs(self) -> bool:
        return self.active in ("active", "reloading") or (self.active == "activating" and not self.retries)

    @property
    def retries(self) -> bool:
        """It has failed, and systemd will start it again."""
        return self.sub.startswith("auto-restart")


def stop(names: Iterable[str]) -> None:
    """Until they have ended; one that takes too long is killed by systemd, which is no reason to give up."""
    if units := [unit_of(name) for name in names]:
        subprocess.run(["systemctl", "stop", "--", *units])


def clear(names: Sequence[str]) -> None:
    """Have systemd forget failures: one that was stopped while it started has failed, and is listed without a file."""
    if names:
        subprocess.run(["systemctl", "reset-failed", "--", *map(unit_of, names)], capture_output=True)


def start(names: Sequence[str], recipes: Mapping[str, str]) -> None:
    """Order the starts; one that runs or is starting already is left alone."""
    units = [unit_of(name) for name in names]
    if not units:
        return
    print(f"starting {', '.join(f'{recipe} as {name}' for name, recipe in recipes.items())}", flush=True)
    # A unit that has used up its start limit is refused until its count is cleared.
    clear(names)
    systemctl("start", "--no-block", "--", *units)


def wait(targets: list[Generation]) -> None:
    """Until all are active; raises Failed for the first that ends, or takes longer than it may."""
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
                raise Failed(name, f"was not up within {target.start_seconds + GRACE_S} s", state.invocation)
            elif time.monotonic() - spoke >= SAY_EVERY_S:
                spoke = time.monotonic()
                latest = (log_of(state.invocation, 5) or ["it has said nothing yet"])[-1]
                print(f"{name}: starting for {spoke - began:.0f} s; {latest[:LINE_WIDTH]}", flush=True)
        if waiting:
            time.sleep(POLL_S)


def not_up(name: str, state: State) -> Failed:
    """What the readiness check said, where it did; its line is the last but for systemd's own."""
    said = [line for line in log_of(state.invocation, LOG_LINES) if line.startswith("not ready after ")]
    why = f"did not come up: {said[-1]}" if said else f"did not come up: {state.active} ({state.sub}, {state.result})"
    return Failed(name, why, state.invocation)


def prove(target: Generation) -> None:
    """Raises Failed with what the proof complained of."""
    invocation = show(target.name).invocation
    done = subprocess.run(target.prove, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        complaints = [line for line in done.stderr.splitlines() if line.strip()]
        why = "; ".join(complaints) or f"its proof ended with {done.returncode}"
        raise Failed(target.name, f"came up, and fails its proof: {why}", invocation, proof=True)


def show(name: str) -> State:
    properties = "ActiveState,SubState,Result,InvocationID,Job"
    argv = ["systemctl", "show", f"--property={properties}", "--", unit_of(name)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    values = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    return State(
        active=values.get("ActiveState", "inactive"),
        sub=values.get("SubState", "dead"),
        result=values.get("Result", ""),
        invocation=values.get("InvocationID", ""),
        job=values.get("Job", "") not in ("", "0"),
    )


def systemctl(*words: str) -> None:
    """Raises CalledProcessError."""
    subprocess.run(["systemctl", *words], check=True)


def log_of(invocation: str, lines: int) -> list[str]:
    """The last lines that the unit wrote in that invocation."""
    # What a unit says last may reach the journal after its end was noticed.
    subprocess.run(["journalctl", "--sync"], capture_output=True)
    selected = f"_SYSTEMD_INVOCATION_ID={invocation}"
    argv = ["journalctl", "--no-pager", "--quiet", "--output=cat", f"--lines={lines}", selected]
    said = subprocess.run(argv, capture_output=True, text=True, errors="replace").stdout
    return [CONTROL.sub("", line).rstrip() for line in said.splitlines() if line.strip()]
