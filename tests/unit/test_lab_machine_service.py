"""The lab's background processes: started once, identified by id and start time, stopped reliably."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import service
from lab.errors import LabError
from tests.unit.waiting import until


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(service, "STATE", tmp_path)
    yield tmp_path
    for path in (tmp_path / "run").glob("*.json"):
        service.stop(path.stem, timeout=1)


def record(name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(service.pid_file(name).read_text())
    return found


def test_a_started_service_runs_and_is_found_again() -> None:
    started = service.start("sleeper", ["sleep", "600"], url="http://somewhere")
    assert service.running("sleeper") == started
    assert started.url == "http://somewhere"


def test_starting_twice_gives_the_same_process() -> None:
    assert service.start("sleeper", ["sleep", "600"]) == service.start("sleeper", ["sleep", "600"])


def test_a_stopped_service_is_gone_and_stopping_again_is_nothing() -> None:
    pid = service.start("sleeper", ["sleep", "600"]).pid
    assert service.stop("sleeper")
    assert service.start_time(pid) is None
    assert service.running("sleeper") is None
    assert not service.stop("sleeper")


def test_children_of_the_service_are_stopped_with_it() -> None:
    program = (
        "import subprocess; child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); child.wait()"
    )
    log = service.start("parent", [sys.executable, "-c", program]).log
    until(lambda: log.read_text().endswith("\n"))
    child = int(log.read_text())
    service.stop("parent")
    until(lambda: service.start_time(child) is None)


def test_a_service_that_ignores_sigterm_is_killed() -> None:
    program = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    started = service.start("stubborn", [sys.executable, "-c", program])
    until(lambda: "up" in service.tail("stubborn"))
    assert service.stop("stubborn", timeout=0.3)
    assert service.start_time(started.pid) is None


@pytest.mark.parametrize("stale", [{"start_time": 1}, {"boot_id": "another boot of this machine"}])
def test_a_stranger_with_a_recycled_number_is_left_alone(stale: dict[str, object]) -> None:
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        service.start("sleeper", ["sleep", "600"])
        mine = record("sleeper")
        service.pid_file("sleeper").write_text(
            json.dumps({**mine, "pid": stranger.pid, "start_time": service.start_time(stranger.pid), **stale})
        )
        assert service.running("sleeper") is None
        assert not service.stop("sleeper")
        assert stranger.poll() is None
        service.pid_file("sleeper").write_text(json.dumps(mine))
    finally:
        stranger.kill()
        stranger.wait()


def test_a_damaged_record_counts_as_not_running() -> None:
    service.pid_file("x").parent.mkdir(parents=True)
    service.pid_file("x").write_text("{")
    assert service.running("x") is None


def test_a_program_that_exits_early_is_an_error_with_the_end_of_its_log() -> None:
    with pytest.raises(LabError, match=r"early exited with status 3 before it was ready.*\nno such port"):
        service.start("early", ["sh", "-c", "echo no such port; exit 3"], ready=lambda: False)
    assert service.running("early") is None


def test_a_program_that_never_gets_ready_is_stopped() -> None:
    with pytest.raises(LabError, match=r"slow was not ready after 0 s"):
        service.start("slow", ["sleep", "600"], ready=lambda: False, timeout=0.2)
    assert service.running("slow") is None


def test_a_refused_connection_means_not_ready_yet() -> None:
    answers = iter([ConnectionRefusedError(), False, True])

    def ready() -> object:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert service.start("sleeper", ["sleep", "600"], ready=ready).pid
    assert list(answers) == []


def test_the_environment_is_added_to(state: Path) -> None:
    service.start("env", ["sh", "-c", "echo $COLOR; sleep 600"], {"COLOR": "red"})
    until(lambda: service.tail("env") == "red")
    assert service.log_file("env") == state / "log/env.log"
