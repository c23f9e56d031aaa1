"""rigup bench: an endpoint is measured on its host, and the result is kept as evidence."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from rigup.cli import _bench_host, main
from rigup.measure import evidence, programs
from rigup.measure.evidence import Evidence
from rigup.plan.model import EndpointPlan
from rigup.render.verify import record_text
from tests.unit.host_world import FILES, program
from tests.unit.loopback_sshd import Sshd, programs_first, running_sshd
from tests.unit.own_command import rigup
from tests.unit.sample import DIGEST, REVISION, plan
from tests.unit.test_cli_commands import Terminal, check_documented, check_width, plain
from tests.unit.test_smoke import engine
from tests.unit.waiting import HANG_S

CARDS = (0, 1)
CARD = "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"
HOOK = """
import rigup.paths
rigup.paths.HOST_PROGRAM, rigup.paths.PLAN = {program!r}, {plan!r}
"""


class Rig:
    """The host `box`, whose endpoint `main` is the stand-in engine at `url`."""

    def __init__(self, sshd: Sshd) -> None:
        self.sshd, self.programs = sshd, sshd.folder / "programs"
        self.programs.mkdir(exist_ok=True)
        self.host_program = self.programs / "rigup-host"
        self.plan_file = sshd.folder / "plan.json"
        (sshd.folder / "client").mkdir()
        # The client's Python, which runs the host program itself.
        real = f"{shlex.quote(sys.executable)} -IB {FILES}/rigup-host"
        program(sshd.folder / "client/bin", "python", f'shift 2; exec {real} "$@"')
        (sshd.folder / "lab.lock").write_text("choices: {}\n")
        for name, words, told in (("cat", "endpoint.json", "record"), ("grep", "Generation", "units")):
            own = f"exec /bin/cat {sshd.folder}/{told}"
            program(self.programs, name, f'case "$*" in *{words}*) {own};; *) exec /bin/{name} "$@";; esac')
        program(
            self.programs,
            "nvidia-smi",
            f"""case "$*" in
-L) for n in 0 1 2; do echo "GPU $n: {CARD} (UUID: GPU-$n$n$n$n)"; done;;
*uuid,power.limit*) for n in 0 1 2; do echo "$n, GPU-$n$n$n$n, 450.00"; done;;
*power.draw*) for n in 0 1 2; do echo "$n, GPU-$n$n$n$n, 300.00"; done;;
esac""",
        )
        sshd.lab(endpoints={"main": {"gpus": list(CARDS)}})
        self.endpoint: EndpointPlan

    def serves(self, url: str, **smoke: Any) -> None:
        """Let the endpoint be at this address, and as its host's plan says."""
        port = int(url.rpartition(":")[2])
        whole = plan()
        small = {"options": ("--max-num-seqs=2",), "served_name": "qwen", "port": port, "gpus": CARDS}
        expect = whole.endpoint("main").smoke.model_copy(update=smoke)
        self.endpoint = whole.endpoint("main").model_copy(update={**small, "smoke": expect})
        self.plan_file.write_text(whole.model_copy(update={"endpoints": (self.endpoint,)}).text())
        (self.sshd.folder / "record").write_text(record_text(self.endpoint))
        self.runs(self.endpoint.generation)
        self.measures(f'exec {shlex.quote(sys.executable)} -IB {FILES}/rigup-host "$@"')

    def runs(self, generation: str, units: str = "/usr/local/lib/systemd/system") -> None:
        (self.sshd.folder / "units").write_text(f"{units}/llm@main.service:Generation={generation}\n")

    def measures(self, script: str) -> None:
        """Let the host's program be this shell script."""
        program(self.programs, "rigup-host", script)

    def bench(self, *words: str) -> subprocess.CompletedProcess[str]:
        with ExitStack() as patched:
            for each in self.patches():
                patched.enter_context(each)
            return rigup("bench", "box/main", *words, "--inventory", str(self.inventory), cwd=self.sshd.folder)

    def patches(self) -> list[Any]:
        return [
            patch.object(programs, "HOST_PROGRAM", str(self.host_program)),
            patch.object(programs, "CLIENT", str(self.sshd.folder / "client")),
            patch.object(_bench_host, "PLAN", str(self.plan_file)),
        ]

    @property
    def inventory(self) -> Path:
        return self.sshd.folder / "lab.yaml"

    @property
    def kept(self) -> list[Evidence]:
        return [evidence.read(path) for path in sorted((self.sshd.folder / "evidence").glob("*"))]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with running_sshd(tmp_path, programs_first(tmp_path / "programs")) as server:
        yield Rig(server)


def test_an_endpoint_is_measured_and_the_result_says_what_was_measured_on_what(rig: Rig) -> None:
    with engine("none") as url:
        rig.serves(url, tools=False)
        done = rig.bench("--json", "--workload=chat", "--workload=agent", "--max-users=8")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    check_documented("rigup bench", said)
    (kept,) = rig.kept
    assert said["file"] == str(evidence.path_of(kept, rig.inventory))
    assert {key: said[key] for key in ("host", "endpoint", "recipe", "engine", "image", "repo", "revision")} == {
        "host": "box",
        "endpoint": "main",
        "recipe": "vllm-nvfp4-cu130",
        "engine": "vllm",
        "image": f"vllm/vllm-openai@{DIGEST}",
        "repo": "nvidia/Qwen3.5-397B-A17B-NVFP4",
        "revision": REVISION,
    }
    assert (said["complete"], said["changes"], said["tool_calls"]) == (True, [], [])
    assert said["generation"] == rig.endpoint.digest
    # Two of three cards are the endpoint's.
    assert said["cards"] == [
        {"index": number, "name": CARD, "uuid": f"GPU-{str(number) * 4}", "power_limit": 450.0} for number in CARDS
    ]
    assert said["lock"] == hashlib.sha256(b"choices: {}\n").hexdigest()
    assert said["command"].endswith(
        "rigup bench box/main --workload=chat --workload=agent --max-users=8 --ttft=2.0 --tpot=0.05"
    )
    # Not beyond what the engine works on at a time.
    levels = [(each["workload"], each["concurrency"], each["repeats"], each["requests"]) for each in said["levels"]]
    assert levels == [("chat", 1, 3, 24), ("chat", 2, 3, 24), ("agent", 1, 3, 24), ("agent", 2, 3, 24)]
    figures = said["levels"][0]["figures"]
    assert figures["accepted"] == {"min": 0.8, "median": 0.8, "max": 0.8}
    assert 0 < figures["ttft_p50"]["min"] <= figures["ttft_p50"]["median"] <= figures["ttft_p50"]["max"]
    # The figures come from what is kept.
    assert len([each for each in kept.records if each.kind == "request"]) == 24 * 4 + 1 + 2 + 4 + 8
    assert "chat, 2 at a time, repeat 3 of 3, about" in done.stderr


def test_tool_calls_are_counted_and_what_was_wrong_is_named(rig: Rig) -> None:
    with engine("no-streamed-tools") as url:
        rig.serves(url)
        done = rig.bench("--workload=chat", "--max-users=1", "--tool-calls=4")
    assert done.returncode == 0, done.stderr
    assert "tool calls, plain: 2 of 2 right (95 %: 34% to 100%)\n" in done.stdout
    assert "tool calls, streamed: 0 of 2 right (95 %: 0% to 66%), 2 broken arguments\n" in done.stdout
    assert "tool calls: try 2: broken arguments" in done.stderr


def line(kind: str, **values: Any) -> str:
    return json.dumps({"kind": kind, **values})


def records(seconds: float = 2.0, repeats: int = 3, end: bool = True) -> list[str]:
    """What the host prints of an engine that takes so many seconds for an answer of 200 tokens."""
    found = []
    for number in range(repeats + 1):
        began, where = 100.0 * number, {"workload": "chat", "concurrency": 1, "repeat": number}
        times = {"began": began, "first": began + 0.5, "last": began + seconds, "ended": began + seconds}
        found += [line("request", **where, **times, prompt_tokens=9, tokens=200, error="", detail="")]
        found += [line("sample", at=began + at, watts=600.0 + at, kv_cache=0.1) for at in (0.1, 0.2, 0.3)]
        found += [line("repeat", **where, began=began, ended=began + seconds, drafted=None, accepted=None)]
    return [*found, *([line("end")] if end else [])]


def says(rig: Rig, lines: list[str], then: str = "") -> None:
    (rig.sshd.folder / "said").write_text("".join(f"{each}\n" for each in lines))
    rig.measures(f"/bin/cat {rig.sshd.folder}/said; {then}")


@pytest.fixture
def quiet(rig: Rig) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `rigup bench` without tool calls on a host whose program only says what `says` lets it say."""
    rig.serves("http://127.0.0.1:9")
    says(rig, records())
    return lambda *words: rig.bench("--workload=chat", "--max-users=1", "--tool-calls=0", *words)


Bench = Callable[..., subprocess.CompletedProcess[str]]


def test_text_has_the_figures_in_tables_that_fit(rig: Rig, quiet: Bench) -> None:
    done = quiet()
    assert done.returncode == 0, done.stderr
    lines = [" ".join(each.split()) for each in done.stdout.splitlines()]
    assert lines[:5] == [
        "workload users tok/s spread per user TTFT p50 / p95 / p99 TPOT p50 / p95 / p99",
        "chat 1 100 +0.0%/+0.0% 132.7 0.50 / 0.50 / 0.50 s 7.5 / 7.5 / 7.5 ms",
        "",
        "workload users end to end p50 / p95 / p99 good req/s drafts KV power J/token",
        "chat 1 2.00 / 2.00 / 2.00 s 0.50 (100%) \N{EN DASH} 10% 600 W 6.00",
    ]
    terminal = Terminal()
    argv = ["bench", "box", "--workload=chat", "--tool-calls=0", f"--inventory={rig.inventory}"]
    own = patch.dict(os.environ, {"COLUMNS": "80", "TERM": "xterm"})
    with ExitStack() as patched, own, chdir(rig.sshd.folder), redirect_stdout(terminal):
        for each in rig.patches():
            patched.enter_context(each)
        assert main.main(argv) == 0
    check_width(plain(terminal.getvalue()).partition("Stored in ")[0])


def test_a_result_is_compared_with_an_earlier_one(rig: Rig, quiet: Bench) -> None:
    assert quiet().returncode == 0
    (before,) = (rig.sshd.folder / "evidence").iterdir()
    earlier = before.rename(rig.sshd.folder / "before.json")
    same = quiet("--against", str(earlier))
    assert same.returncode == 0
    assert "no difference to " in same.stdout
    says(rig, records(seconds=2.5))
    slower = quiet("--against", str(earlier))
    assert slower.returncode == 2
    assert ": chat, 1 at a time: tok/s in total: 20% less (100 before, 80 now)" in slower.stdout
    assert slower.stdout.count("worse than on ") == 6
    says(rig, records(seconds=1.6))
    faster = quiet("--against", str(earlier), "--json")
    assert (faster.returncode, {each["worse"] for each in json.loads(faster.stdout)["changes"]}) == (0, {False})


def test_an_earlier_result_that_is_none_is_refused_before_anything_is_measured(rig: Rig, quiet: Bench) -> None:
    done = quiet("--against", str(rig.inventory))
    assert done.returncode == 1
    assert "lab.yaml is not a result of this rigup" in done.stderr
    assert not (rig.programs / "rigup-host.calls").exists()


@pytest.mark.parametrize("word", ["--max-users=0", "--ttft=-1", "--tpot=nan", "--tool-calls=-3", "--workload=chatt"])
def test_wrong_options_are_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["bench", "box", word])
    assert ended.value.code == 1
    assert f"argument {word.partition('=')[0]}: " in capsys.readouterr().err


def test_what_runs_must_be_what_the_host_has_a_plan_of(rig: Rig, quiet: Bench) -> None:
    rig.runs("0123456789ab")
    done = quiet()
    assert (done.returncode, done.stdout) == (1, "")
    assert "box/main runs something else than the host's plan says: `" in done.stderr
    rig.runs(rig.endpoint.generation, "/run/systemd/system")
    assert "box/main: a switch is under way: wait until it has ended" in quiet().stderr
    (rig.sshd.folder / "units").write_text("\n")
    assert "box/main is not deployed: `" in quiet().stderr
    rig.runs(rig.endpoint.generation)
    rig.plan_file.write_text("{}")
    assert "box/main runs something else than the host's plan says" in quiet().stderr
    assert not (rig.programs / "rigup-host.calls").exists() and not (rig.sshd.folder / "evidence").exists()


def test_a_measurement_that_fails_is_an_error_and_what_was_measured_is_kept(rig: Rig, quiet: Bench) -> None:
    for lines, then, message in (
        (records(end=False), "echo 'no disk' >&2; exit 3", "box: the measurement failed: no disk"),
        (records(end=False), "", "box: the measurement failed: exit code 0"),
        ([*records(end=False), "Traceback"], "", "box: the measurement printed what is not a record"),
    ):
        says(rig, lines, then)
        done = quiet()
        assert done.returncode == 1
        assert message in done.stderr
        assert "Interrupted; stored what was measured in " in done.stdout
        assert {each.complete for each in rig.kept} == {False}
    (rig.sshd.folder / "evidence").rename(rig.sshd.folder / "earlier")
    says(rig, [], "echo 'rigup-host: error: unknown program bench' >&2; exit 2")
    done = quiet()
    assert (done.returncode, done.stdout, rig.kept) == (1, "", [])
    assert "unknown program bench: deploy" in done.stderr


@pytest.mark.parametrize(("runs", "kind"), [(False, "no connection"), (True, "no usage")])
def test_an_engine_that_answers_nothing_is_an_error_and_its_failures_are_counted(
    rig: Rig, runs: bool, kind: str
) -> None:
    with engine("no-streamed-usage") as url:
        # Nothing listens at the port of `discard`.
        url = url if runs else "http://127.0.0.1:9"
        rig.serves(url, tools=False)
        done = rig.bench("--workload=chat", "--max-users=1")
    assert done.returncode == 1
    assert f"! chat, 1 at a time: failed requests: 1 {kind}" in done.stdout
    assert "box/main: no request was answered: `" in done.stderr
    assert rig.kept[0].levels[0].failed == {kind: 1}


def test_ctrl_c_keeps_what_was_measured(rig: Rig, tmp_path: Path) -> None:
    rig.serves("http://127.0.0.1:9")
    says(rig, records(repeats=2, end=False), f"exec {rig.sshd.forever}")
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK.format(program=str(rig.host_program), plan=str(rig.plan_file)))
    argv = [sys.executable, "-m", "rigup.cli", "bench", "box", f"--inventory={rig.inventory}"]
    env, pipe = {**os.environ, "PYTHONPATH": str(hook)}, subprocess.PIPE
    with subprocess.Popen(argv, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe, text=True) as measuring:
        assert measuring.stderr is not None
        for said in measuring.stderr:
            if "chat, 1 at a time, repeat 2 of 3" in said:
                break
        measuring.send_signal(signal.SIGINT)
        out, err = measuring.communicate(timeout=HANG_S)
    assert (measuring.returncode, err) == (130, "Interrupted.\n")
    (kept,) = rig.kept
    assert (kept.complete, [(each.repeats, each.requests) for each in kept.levels]) == (False, [(2, 2)])
    assert "Interrupted; stored what was measured in " in out
