"""Switch endpoints to another generation, and back to the one before if the new one does not serve.

`switch --to NAME=GENERATION --remove NAME --restart NAME`, each as often as needed. All named endpoints are switched
together: either all of them serve and pass their verification, or all of them are as before. `switch --finish` only
completes what an interrupted switch had decided.

The files of a generation, its unit included, are in a directory of their own. The unit in force is in
/usr/local/lib/systemd/system. A unit on trial is in /run/systemd/system, which systemd prefers and a boot empties.
After all targets have passed, one file records the decision (/var/lib/rigup/commit.json), and then the units are put in
force one by one. If a power cut interrupts that, rigup-commit.service completes it at the next boot. If a switch is
killed, the next one continues it.

The result of the last switch, and the failures so far, are in /var/lib/rigup/switch.json.

Exit status: 0 all targets serve, 1 not possible (the next run continues), 3 rolled back and serving, 4 rolled back and
not serving either, 5 failed with nothing to roll back to.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import subprocess
import sys
import time

from rigup_host import files, paths
from rigup_host.switch.drain import drain, put_back
from rigup_host.switch.state import (
    INCOMPLETE,
    Generation,
    drop_last,
    forget,
    generation_of,
    keep_last,
    load,
    read,
    remember,
    unit_of,
)
from rigup_host.switch.units import Failed, clear, show, start, stop, verify, wait
from rigup_host.systemd import systemctl


def main(argv: list[str]) -> int:
    """Switch, or finish an interrupted switch; return the exit status."""
    options = parse(argv)
    paths.SWITCH_LOCK.parent.mkdir(parents=True, exist_ok=True)
    with paths.SWITCH_LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = finish()
        if options.finish:
            return 0
        drop_last()
        try:
            targets = [Generation.read(*word.split("=", 1)) for word in options.to]
        except INCOMPLETE as error:
            print(f"nothing was changed: the files of a generation are incomplete: {error}", file=sys.stderr)
            return 1
        # `finish` has just started these.
        fresh = {target.name for target in targets if target in done}
        return Switch(targets, options.remove, set(options.restart) - fresh).run()


def parse(argv: list[str]) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(prog="rigup-host switch", description="Switch endpoints to other generations.")
    parser.add_argument(
        "--to", action="append", default=[], metavar="NAME=GENERATION", help="an endpoint and its new generation"
    )
    parser.add_argument("--remove", action="append", default=[], metavar="NAME", help="an endpoint to remove")
    parser.add_argument(
        "--restart",
        action="append",
        default=[],
        metavar="NAME",
        help="an endpoint to restart because its process read old input",
    )
    parser.add_argument("--finish", action="store_true", help="only complete what an interrupted switch had decided")
    return parser.parse_args(argv)


class Switch:
    """One switch: from what serves now to `targets`, without the endpoints `removed`."""

    def __init__(self, targets: list[Generation], removed: list[str], restart: set[str]) -> None:
        self.targets = targets
        self.removed = removed
        names = [*(target.name for target in targets), *removed]
        self.before = {name: show(name) for name in names}
        self.in_force = {name: text for name in names if (text := read(paths.UNITS / unit_of(name))) is not None}
        killed = load(paths.SWITCH_UNDER_WAY)
        # What a killed switch had already put on trial continues.
        begun = {
            target.name for target in targets if read(paths.TRIAL_UNITS / unit_of(target.name)) == target.unit_text
        }
        self.stop = [name for name in names if self.before[name].runs and (name in removed or name in restart - begun)]
        self.changed = [target.name for target in targets if self.in_force.get(target.name) != target.unit_text]
        undisturbed = {name for name in names if self.before[name].runs} - {*self.stop, *killed.get("new", [])}
        ran = {name for name in names if self.before[name].runs} | {*killed.get("old", [])}
        self.new = [name for name in self.changed if name not in undisturbed]
        self.old = [name for name in (*self.changed, *removed) if name in self.in_force and name in ran]
        self.began = time.monotonic()
        # The monotonic clock starts at boot, and a boot removes the file.
        self.silent_since: float | None = killed.get("silent_since")
        self.downtime: float | None = None

    def run(self) -> int:
        """Switch, or roll back; return the exit status."""
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
        print(f"{served or 'the removed endpoints have no successor'}{self.downtime_text()}", flush=True)
        self.write("served")
        return self.ended(0)

    def ended(self, status: int) -> int:
        """Forget that the switch is under way, and take requests again; return the status."""
        put_back()
        paths.SWITCH_UNDER_WAY.unlink(missing_ok=True)
        return status

    def attempt(self) -> None:
        """Stop, put on trial, start and verify. Raise Failed for the first endpoint that does not serve."""
        if self.stop:
            drain(self.stop)
            print(f"stopping {', '.join(self.stop)}", flush=True)
            self.silent_since = self.silent_since or time.monotonic()
        begun = {"old": self.old, "new": self.new, "silent_since": self.silent_since}
        files.write(paths.SWITCH_UNDER_WAY, json.dumps(begun) + "\n", durable=True)
        stop(self.stop)
        # Of a switch that was abandoned halfway.
        for path in paths.TRIAL_UNITS.glob(unit_of("*")):
            if path.name not in map(unit_of, self.changed):
                path.unlink()
        for target in self.targets:
            if target.name in self.changed:
                # After a power cut this is gone, and the host boots what is in force.
                files.write(paths.TRIAL_UNITS / unit_of(target.name), target.unit_text, durable=True)
        systemctl("daemon-reload")
        clear([*self.stop, *self.removed])
        start([target.name for target in self.targets], {t.name: t.recipe for t in self.targets})
        wait(self.targets)
        self.note_downtime()
        for target in self.targets:
            verify(target)

    def commit(self) -> None:
        """Put what was tried in force: decided in one step, then carried out, at the latest by the next boot."""
        decided = {"to": {target.name: target.id for target in self.targets}, "removed": self.removed}
        files.write(paths.COMMIT, json.dumps(decided) + "\n", durable=True)
        carry_out(self.targets, self.removed)

    def fail(self, failure: Failed) -> int:
        """Roll back to what served before; return the exit status."""
        print(f"{failure.name}: {failure.why}", flush=True)
        if not self.old:
            return self.fail_alone(failure)
        print(f"rolling back {', '.join(self.old)}", flush=True)
        self.stop_new()
        clear(self.new)
        old = [found for name in self.old if (found := generation_of(self.in_force[name], name)) is not None]
        # A generation that has served before is not remembered as failed: the cause may be new input.
        served = {(generation.name, generation.id) for generation in old}
        for target in self.targets:
            if target.name == failure.name and (target.name, target.id) not in served:
                remember(target, failure.why)
        start(self.old, {generation.name: generation.recipe for generation in old})
        try:
            wait(old)
            self.note_downtime()
            for generation in old:
                verify(generation)
        except Failed as worse:
            print(f"{worse.name}: {worse.why}", flush=True)
            self.write("lost", failure, f"{worse.name} does not serve after the rollback either: {worse.why}")
            return 4
        served_again = ", ".join(f"{generation.name} serves {generation.recipe} again" for generation in old)
        print(f"{served_again}, verified{self.downtime_text()}", flush=True)
        self.write("rolled back", failure)
        return 3

    def fail_alone(self, failure: Failed) -> int:
        """End a switch with nothing to roll back to; return the exit status.

        An endpoint that came up but failed its verification is better than none and is kept. One that does not come up
        is stopped, as it would only load its weights again and again.
        """
        if failure.came_up:
            self.commit()
        else:
            self.stop_new()
        self.write("failed", failure)
        return 5

    def stop_new(self) -> None:
        """Stop the new generations and remove their units."""
        stop(self.new)
        end_trial(self.targets)

    def note_downtime(self) -> None:
        """Record for how many seconds nothing has answered, if anything was stopped."""
        if self.silent_since is not None:
            self.downtime = round(time.monotonic() - self.silent_since, 1)

    def downtime_text(self) -> str:
        """Return the downtime for the end of a line."""
        return f"; nothing answered for {self.downtime:.0f} s" if self.downtime is not None else ""

    def write(self, result: str, failure: Failed | None = None, worse: str | None = None) -> None:
        """Write the result of this switch: `served`, `rolled back`, `lost` (`worse` says why) or `failed`."""
        last = {
            "result": result,
            "at": files.now(),
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
                "came_up": failure.came_up,
            }
        if worse is not None:
            last["worse"] = worse
        keep_last(last)


def finish() -> list[Generation]:
    """Complete what an interrupted switch had decided; return the generations that it put in force."""
    decided = load(paths.COMMIT)
    try:
        targets = [Generation.read(name, id) for name, id in decided.get("to", {}).items()]
    except INCOMPLETE as error:
        print(f"an interrupted switch cannot be finished and is discarded: {error}", file=sys.stderr)
        paths.COMMIT.unlink()
        return []
    if decided:
        print(f"finishing an interrupted switch to {', '.join(target.recipe for target in targets)}", flush=True)
        removed = [name for name in decided["removed"] if (paths.UNITS / unit_of(name)).exists()]
        if removed:
            # At boot their start is queued; this cancels it.
            systemctl("stop", "--no-block", "--", *map(unit_of, removed))
        carry_out(targets, removed)
        if targets:
            systemctl("start", "--no-block", "--", *(unit_of(target.name) for target in targets))
    return targets


def carry_out(targets: list[Generation], removed: list[str]) -> None:
    """Put these in force and enable them, and remove the others. An interrupted run can be repeated."""
    if gone := [name for name in removed if (paths.UNITS / unit_of(name)).exists()]:
        systemctl("disable", "--quiet", "--", *map(unit_of, gone))
    for name in gone:
        (paths.UNITS / unit_of(name)).unlink()
    for target in targets:
        if read(paths.UNITS / unit_of(target.name)) != target.unit_text:
            files.write(paths.UNITS / unit_of(target.name), target.unit_text, durable=True)
    end_trial(targets)
    if targets:
        systemctl("enable", "--quiet", "--", *(unit_of(target.name) for target in targets))
    for directory in (paths.UNITS, paths.BOOT_UNITS):
        if directory.exists():
            files.sync_directory(directory)
    paths.COMMIT.unlink()


def end_trial(targets: list[Generation]) -> None:
    """Remove the units on trial."""
    for target in targets:
        (paths.TRIAL_UNITS / unit_of(target.name)).unlink(missing_ok=True)
    systemctl("daemon-reload")
