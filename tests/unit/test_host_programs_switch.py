"""rigup-host switch: interrupted at every step, by a kill or a power cut, and what is in force and serves then."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from rigup.paths import HOST_PROGRAM
from rigup.render.systemd import commit_unit_text
from rigup_host import starts
from rigup_host.switch import units
from rigup_host.switch.state import Generation
from tests.unit.deploys import ActorsTime
from tests.unit.host_world import FILES, program
from tests.unit.waiting import HANG_S

STANDIN = Path(__file__).with_name("standin_systemctl.py")
# One endpoint gives way to another, and one beside it gets another generation.
OLD = {"main": "a1", "side": "a1"}
NEW = {"left": "b2", "side": "b2"}
DECIDED = "var/lib/rigup/commit.json"
ASKED = ("--to=left=b2", "--to=side=b2", "--restart=side", "--remove=main")


class Rig:
    """A host whose root is a directory."""

    def __init__(self, root: Path) -> None:
        self.root, self.running = root, root / "running"
        self.in_force = root / "usr/local/lib/systemd/system"
        self.at_boot = root / "etc/systemd/system/multi-user.target.wants"

    @classmethod
    def copied(cls, root: Path, into: Path) -> Rig:
        shutil.copytree(root, into, symlinks=True)
        return cls(into)

    @classmethod
    def made(cls, root: Path, new_passes: bool) -> Rig:
        """One on which OLD serves, and NEW is prepared."""
        rig = cls(root)
        for directory in (rig.running, rig.in_force, rig.at_boot, root / "tools"):
            directory.mkdir(parents=True)
        for name, generation in [*OLD.items(), *NEW.items()]:
            files = root / f"etc/rigup/endpoints/{name}/{generation}"
            files.mkdir(parents=True)
            (files / "llm.service").write_text(f"[X-Rigup]\nGeneration={generation}\n")
            rig.verifies_with(name, generation, "true" if new_passes or generation == "a1" else "false")
        for name, generation in OLD.items():
            unit = f"llm@{name}.service"
            shutil.copy(root / f"etc/rigup/endpoints/{name}/{generation}/llm.service", rig.in_force / unit)
            (rig.at_boot / unit).symlink_to(f"/usr/local/lib/systemd/system/{unit}")
            (rig.running / unit).write_text(generation)
        systemctl = root / "tools/systemctl"
        systemctl.write_text(f"#!{sys.executable} -IS\n{STANDIN.read_text()}")
        systemctl.chmod(0o755)
        (root / "tools/journalctl").symlink_to("/bin/true")
        return rig

    def verifies_with(self, name: str, generation: str, *argv: str) -> None:
        record = {"recipe": f"recipe-{generation}", "start_seconds": 5, "verify": argv}
        (self.root / f"etc/rigup/endpoints/{name}/{generation}/endpoint.json").write_text(json.dumps(record))

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the switch; `more` is environment."""
        environment = {**os.environ, "PATH": f"{self.root}/tools:{os.environ['PATH']}", "RIGUP_ROOT": str(self.root)}
        argv = [sys.executable, "-IBS", str(STANDIN), str(FILES / "rigup-host"), "switch", *arguments]
        return subprocess.run(argv, env=environment | more, capture_output=True, text=True, timeout=HANG_S)

    def loses_power_and_boots(self) -> None:
        """As systemd does it: what starts at boot is queued, and the unit that finishes a switch comes before it."""
        shutil.rmtree(self.root / "run")
        shutil.rmtree(self.running)
        queue = self.root / "booting"
        queue.mkdir()
        for link in self.at_boot.iterdir():
            if (self.in_force / link.name).exists():
                (queue / link.name).write_text("")
        unit = commit_unit_text()
        (needed,) = re.findall(r"^ConditionPathExists=/(.+)$", unit, re.MULTILINE)
        (words,) = re.findall(rf"^ExecStart={HOST_PROGRAM} switch (.+)$", unit, re.MULTILINE)
        assert needed == DECIDED
        if (self.root / needed).exists():
            done = self.run(*words.split())
            assert done.returncode == 0, done.stderr
        for waiting in queue.iterdir():
            waiting.write_text(generation_of(self.in_force / waiting.name))
        queue.rename(self.running)

    def serves(self) -> dict[str, str]:
        """What runs; it is what is in force and what starts at boot, or the host is between two states."""
        running = {name_of(path): path.read_text() for path in self.running.iterdir()}
        in_force = {name_of(path): generation_of(path) for path in self.in_force.glob("llm@*.service")}
        at_boot = {name_of(path) for path in self.at_boot.iterdir()}
        assert running == in_force
        assert at_boot == set(in_force)
        assert not list((self.root / "run/systemd/system").glob("llm@*"))
        assert not (self.root / DECIDED).exists()
        return running


def generation_of(unit: Path) -> str:
    return unit.read_text().partition("Generation=")[2].strip()


def name_of(unit: Path) -> str:
    return unit.name.removeprefix("llm@").removesuffix(".service")


@pytest.fixture(scope="module", params=[True, False], ids=["passes", "fails"])
def cut(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], bool]:
    """A host for each step of a switch, as a kill at it leaves it; after them the one on which all were done.

    And whether the new generation passes its verification.
    """
    cuts = tmp_path_factory.mktemp("cuts")
    rig = Rig.made(tmp_path_factory.mktemp("whole") / "rig", request.param)
    done = rig.run(*ASKED, RIGUP_CUTS=str(cuts))
    assert done.returncode == (0 if request.param else 3), done.stdout + done.stderr
    found = sorted(cuts.iterdir(), key=lambda path: int(path.name))
    assert len(found) > 15
    return [*found, rig.root], request.param


def test_a_power_cut_at_any_step_boots_what_served_before_or_what_was_proven(
    cut: tuple[list[Path], bool], tmp_path: Path
) -> None:
    hosts, new_passes = cut
    booted = []
    for root in hosts:
        rig = Rig.copied(root, tmp_path / root.name)
        rig.loses_power_and_boots()
        booted.append(rig.serves())

    assert all(state in (OLD, NEW) for state in booted)
    assert (booted[0], booted[-1]) == (OLD, NEW if new_passes else OLD)
    # Once it is decided it stays so.
    changes = sum(before != after for before, after in pairwise(booted))
    assert changes == (1 if new_passes else 0)


def test_a_switch_that_was_killed_at_any_step_is_brought_to_its_end_by_the_next_run(
    cut: tuple[list[Path], bool], tmp_path: Path
) -> None:
    hosts, new_passes = cut
    for root in hosts[:-1]:
        rig = Rig.copied(root, tmp_path / root.name)
        decided = (rig.root / DECIDED).exists()
        done = rig.run(*ASKED)
        assert done.returncode == (0 if new_passes else 3), done.stdout + done.stderr
        assert rig.serves() == (NEW if new_passes else OLD)
        # What was put into force by it was started for it.
        assert not (decided and "stopping" in done.stdout)


def test_a_run_that_wants_the_old_again_finishes_what_was_decided_and_goes_back(
    cut: tuple[list[Path], bool], tmp_path: Path
) -> None:
    hosts, _ = cut
    for root in hosts[:-1]:
        if (root / DECIDED).exists():
            rig = Rig.copied(root, tmp_path / root.name)
            done = rig.run("--to=main=a1", "--to=side=a1", "--restart=side", "--remove=left")
            assert done.returncode == 0, done.stdout + done.stderr
            assert rig.serves() == OLD


def record_of(rig: Rig) -> dict[str, Any]:
    return dict(json.loads((rig.root / "var/lib/rigup/switch.json").read_text()))


def test_what_failed_is_known_afterwards_also_where_what_served_before_is_lost_with_it(tmp_path: Path) -> None:
    rig = Rig.made(tmp_path / "rig", new_passes=False)
    rig.verifies_with("main", "a1", "false")

    assert rig.run(*ASKED).returncode == 4

    record = record_of(rig)
    assert record["last"]["result"] == "lost"
    assert record["last"]["worse"].startswith("main does not serve after the rollback either: ")
    assert record["failed"]["left"]["b2"]["why"].startswith("came up but failed its verification")


def test_what_has_served_is_not_blamed_where_a_start_on_new_input_fails(tmp_path: Path) -> None:
    rig = Rig.made(tmp_path / "rig", new_passes=True)
    # The generation is the same, and its unit has another text, such as another limit.
    with (rig.in_force / "llm@main.service").open("a") as unit:
        unit.write("# as it was\n")
    second = "import os, sys; known = os.path.exists(sys.argv[1]); open(sys.argv[1], 'w'); sys.exit(not known)"
    rig.verifies_with("main", "a1", sys.executable, "-c", second, str(tmp_path / "known"))

    done = rig.run("--to=main=a1", "--restart=main")

    assert done.returncode == 3, done.stdout + done.stderr
    last = record_of(rig)["last"]
    assert last["result"] == "rolled back"
    # What served was stopped, and for some time nothing answered.
    assert last["downtime_s"] is not None and "worse" not in last
    assert f"serves recipe-a1 again, verified; nothing answered for {last['downtime_s']:.0f} s\n" in done.stdout
    assert record_of(rig)["failed"] == {}


def test_a_switch_that_comes_to_nothing_leaves_no_word_of_an_earlier_one(tmp_path: Path) -> None:
    rig = Rig.made(tmp_path / "rig", new_passes=False)
    assert rig.run(*ASKED).returncode == 3

    done = rig.run("--to=left=c3")

    assert (done.returncode, rig.serves()) == (1, OLD)
    assert "last" not in record_of(rig)
    assert record_of(rig)["failed"].keys() == {"left"}


def test_a_decision_whose_files_are_gone_is_forgotten_and_said(tmp_path: Path) -> None:
    rig = Rig.made(tmp_path / "rig", new_passes=True)
    decided = rig.root / DECIDED
    decided.parent.mkdir(parents=True)
    decided.write_text(json.dumps({"to": {"left": "c3"}, "removed": ["main"]}))

    done = rig.run("--finish")

    assert done.returncode == 0
    assert "cannot be finished and is discarded" in done.stderr
    assert rig.serves() == OLD


def test_a_start_is_told_with_what_the_last_one_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "ActiveState={}\\nSubState=x\\nResult=success\\nInvocationID=1\\nJob=0\\n"
    program(tmp_path, "systemctl",
            f'[ "$(wc -l <"$0.calls")" -gt 45 ] && printf "{said.format("active")}" || '
            f'printf "{said.format("activating")}"')  # fmt: skip
    program(tmp_path, "journalctl",
            'case "$*" in *--grep*) echo "ready after 312 s: qwen at http://x";; *) echo loading;; esac')  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(starts, "LOOK_S", HANG_S)
    monkeypatch.setattr(units, "time", ActorsTime())
    units.wait([Generation("main", "a1", "recipe", 600, [])])
    assert capsys.readouterr().out.splitlines() == [
        "main: starting, 10 s of about 312 s; loading",
        "main: starting, 20 s of about 312 s; loading",
    ]


def test_a_switch_that_cannot_note_that_it_is_under_way_changes_nothing(tmp_path: Path) -> None:
    """As on a full disk."""
    rig = Rig.made(tmp_path / "rig", new_passes=True)
    (rig.root / "run/rigup/.switch.json.new/x").mkdir(parents=True)

    done = rig.run(*ASKED)

    assert (done.returncode, rig.serves()) == (3, OLD)
    assert "could not be started: " in done.stdout and "Traceback" not in done.stderr


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for what a switch runs, first on the path of this process."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    program(tmp_path / "bin", "journalctl", "true")
    return tmp_path / "bin"


@pytest.mark.parametrize(
    ("active", "sub", "runs"),
    [
        ("active", "running", True),
        ("reloading", "reload", True),
        ("activating", "start-post", True),
        ("activating", "auto-restart", False),
        ("activating", "auto-restart-queued", False),
        ("deactivating", "stop-sigterm", False),
        ("failed", "failed", False),
        ("inactive", "dead", False),
    ],
)
def test_a_unit_that_waits_for_its_next_try_does_not_run(active: str, sub: str, runs: bool) -> None:
    assert units.State(active, sub, "", "", job=False).runs is runs


def test_of_a_start_that_failed_the_last_word_of_its_readiness_check_is_told(tools: Path) -> None:
    said = "not ready after 1 s: said by the engine\nnot ready after 9 s: it has ended\nTraceback of a worker"
    program(tools, "journalctl", f"echo '{said}'")
    failure = units.not_up("main", units.State("failed", "failed", "exit-code", "abc", job=False))
    assert (failure.why, failure.invocation) == ("did not come up: not ready after 9 s: it has ended", "abc")
    program(tools, "journalctl", "true")
    failure = units.not_up("main", units.State("failed", "failed", "exit-code", "abc", job=False))
    assert failure.why == "did not come up: failed (failed, exit-code)"


class Time:
    """Passes only where the switch sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_start_says_every_ten_seconds_how_long_it_takes_and_has_a_limit(
    tools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Generation("main", "a1", "recipe", 20, ("true",))
    program(tools, "journalctl", "echo Loading weights")
    program(tools, "systemctl", "echo ActiveState=activating; echo SubState=start-post; echo InvocationID=abc")
    time = Time()
    with patch.object(units, "time", time), pytest.raises(units.Failed, match="was not ready within 140 s") as error:
        units.wait([target])
    assert (time.now, error.value.invocation) == (1140.5, "abc")
    said = capsys.readouterr().out.splitlines()
    assert said == [f"main: starting, {seconds} s; Loading weights" for seconds in range(10, 150, 10)]

    # One that is active, while a stop is queued, does not serve yet.
    active = "echo ActiveState=active; echo SubState=running; echo InvocationID=abc; echo Job="
    queued = f"test $(wc -l < {tools}/systemctl.calls) -lt 4 && {{ {active}7; exit; }}; {active}0"
    (tools / "systemctl.calls").unlink()
    program(tools, "systemctl", queued)
    with patch.object(units, "time", time):
        began = time.now
        units.wait([target])
    assert time.now - began == 1.5


@pytest.mark.parametrize(
    ("active", "sub"), [("failed", "failed"), ("inactive", "dead"), ("activating", "auto-restart")]
)
def test_a_start_that_has_failed_is_not_waited_for(tools: Path, active: str, sub: str) -> None:
    program(tools, "systemctl", f"echo ActiveState={active}; echo SubState={sub}; echo Result=exit-code")
    time = Time()
    with patch.object(units, "time", time), pytest.raises(units.Failed, match=re.escape(f"did not come up: {active}")):
        units.wait([Generation("main", "a1", "recipe", 20, ("true",))])
    assert time.now == 1000.0


def test_a_start_begins_with_a_new_count_of_starts(tools: Path) -> None:
    program(tools, "systemctl", "true")
    units.start([], {})
    units.clear([])
    assert not (tools / "systemctl.calls").exists()
    units.start(["left", "side"], {"left": "recipe-b2", "side": "recipe-b2"})
    assert (tools / "systemctl.calls").read_text().splitlines() == [
        "reset-failed -- llm@left.service llm@side.service",
        "start --no-block -- llm@left.service llm@side.service",
    ]


def test_where_nothing_served_before_what_came_up_is_kept_although_it_failed(tmp_path: Path) -> None:
    rig = Rig.made(tmp_path / "rig", new_passes=False)
    for name in OLD:
        for directory in (rig.running, rig.in_force, rig.at_boot):
            (directory / f"llm@{name}.service").unlink()

    done = rig.run("--to=left=b2")

    assert (done.returncode, rig.serves()) == (5, {"left": "b2"})
    last = record_of(rig)["last"]
    assert (last["result"], last["came_up"], last["downtime_s"]) == ("failed", True, None)
