"""The smoke set, against the lab's stand-in engine: one that works, and one for each way in which engines fail."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, ClassVar

import pytest

from rigup.plan.model import Smoke
from rigup.render.verify import verify_argv
from rigup_host import checks as check_runner
from rigup_host import smoke as program_of_smoke
from rigup_host.prompts import why_nonsense
from tests.unit.host_world import program, run_program
from tests.unit.sample import plan
from tests.unit.waiting import HANG_S

ROOT = Path(__file__).resolve().parents[2]
ALL = {"tools": True, "reasoning": True, "images": True, "speculation": True, "long_prompt": 4000, "context": 262144}
SAVED = {"instead": "vllm-nvfp4-cu130"}


@contextmanager
def engine(fault: str, listener: Callable[[IO[str]], None] | None = None, word_seconds: float = 0.0) -> Iterator[str]:
    """Run the stand-in engine; yield its address. `listener` reads its output from then on, in a thread."""
    argv = [sys.executable, str(ROOT / "lab/standin_engine/server.py"), "--port=0", "--served-model-name=qwen"]
    argv += ["--lab-load-seconds=0", f"--lab-fault={fault}", f"--lab-word-seconds={word_seconds}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            url = next(line.split()[-1] for line in process.stdout if "Starting vLLM server" in line)
            if listener is not None:
                threading.Thread(target=listener, args=(process.stdout,), daemon=True).start()
            yield url
        finally:
            process.kill()


class Tried:
    """Tries an endpoint as the host program does, in this process: the client takes a second to be imported."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.out, self.capsys = directory / "verify.json", capsys

    def __call__(self, fault: str = "none", **expect: Any) -> tuple[int, dict[str, dict[str, Any]], str]:
        """Exit code, the checks by name without the word `endpoint`, and all that was said."""
        with engine(fault) as url:
            code = program_of_smoke.main(arguments(url, self.out, **expect))
        record = json.loads(self.out.read_text())
        assert record["passed"] == (code == 0)
        checks = {check["name"].removeprefix("endpoint "): check for check in record["checks"]}
        said = self.capsys.readouterr()
        return code, checks, said.out + said.err


def arguments(url: str, out: Path, **expect: Any) -> list[str]:
    wanted = json.dumps({**ALL, **SAVED, **expect})
    common = [f"--out={out}", "--unit=llm@main.service", "--digest=d1"]
    return [f"--url={url}", "--model=qwen", f"--timeout={HANG_S}", f"--expect={wanted}", *common]


@pytest.fixture
def smoke(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tried:
    program(tmp_path / "bin", "systemctl", "echo InvocationID=6a0ab0a2b1a04ea2a7d8f4d1e4a7b1c9")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=os.pathsep)
    return Tried(tmp_path, capsys)


def test_the_program_runs_by_itself_as_on_a_host(smoke: Tried) -> None:
    with engine("none") as url:
        result = run_program("smoke", *arguments(url, smoke.out), tools=smoke.out.parent / "bin")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("ok ") == 15


def failed(checks: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, check in checks.items() if not check["ok"]}


def test_an_engine_that_can_do_it_all_passes_with_a_line_and_a_time_for_each_check(smoke: Tried) -> None:
    code, checks, said = smoke()

    assert code == 0, said
    assert list(checks) == [
        "is healthy",
        "lists its model",
        "completes a chat",
        "writes meaningful text",
        "streams a chat",
        "separates its reasoning",
        "calls a tool",
        "streams a tool call",
        "calls a required tool",
        "streams a required tool call",
        "calls tools step by step",
        "takes two system messages",
        "reads a long prompt",
        "sees an image",
        "speculates",
    ]
    assert len([line for line in said.splitlines() if line.startswith("ok ") and line.endswith(" s")]) == len(checks)
    assert checks["speculates"]["detail"] == "80% of 100 drafted tokens were accepted"


def test_what_a_recipe_is_not_for_is_not_tried(smoke: Tried) -> None:
    _, checks, _ = smoke(tools=False, reasoning=False, images=False, speculation=False, long_prompt=0)
    assert list(checks) == [
        "is healthy",
        "lists its model",
        "completes a chat",
        "writes meaningful text",
        "streams a chat",
    ]


def test_an_engine_that_answers_without_end_is_given_up_when_the_time_is_up(
    smoke: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = threading.Event()
    monkeypatch.setattr(check_runner, "time", SimpleNamespace(monotonic=lambda: 600.0 * up.is_set()))

    def end_the_time(output: IO[str]) -> None:
        """Let the time be up once the engine has begun its answer."""
        assert any("POST /v1/chat/completions" in line for line in output)
        up.set()
        os.kill(os.getpid(), signal.SIGALRM)

    with engine("drips", end_the_time) as url:
        code = program_of_smoke.main([*arguments(url, smoke.out), "--within=600"])

    assert code == 1
    checks = json.loads(smoke.out.read_text())["checks"]
    assert [check["ok"] for check in checks] == [True, True, False]
    told = "endpoint completes a chat: timed out after 600 s; remaining checks skipped"
    assert told in smoke.capsys.readouterr().err


TOOLS = {"calls a tool", "streams a tool call", "calls a required tool", "streams a required tool call"}


@pytest.mark.parametrize(
    ("fault", "failures", "meaning"),
    [
        ("thoughts-in-content", {"separates its reasoning"}, "the reasoning parser does not fit"),
        ("no-tools", TOOLS | {"calls tools step by step"}, "the tool parser does not fit"),
        ("no-streamed-tools", {"streams a tool call", "streams a required tool call", "calls tools step by step"},
         "OpenCode and other agents stream"),
        ("required-as-xml", {"calls a required tool", "streams a required tool call"}, "guided decoding does not work"),
        ("corrupt-third-step", {"calls tools step by step"}, "single calls work and longer tasks fail"),
        ("forgetful", {"reads a long prompt"}, "the beginning of a long prompt is lost"),
        ("blind", {"sees an image"}, "images are refused"),
        ("drafter-broken", {"speculates"}, "the drafter costs time and saves none"),
        ("stops-at-tools", {"calls a tool", "streams a tool call"}, "finish_reason is stop, not tool_calls"),
    ],
)  # fmt: skip
def test_each_way_of_failing_fails_its_checks_and_says_what_it_means_and_what_avoids_it(
    smoke: Tried, fault: str, failures: set[str], meaning: str
) -> None:
    code, checks, said = smoke(fault)

    assert code == 1
    assert failed(checks) == failures
    assert meaning in said
    assert ("Recipe vllm-nvfp4-cu130 avoids it" in said) == (fault != "blind")


def test_an_answer_that_never_ends_is_found_and_so_is_a_text_that_repeats_itself(smoke: Tried) -> None:
    code, checks, said = smoke("endless", tools=False, reasoning=False, images=False, speculation=False, long_prompt=0)
    assert code == 1
    assert failed(checks) == {"completes a chat", "writes meaningful text", "streams a chat"}
    assert "the answer does not end: finish_reason is length" in said
    paragraph = (
        "The waves come in from far away and break on the sand, and the wind carries the smell of salt to the land "
        "while gulls cry above the harbour and old boats creak at their ropes. "
    )
    assert why_nonsense(paragraph) == ""
    assert why_nonsense(paragraph * 3) == "the same phrases repeated"


def test_an_engine_that_counts_no_drafted_tokens_is_noted_and_does_not_fail(smoke: Tried) -> None:
    code, _, said = smoke("silent-drafter")
    assert code == 0, said
    assert re.search(r"note endpoint speculates .*the share of accepted ones is unknown", said)


@pytest.mark.parametrize("fault", ["garbage", "babble"])
def test_garbage_is_found(smoke: Tried, fault: str) -> None:
    code, checks, said = smoke(fault)
    assert code == 1
    assert "writes meaningful text" in failed(checks)
    assert "the weights are read incorrectly" in said


def test_of_random_weights_nonsense_is_expected_and_sense_is_a_failure(smoke: Tried) -> None:
    few: dict[str, Any] = {"reasoning": False, "long_prompt": 0, "speculation": False, "random_weights": True}
    code, checks, said = smoke("babble", **few)
    assert code == 0, said
    assert "writes nonsense, as random weights do" in checks
    # What only sense can do is not asked; what the engine's own guiding does is.
    assert "calls a tool" not in checks
    assert "calls a required tool" in checks

    code, checks, said = smoke(**few)
    assert failed(checks) == {"writes nonsense, as random weights do"}


@pytest.mark.parametrize("fault", ["required-as-blanks", "required-cut-off"])
def test_a_required_call_that_random_weights_never_end_is_noted(smoke: Tried, fault: str) -> None:
    few: dict[str, Any] = {"reasoning": False, "long_prompt": 0, "speculation": False}
    _, checks, said = smoke(fault, **few, random_weights=True)
    # The stand-in writes sense, which weights that are random must not.
    assert failed(checks) == {"writes nonsense, as random weights do"}
    assert re.findall(r"note endpoint (.+?) +\d", said) == ["calls a required tool", "streams a required tool call"]
    assert "the call was cut off at the limit of the request" in said

    code, checks, _ = smoke(fault, **few)
    assert (code, failed(checks)) == (1, {"calls a required tool", "streams a required tool call"})


def test_a_second_system_message_that_the_template_refuses_is_noted_and_does_not_fail(smoke: Tried) -> None:
    code, _, said = smoke("one-system-message")
    assert code == 0, said
    assert "note endpoint takes two system messages" in said
    assert "OpenCode sends two" in said


def test_a_second_system_message_fails_where_the_recipe_merges_them(smoke: Tried) -> None:
    code, checks, _ = smoke("one-system-message", merges_system=True)
    assert (code, failed(checks)) == (1, {"takes two system messages"})


def test_an_engine_that_dies_at_its_first_request_fails_all_that_follows_and_the_rest_is_told(smoke: Tried) -> None:
    code, checks, said = smoke("dies-at-first-request")
    assert code == 1
    assert not failed(checks) & {"is healthy", "lists its model"}
    assert "completes a chat" in failed(checks)
    assert "Traceback" not in said


def test_another_context_than_the_recipes_is_no_proof(smoke: Tried) -> None:
    _, checks, _ = smoke(context=131072)
    assert failed(checks) == {"lists its model"}


def test_what_the_plan_expects_is_what_the_program_understands() -> None:
    assert [field.name for field in fields(program_of_smoke.Expectation)] == list(Smoke.model_fields)


def test_a_recipe_is_tried_for_what_it_is_for() -> None:
    agents = plan().endpoint("main").smoke
    assert (agents.tools, agents.reasoning, agents.images, agents.speculation) == (True, True, True, False)
    assert agents.instead != "vllm-nvfp4-cu130"
    drafting = plan(recipe="vllm-nvfp4-cu130-mtp2").endpoint("main").smoke
    assert (drafting.speculation, drafting.instead) == (True, "vllm-nvfp4-cu130")
    text = plan(recipe="vllm-nvfp4-cu130-text").endpoint("main").smoke
    assert not text.images


class Recorder(BaseHTTPRequestHandler):
    """Answers every chat, and keeps what it was asked."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        message = {"role": "assistant", "content": "OK"}
        answer = {"id": "x", "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_thinking_is_switched_by_the_models_own_key() -> None:
    assert plan().endpoint("main").smoke.thinking == "enable_thinking"
    server = HTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        expect = program_of_smoke.Expectation(thinking="thinking")
        url = f"http://127.0.0.1:{server.server_port}"
        smoke = program_of_smoke.Smoke(url, "/health", "m", HANG_S, expect)
        smoke.endpoint.ask("Hello", 4)
        smoke.endpoint.complete([{"role": "user", "content": "Hello"}], extra_body=smoke.endpoint.body(thinks=True))
    finally:
        server.shutdown()
    assert [each["chat_template_kwargs"] for each in Recorder.asked] == [{"thinking": False}, {"thinking": True}]


def test_the_smoke_test_runs_with_the_client_and_knows_what_to_expect() -> None:
    endpoint = plan().endpoint("main")
    argv = verify_argv(endpoint)
    assert argv[0] == "/usr/local/lib/rigup/client/bin/python"
    expect = next(word for word in argv if word.startswith("--expect=")).removeprefix("--expect=")
    assert json.loads(expect) == endpoint.smoke.model_dump()
