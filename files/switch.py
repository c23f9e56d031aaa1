#!/usr/bin/env python3
"""Makes endpoints serve another generation, and goes back to the one before where it does not serve.

`switch.py --to NAME=GENERATION --remove NAME --restart NAME`, each as often as needed. All that is named is switched
together: all of it serves and passes its proof, or all of it is again as it was. `switch.py --finish` does only what an
interrupted one had decided.

The files of a generation lie in a directory of their own, with its unit among them. The unit in force lies under
/usr/local/lib/systemd/system. One that is being tried lies under /run/systemd/system, which comes before it; a boot
forgets it. Once all is proven, one file says what shall be in force (/var/lib/rigup/commit.json), and then the units
are put there one by one: what a power cut leaves undone of that, rigup-commit.service does at the next boot. A switch
that was killed is gone on with by the next one.

What came of it stands in /var/lib/rigup/switch.json: the last switch, and what has failed here before.

Exit status: 0 all serves, 1 it could not be done (the next run goes on), 3 what served before serves again, 4 what
served before does not serve either, 5 there was nothing to go back to.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("RIGUP_ROOT", "/"))
ENDPOINTS = ROOT / "etc/rigup/endpoints"
IN_FORCE = ROOT / "usr/local/lib/systemd/system"
ON_TRIAL = ROOT / "run/systemd/system"
# Where `systemctl enable` puts its links.
AT_BOOT = ROOT / "etc/systemd/system/multi-user.target.wants"
RECORD = ROOT / "var/lib/rigup/switch.json"
DECIDED = ROOT / "var/lib/rigup/commit.json"
LOCK = ROOT / "run/rigup/switch.lock"
UNDER_WAY = ROOT / "run/rigup/switch.json"

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
class Generation:
    """What one endpoint is made of."""

    name: str
    id: str
    recipe: str
    start_seconds: int
    prove: list[str]

    @classmethod
    def read(cls, name: str, id: str) -> Generation:
        """Raises OSError, ValueError or KeyError where its files are not whole."""
        record = json.loads((ENDPOINTS / name / id / "endpoint.json").read_text())
        (ENDPOINTS / name / id / "llm.service").read_text()
        return cls(name, id, str(record["recipe"]), int(record["start_seconds"]), list(record["prove"]))

    @property
    def unit_text(self) -> str:
        return (ENDPOINTS / self.name / self.id / "llm.service").read_text()


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


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = finish()
        if options.finish:
            return 0
        # Whoever reads the record must not take an earlier switch for one that was cut short.
        place(RECORD, json.dumps({"failed": known(RECORD).get("failed", {})}, indent=2) + "\n")
        try:
            targets = [Generation.read(*word.split("=", 1)) for word in options.to]
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"nothing was touched: a generation is not whole: {error}", file=sys.stderr)
            return 1
        # What has just been put into force was started for it.
        fresh = {target.name for target in targets if target in done}
        return Switch(targets, options.remove, set(options.restart) - fresh).run()


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Switch endpoints to other generations, or back.")
    parser.add_argument("--to", action="append", default=[], metavar="NAME=GENERATION", help="what shall serve")
    parser.add_argument("--remove", action="append", default=[], metavar="NAME", help="an endpoint that shall go")
    parser.add_argument("--restart", action="append", default=[], metavar="NAME", help="one that runs on old input")
    parser.add_argument("--finish", action="store_true", help="put into force what was decided, and try nothing")
    return parser.parse_args(argv)


class Switch:
    """One switch: from what serves to `targets`, without the endpoints `removed`."""

    def __init__(self, targets: list[Generation], removed: list[str], restart: set[str]) -> None:
        self.targets = targets
        self.removed = removed
        names = [*(target.name for target in targets), *removed]
        self.before = {name: show(name) for name in names}
        self.in_force = {name: text for name in names if (text := read(IN_FORCE / unit_of(name))) is not None}
        killed = known(UNDER_WAY)
        # What a killed switch had put on trial already is gone on with.
        begun = {target.name for target in targets if read(ON_TRIAL / unit_of(target.name)) == target.unit_text}
        self.stop = [name for name in names if self.before[name].runs and (name in removed or name in restart - begun)]
        self.changed = [target.name for target in targets if self.in_force.get(target.name) != target.unit_text]
        undisturbed = {name for name in names if self.before[name].runs} - {*self.stop, *killed.get("new", [])}
        ran = {name for name in names if self.before[name].runs} | {*killed.get("old", [])}
        self.new = [name for name in self.changed if name not in undisturbed]
        self.old = [name for name in (*self.changed, *removed) if name in self.in_force and name in ran]
        self.began = time.monotonic()
        # The clock counts from the boot, and the file does not outlive it.
        self.silent_since: float | None = killed.get("silent_since")
        self.downtime: float | None = None

    def run(self) -> int:
        try:
            self.attempt()
        except Failed as failure:
            return self.ended(self.fail(failure))
        except (OSError, subprocess.CalledProcessError) as error:
            name = (self.new or self.stop)[0] if self.new or self.stop else "the host"
            return self.ended(self.fail(Failed(name, f"could not be started: {error}")))
        self.commit()
        forget([(target.name, target.id) for target in self.targets])
        served = ", ".join(f"{target.name} serves {target.recipe}" for target in self.targets)
        print(f"{served or 'nothing serves in their place'}{self.told_downtime()}", flush=True)
        self.write("served")
        return self.ended(0)

    def ended(self, status: int) -> int:
        UNDER_WAY.unlink(missing_ok=True)
        return status

    def attempt(self) -> None:
        """Raises Failed."""
        if self.stop:
            print(f"stopping {', '.join(self.stop)}", flush=True)
            self.silent_since = self.silent_since or time.monotonic()
        begun = {"old": self.old, "new": self.new, "silent_since": self.silent_since}
        place(UNDER_WAY, json.dumps(begun) + "\n")
        stop(self.stop)
        # An earlier switch may have been given up in the middle.
        for path in ON_TRIAL.glob(unit_of("*")):
            if path.name not in map(unit_of, self.changed):
                path.unlink()
        for target in self.targets:
            if target.name in self.changed:
                # A power cut forgets it, and the host boots what is in force.
                place(ON_TRIAL / unit_of(target.name), target.unit_text)
        systemctl("daemon-reload")
        clear([*self.stop, *self.removed])
        start([target.name for target in self.targets], {t.name: t.recipe for t in self.targets})
        wait(self.targets)
        self.note_downtime()
        for target in self.targets:
            prove(target)

    def commit(self) -> None:
        """Put what was tried into force, for good: it is decided in one step, and then carried out, now or later."""
        decided = {"to": {target.name: target.id for target in self.targets}, "removed": self.removed}
        place(DECIDED, json.dumps(decided) + "\n")
        carry_out(self.targets, self.removed)

    def fail(self, failure: Failed) -> int:
        print(f"{failure.name}: {failure.why}", flush=True)
        if not self.old:
            return self.fail_alone(failure)
        print(f"going back to what {', '.join(self.old)} served before", flush=True)
        self.stop_new()
        clear(self.new)
        old = [found for name in self.old if (found := generation_of(self.in_force[name], name)) is not None]
        # One that has served is not to blame, such as for a start on new input.
        served = {(generation.name, generation.id) for generation in old}
        for target in self.targets:
            if target.name == failure.name and (target.name, target.id) not in served:
                remember(failure, target)
        start(self.old, {generation.name: generation.recipe for generation in old})
        try:
            wait(old)
            self.note_downtime()
            for generation in old:
                prove(generation)
        except Failed as worse:
            print(f"{worse.name}: {worse.why}", flush=True)
            self.write("lost", failure, f"{worse.name}, put back, does not serve either: {worse.why}")
            return 4
        told = ", ".join(f"{generation.name} serves {generation.recipe} again" for generation in old)
        print(f"{told}, and is proven{self.told_downtime()}", flush=True)
        self.write("went back", failure)
        return 3

    def fail_alone(self, failure: Failed) -> int:
        """Nothing served before: better one that fails its proof than none, but none that only reads weights."""
        if failure.proof:
            self.commit()
        else:
            self.stop_new()
        self.write("failed", failure)
        return 5

    def stop_new(self) -> None:
        stop(self.new)
        end_trial(self.targets)

    def note_downtime(self) -> None:
        if self.silent_since is not None:
            self.downtime = round(time.monotonic() - self.silent_since, 1)

    def told_downtime(self) -> str:
        return f"; nothing answered for {self.downtime:.0f} s" if self.downtime is not None else ""

    def write(self, result: str, failure: Failed | None = None, worse: str | None = None) -> None:
        last = {
            "result": result,
            "at": now(),
            "to": {target.name: target.id for target in self.targets},
            "recipes": {target.name: target.recipe for target in self.targets},
            "removed": self.removed,
            "downtime_s": self.downtime,
            "seconds": round(time.monotonic() - self.began, 1),
        }
        if failure is not None:
            last |= {
                "endpoint": failure.name,
                "why": failure.why,
                "invocation": failure.invocation,
                "proof": failure.proof,
            }
        if worse is not None:
            last["worse"] = worse
        place(RECORD, json.dumps({**known(RECORD), "last": last}, indent=2) + "\n")


def finish() -> list[Generation]:
    """Do what an earlier switch had decided and did not come to do; returns what is in force by that."""
    decided = known(DECIDED)
    try:
        targets = [Generation.read(name, id) for name, id in decided.get("to", {}).items()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"an interrupted switch cannot be finished, and is forgotten: {error}", file=sys.stderr)
        DECIDED.unlink()
        return []
    if decided:
        print(f"finishing an interrupted switch to {', '.join(target.recipe for target in targets)}", flush=True)
        removed = [name for name in decided["removed"] if (IN_FORCE / unit_of(name)).exists()]
        if removed:
            # At a boot their start waits in the queue, and is withdrawn by this.
            systemctl("stop", "--no-block", "--", *map(unit_of, removed))
        carry_out(targets, removed)
        if targets:
            systemctl("start", "--no-block", "--", *(unit_of(target.name) for target in targets))
    return targets


def carry_out(targets: list[Generation], removed: list[str]) -> None:
    """Have these in force and at boot, and the removed ones not; for as often as it is cut short."""
    if gone := [name for name in removed if (IN_FORCE / unit_of(name)).exists()]:
        systemctl("disable", "--quiet", "--", *map(unit_of, gone))
    for name in gone:
        (IN_FORCE / unit_of(name)).unlink()
    for target in targets:
        if read(IN_FORCE / unit_of(target.name)) != target.unit_text:
            place(IN_FORCE / unit_of(target.name), target.unit_text)
    end_trial(targets)
    if targets:
        systemctl("enable", "--quiet", "--", *(unit_of(target.name) for target in targets))
    for directory in (IN_FORCE, AT_BOOT):
        if directory.exists():
            keep(directory)
    DECIDED.unlink()


def end_trial(targets: list[Generation]) -> None:
    for target in targets:
        (ON_TRIAL / unit_of(target.name)).unlink(missing_ok=True)
    systemctl("daemon-reload")


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


def unit_of(name: str) -> str:
    return f"llm@{name}.service"


def generation_of(unit_text: str, name: str) -> Generation | None:
    """The generation that a unit belongs to; None where its files are gone."""
    found = re.search(r"^Generation=(\w+)$", unit_text, re.MULTILINE)
    try:
        return Generation.read(name, found[1]) if found else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def known(path: Path) -> dict[str, Any]:
    """What a file of ours says; nothing where it is missing or damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(failure: Failed, target: Generation) -> None:
    """Keep that this generation has failed here, so that it is not tried again unasked."""
    record = known(RECORD)
    entry = {"recipe": target.recipe, "at": now(), "why": failure.why}
    record.setdefault("failed", {}).setdefault(target.name, {})[target.id] = entry
    place(RECORD, json.dumps(record, indent=2) + "\n")


def forget(served: list[tuple[str, str]]) -> None:
    """Drop failures of what serves now."""
    record = known(RECORD)
    for name, id in served:
        record.get("failed", {}).get(name, {}).pop(id, None)
    place(RECORD, json.dumps(record, indent=2) + "\n")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def place(path: Path, text: str) -> None:
    """Write beside and rename; on the disk when this returns."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), 0o644)
    os.replace(beside, path)
    keep(path.parent)


def keep(directory: Path) -> None:
    """Have the names in a directory on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
