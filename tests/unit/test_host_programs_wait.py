"""wait_ready.py: an endpoint's unit becomes active when it answers, and fails at once when it cannot any more."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.unit.host_world import Page, program, run_program, site

RUNNING = "echo running"
GONE = 'echo "Error: No such container: llm-main" >&2; exit 1'


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    program(tmp_path / "bin", "docker", RUNNING)
    return tmp_path / "bin"


def models(*names: str) -> Page:
    return Page(json.dumps({"object": "list", "data": [{"id": name} for name in names]}).encode())


def wait(url: str, tools: Path, limit: float = 20, stall: float = 600, **env: str) -> subprocess.CompletedProcess[str]:
    arguments = [f"--url={url}", "--health=/health", "--model=qwen", "--container=llm-main", f"--timeout={limit}"]
    arguments += [f"--stall={stall}"]
    return run_program("wait_ready.py", *arguments, tools=tools, **env)


def test_it_waits_until_the_model_is_listed(tools: Path) -> None:
    began = time.monotonic()

    def answers(method: str, path: str, body: bytes) -> Page:
        up = time.monotonic() - began
        if path == "/health":
            return Page(status=200 if up > 1 else 503)
        return models("qwen") if up > 2 else models()

    with site(answers) as url:
        result = wait(url, tools)

    assert result.returncode == 0, result.stderr
    assert "qwen" in result.stdout
    assert time.monotonic() - began >= 2


def test_a_port_that_nobody_listens_on_yet_is_waited_for_until_the_time_is_up(tools: Path) -> None:
    result = wait("http://127.0.0.1:1", tools, limit=1.5)

    assert result.returncode == 3
    assert "the limit" in result.stderr
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
    threading.Timer(1.5, client.kill).start()
    began = time.monotonic()

    # The killed process stays a zombie until it is waited for: that is no running process either.
    result = wait("http://127.0.0.1:1", tools, limit=60, MAINPID=str(client.pid))
    client.wait()

    assert result.returncode == 1
    assert "main process has ended" in result.stderr
    assert time.monotonic() - began < 10


def test_a_container_that_has_not_appeared_yet_is_waited_for(tools: Path) -> None:
    program(tools, "docker", f"test -e {tools}/seen && {{ {RUNNING}; exit; }}; touch {tools}/seen; {GONE}")

    with site(lambda method, path, body: models("qwen")) as url:
        result = wait(url, tools)

    assert result.returncode == 0


def test_another_model_will_never_become_the_right_one(tools: Path) -> None:
    with site(lambda method, path, body: models("llama")) as url:
        result = wait(url, tools, limit=60)

    assert result.returncode == 1
    assert "it serves llama, not qwen" in result.stderr


def test_a_proxy_in_the_environment_is_not_asked(tools: Path) -> None:
    with site(lambda method, path, body: models("qwen")) as url:
        assert wait(url, tools, http_proxy="http://127.0.0.1:1").returncode == 0


def stalling(tools: Path, line: str, memory: str) -> subprocess.CompletedProcess[str]:
    """A wait for a process that logs as `line` prints, on GPUs that hold what `memory` prints."""
    program(tools, "journalctl", line)
    program(tools, "nvidia-smi", memory)
    client = subprocess.Popen(["sleep", "600"])
    try:
        return wait("http://127.0.0.1:1", tools, limit=22, stall=8, MAINPID=str(client.pid))
    finally:
        client.kill()
        client.wait()


SILENT = "echo 'vLLM is using nccl==2.28.3'; echo '-- cursor: s=1'"


def test_a_start_that_neither_logs_nor_fills_memory_has_stalled(tools: Path) -> None:
    result = stalling(tools, SILENT, "printf '90000\\n90010\\n'")

    assert result.returncode == 1
    assert "it has stalled" in result.stderr
    assert "(180010 MiB)" in result.stderr
    assert "its last line: vLLM is using nccl==2.28.3" in result.stderr


@pytest.mark.parametrize(
    ("line", "memory"),
    [
        ('echo line; echo "-- cursor: $(date +%N)"', "echo 90000"),
        (SILENT, "date +%s | tail -c 6 | while read n; do echo $((${n#0} * 100)); done"),
    ],
    ids=["it logs", "memory fills"],
)
def test_a_start_that_gets_on_has_not_stalled(tools: Path, line: str, memory: str) -> None:
    assert stalling(tools, line, memory).returncode == 3
