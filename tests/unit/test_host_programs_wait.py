"""rigup-host wait-ready: an endpoint's unit becomes active when it answers, and fails as soon as it cannot."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest

from rigup.diagnosis.explain import diagnose, fatal_text
from rigup_host import wait_ready
from tests.unit.host_world import Page, program, run_program, site

# As if the container ran as the user of the test.
RUNNING = "echo running $PPID"
GONE = 'echo "Error: No such container: llm-main" >&2; exit 1'


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    program(tmp_path / "bin", "docker", RUNNING)
    return tmp_path / "bin"


def models(*names: str) -> Page:
    return Page(json.dumps({"object": "list", "data": [{"id": name} for name in names]}).encode())


class Time:
    """The program's: it passes only where the program sleeps, and then something may happen besides."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.now, self._meanwhile = 0.0, meanwhile

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._meanwhile()


def arguments(url: str, limit: float) -> list[str]:
    return [f"--url={url}", "--health=/health", "--model=qwen", "--container=llm-main", f"--timeout={limit}"]


def wait(
    url: str, tools: Path, *more: str, limit: float = 20, time: Time | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the program in this process, in its own time."""
    out, err, argv = io.StringIO(), io.StringIO(), [*arguments(url, limit), *more]
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", **env}
    with (
        patch.dict(os.environ, environment),
        patch.object(wait_ready, "time", time or Time()),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        status = wait_ready.main(argv)
    return subprocess.CompletedProcess(argv, status, out.getvalue(), err.getvalue())


def test_it_waits_until_the_model_is_listed(tools: Path) -> None:
    time = Time()

    def answers(method: str, path: str, body: bytes) -> Page:
        if path == "/health":
            return Page(status=200 if time.now > 1 else 503)
        return models("qwen") if time.now > 2 else models()

    with site(answers) as url:
        result = wait(url, tools, time=time)

    assert result.returncode == 0, result.stderr
    assert "qwen" in result.stdout
    assert 2 < time.now < 20


def test_a_port_that_nobody_listens_on_yet_is_waited_for_until_the_time_is_up(tools: Path) -> None:
    result = wait("http://127.0.0.1:1", tools, limit=1.5)

    assert result.returncode == 3
    assert "the time limit" in result.stderr
    assert "refused" in result.stderr


def test_a_container_that_has_ended_is_noticed_at_once(tools: Path) -> None:
    # It is there for the first look and gone at the second.
    program(tools, "docker", f"test -e {tools}/seen && {{ {GONE}; }}; touch {tools}/seen; {RUNNING}")

    result = wait("http://127.0.0.1:1", tools, limit=60)

    assert result.returncode == 1
    assert "llm-main has ended" in result.stderr


def test_an_exited_container_that_was_never_seen_running_is_an_end_too(tools: Path) -> None:
    program(tools, "docker", "echo exited")

    assert wait("http://127.0.0.1:1", tools, limit=60).returncode == 1


def test_the_end_of_the_main_process_is_noticed_without_docker(tools: Path) -> None:
    client = subprocess.Popen(["sleep", "600"])

    def end() -> None:
        """Kill the process. It stays a zombie until it is reaped, which does not count as running."""
        client.kill()
        os.waitid(os.P_PID, client.pid, os.WEXITED | os.WNOWAIT)

    time = Time(end)
    result = wait("http://127.0.0.1:1", tools, limit=60, time=time, MAINPID=str(client.pid))
    client.wait()

    assert result.returncode == 1
    assert "main process has ended" in result.stderr
    assert 0 < time.now < 10


def test_a_container_that_has_not_appeared_yet_is_waited_for(tools: Path) -> None:
    program(tools, "docker", f"test -e {tools}/seen && {{ {RUNNING}; exit; }}; touch {tools}/seen; {GONE}")

    with site(lambda method, path, body: models("qwen")) as url:
        result = wait(url, tools)

    assert result.returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a process of another user")
def test_answers_of_another_users_process_are_not_the_endpoints(tools: Path) -> None:
    with (
        site(lambda method, path, body: models("qwen")) as url,
        subprocess.Popen(["sleep", "300"], user=65534) as other,
    ):
        program(tools, "docker", f"echo running {other.pid}")
        result = wait(url, tools)
        other.kill()

    assert result.returncode == 3
    assert "another user's process answers" in result.stderr


def test_another_model_will_never_become_the_right_one(tools: Path) -> None:
    with site(lambda method, path, body: models("llama")) as url:
        result = wait(url, tools, limit=60)

    assert result.returncode == 1
    assert "it serves llama, not qwen" in result.stderr


def test_a_proxy_in_the_environment_is_not_asked(tools: Path) -> None:
    with site(lambda method, path, body: models("qwen")) as url:
        words = arguments(url, 20)
        assert run_program("wait-ready", *words, tools=tools, http_proxy="http://127.0.0.1:1").returncode == 0


def journal(tools: Path, *lines: str) -> None:
    """What the engine has said, at once; nothing new comes."""
    (tools / "said").write_text("".join(f"{line}\n" for line in lines))
    script = f'case "$*" in *after-cursor*) ;; *) cat {tools}/said; echo "-- cursor: s=1";; esac'
    program(tools, "journalctl", script)


def gpus(tools: Path, used: str, busy: int = 0) -> None:
    """Two GPUs; `used` is a shell word for their MiB."""
    rows = "".join(f"echo {at}, GPU-{at}, {used}, {busy};" for at in (0, 1))
    program(tools, "nvidia-smi", rows)


def test_a_line_after_which_nothing_can_become_ready_ends_the_wait(tools: Path, tmp_path: Path) -> None:
    journal(tools, "usage: vllm", "vllm: error: unrecognized arguments: --no-such")
    gpus(tools, "1")
    fatal = tmp_path / "fatal.json"
    fatal.write_text(fatal_text())

    result = wait("http://127.0.0.1:1", tools, f"--fatal={fatal}", limit=60, INVOCATION_ID="abc")

    assert result.returncode == 1
    assert "(argument-unknown); the log says: vllm: error: unrecognized arguments: --no-such" in result.stderr
    asked = (tools / "journalctl.calls").read_text().splitlines()
    assert all("_SYSTEMD_INVOCATION_ID=abc SYSLOG_IDENTIFIER=docker" in call for call in asked)
    assert "--after-cursor=s=1" in asked[-1]


def test_a_start_without_a_sign_of_progress_has_stalled_and_its_last_line_tells_why(tools: Path) -> None:
    journal(tools, "INFO pynccl.py:111] vLLM is using nccl==2.28.9")
    gpus(tools, "842", busy=100)

    result = wait("http://127.0.0.1:1", tools, "--stall=2", limit=60, INVOCATION_ID="abc")

    assert result.returncode == 1
    assert "the start has stalled: " in result.stderr
    assert [cause.fingerprint.id for cause in diagnose(result.stderr.splitlines()).causes] == ["nccl-deadlock"]


def test_gpus_that_fill_are_progress_and_those_of_others_are_not(tools: Path) -> None:
    journal(tools, "Loading")
    gpus(tools, f"$(wc -l < {tools}/nvidia-smi.calls)")

    assert wait("http://127.0.0.1:1", tools, "--stall=2", limit=6, INVOCATION_ID="abc").returncode == 3
    ours = wait("http://127.0.0.1:1", tools, "--stall=2", "--gpus=5,GPU-6", limit=30, INVOCATION_ID="abc")
    assert ours.returncode == 1, ours.stderr
