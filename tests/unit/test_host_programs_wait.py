"""rigup-host wait-ready: an endpoint's unit becomes active when it answers, and fails as soon as it cannot."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest

from rigup.diagnosis.explain import diagnose, fatal_text
from rigup_host import listener, wait_ready
from tests.unit.control_groups import CONTAINER, join, made, shown
from tests.unit.host_world import Page, program, run_program, site

# As if this process were the container's.
RUNNING = f"echo running {os.getpid()}"
GONE = 'echo "Error: No such container: llm-main" >&2; exit 1'


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    program(tmp_path / "bin", "docker", RUNNING)
    shown(tmp_path / "proc", {os.getpid(): CONTAINER})
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
    url: str,
    tools: Path,
    *more: str,
    limit: float = 20,
    time: Time | None = None,
    proc: Path | None = None,
    **env: str,
) -> subprocess.CompletedProcess[str]:
    """Run the program in this process, in its own time."""
    out, err, argv = io.StringIO(), io.StringIO(), [*arguments(url, limit), *more]
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", **env}
    with (
        patch.dict(os.environ, environment),
        patch.object(wait_ready, "time", time or Time()),
        patch.object(listener, "PROC", proc or tools.parent / "proc"),
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


@pytest.mark.parametrize(
    "group",
    ["/system.slice/other.service", "/user.slice/user-1000.slice/session-4.scope", f"{CONTAINER}x", "/system.slice"],
)
def test_answers_of_a_process_outside_of_the_container_are_not_the_endpoints(
    tools: Path, tmp_path: Path, group: str
) -> None:
    """This process answers, and the container is another one of the same user."""
    with (
        site(lambda method, path, body: models("qwen")) as url,
        subprocess.Popen(["sleep", "300"]) as engine,
    ):
        program(tools, "docker", f"echo running {engine.pid}")
        proc = shown(tmp_path / "two", {os.getpid(): group, engine.pid: CONTAINER})
        result = wait(url, tools, f"--listener={tmp_path}/listener", proc=proc)
        engine.kill()

    assert result.returncode == 3
    assert f"what answers at {url} is not a process of this endpoint" in result.stderr
    assert not (tmp_path / "listener").exists()


def test_a_process_in_a_group_below_the_containers_answers_for_it(tools: Path, tmp_path: Path) -> None:
    with (
        site(lambda method, path, body: models("qwen")) as url,
        subprocess.Popen(["sleep", "300"]) as first,
    ):
        program(tools, "docker", f"echo running {first.pid}")
        proc = shown(tmp_path / "two", {os.getpid(): f"{CONTAINER}/engine", first.pid: CONTAINER})
        result = wait(url, tools, proc=proc)
        first.kill()

    assert result.returncode == 0, result.stderr


def test_a_link_of_the_engines_user_in_its_directory_is_not_followed(tools: Path, tmp_path: Path) -> None:
    """Root writes there, and without a container the directory belongs to the engine's user."""
    victim = tmp_path / "victim"
    victim.write_text("root's\n")
    (tmp_path / "engine").mkdir()
    for name in ("listener", ".listener.new"):
        (tmp_path / "engine" / name).symlink_to(victim)
    with site(lambda method, path, body: models("qwen")) as url:
        result = wait(url, tools, f"--listener={tmp_path}/engine/listener")

    assert result.returncode == 0, result.stderr
    assert victim.read_text() == "root's\n"
    assert re.fullmatch(r"\d+ \d+\n", (tmp_path / "engine/listener").read_text())


def test_who_answers_before_the_container_has_a_process_is_not_the_endpoint(tools: Path) -> None:
    """Docker has created it and not started it, and says that its process is 0."""
    program(tools, "docker", "echo created 0")
    with site(lambda method, path, body: models("qwen")) as url:
        assert wait(url, tools).returncode == 3


def test_an_engine_without_a_container_is_known_by_its_unit(tools: Path, tmp_path: Path) -> None:
    unit = "/system.slice/system-llm.slice/llm@main.service"
    proc = shown(tmp_path / "unit", {os.getpid(): unit})
    with site(lambda method, path, body: models("qwen")) as url:
        result = wait(url, tools, "--container=", proc=proc, MAINPID=str(os.getpid()))
        assert result.returncode == 0, result.stderr
        # No main process is known.
        assert wait(url, tools, "--container=", proc=proc).returncode == 3


@pytest.mark.parametrize("lines", ["0::/", "4:memory:/docker/3f0b\n1:name=systemd:/docker/3f0b"], ids=["root", "v1"])
def test_without_control_groups_of_version_2_nothing_is_taken_for_the_engine(
    tools: Path, tmp_path: Path, lines: str
) -> None:
    proc = shown(tmp_path / "old", {os.getpid(): "/"})
    (proc / str(os.getpid()) / "cgroup").write_text(f"{lines}\n")
    time = Time()
    with site(lambda method, path, body: models("qwen")) as url:
        result = wait(url, tools, proc=proc, time=time)

    assert (result.returncode, time.now) == (1, 0)
    assert "no cgroup v2" in result.stderr
    assert "remove systemd.unified_cgroup_hierarchy from the kernel's arguments and reboot" in result.stderr


SERVER = """
import http.server, json, sys
class Engine(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"data": [{"id": "qwen"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Engine)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize("answers", ["engine", "stranger"])
def test_real_control_groups_tell_the_engine_from_a_stranger_of_its_user(
    tools: Path, tmp_path: Path, answers: str
) -> None:
    idle = "import time; print(0, flush=True); time.sleep(600)"
    with made("engine", "stranger") as groups:
        processes = {
            group.name.rpartition("-")[2]: subprocess.Popen(
                [sys.executable, "-c", SERVER if group.name.endswith(answers) else idle],
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=functools.partial(join, group),
            )
            for group in groups
        }
        try:
            ports = [int(process.stdout.readline()) for process in processes.values() if process.stdout]
            program(tools, "docker", f"echo running {processes['engine'].pid}")
            url = f"http://127.0.0.1:{max(ports)}"
            result = wait(url, tools, f"--listener={tmp_path}/listener", proc=Path("/proc"))
        finally:
            for process in processes.values():
                process.kill()
                process.communicate()

    if answers == "engine":
        assert result.returncode == 0, result.stderr
        assert re.fullmatch(rf"{os.geteuid()} \d+\n", (tmp_path / "listener").read_text())
    else:
        assert result.returncode == 3
        assert "is not a process of this endpoint" in result.stderr
        assert not (tmp_path / "listener").exists()


def test_another_model_will_never_become_the_right_one(tools: Path) -> None:
    with site(lambda method, path, body: models("llama")) as url:
        result = wait(url, tools, limit=60)

    assert result.returncode == 1
    assert "it serves llama, not qwen" in result.stderr


def test_a_proxy_in_the_environment_is_not_asked(tools: Path) -> None:
    with site(lambda method, path, body: models("qwen")) as url:
        words = arguments(url, 20)
        env = {"http_proxy": "http://127.0.0.1:1", "RIGUP_ROOT": str(tools.parent)}
        result = run_program("wait-ready", *words, tools=tools, **env)
    assert result.returncode == 0, result.stderr


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
