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
import subprocess
import sys
import time

from switch_record import (
    NOT_WHOLE,
    ROOT,
    Generation,
    drop_last,
    forget,
    generation_of,
    keep,
    keep_last,
    known,
    now,
    place,
    read,
    remember,
    unit_of,
)
from switch_units import Failed, clear, prove, show, start, stop, systemctl, wait

IN_FORCE = ROOT / "usr/local/lib/systemd/system"
ON_TRIAL = ROOT / "run/systemd/system"
# Where `systemctl enable` puts its links.
AT_BOOT = ROOT / "etc/systemd/system/multi-user.target.wants"
DECIDED = ROOT / "var/lib/rigup/commit.json"
LOCK = ROOT / "run/rigup/switch.lock"
UNDER_WAY = ROOT / "run/rigup/switch.json"


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = finish()
        if options.finish:
            return 0
        drop_last()
        try:
            targets = [Generation.read(*word.split("=", 1)) for word in options.to]
        except NOT_WHOLE as error:
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
        forget(self.targets)
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
                remember(target, failure.why)
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
        keep_last(last)


def finish() -> list[Generation]:
    """Do what an earlier switch had decided and did not come to do; returns what is in force by that."""
    decided = known(DECIDED)
    try:
        targets = [Generation.read(name, id) for name, id in decided.get("to", {}).items()]
    except NOT_WHOLE as error:
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


if __name__ == "__main__":
    sys.exit(main())
