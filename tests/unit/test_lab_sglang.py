"""The lab's stand-in for SGLang: it checks arguments against the real list and answers as the real server does."""

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, BadRequestError, OpenAI

import lab.engine
import lab.sglang
from lab.registry.image import known_options
from rigup.catalog.engine_args import arguments
from rigup_host.smoke import Expectation, Smoke
from tests.unit.own_address import OWN_ADDRESS, free_port
from tests.unit.sample import CATALOGUE
from tests.unit.waiting import HANG_S, until

RECIPES = sorted(name for name, recipe in CATALOGUE.recipes.items() if recipe.engine.name == "sglang" and recipe.image)
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


@dataclass
class Image:
    """The files of the stand-in as in its image."""

    root: Path

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "sglang.launch_server", *words]

    def environment(self, gpus: int) -> dict[str, str]:
        smi = self.root / "bin" / "nvidia-smi"
        smi.parent.mkdir(exist_ok=True)
        lines = "".join(f'echo "GPU {n}: RTX (UUID: GPU-{n})"\n' for n in range(gpus))
        smi.write_text(f"#!/bin/sh\n{lines}")
        smi.chmod(0o755)
        return {"PATH": f"{smi.parent}:/usr/bin:/bin", "PYTHONPATH": str(self.root), "PYTHONUNBUFFERED": "1"}

    def run(self, *words: str, gpus: int = 4, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment(gpus) | variables
        return subprocess.run(self.command(*words), capture_output=True, text=True, timeout=HANG_S, env=environment)


def place(root: Path, fork: str | None) -> Image:
    """Write the stand-in's package with the options of SGLang or a fork."""
    package = root / "sglang"
    package.mkdir(parents=True)
    for path in Path(lab.sglang.__file__).parent.glob("*.py"):
        shutil.copy(path, package)
    shutil.copy(Path(lab.engine.__file__).parent / "gpus.py", package)
    (package / "known.json").write_text(known_options(fork))
    model = root / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 262144}}))
    return Image(root)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return place(tmp_path_factory.mktemp("released"), None)


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return place(tmp_path_factory.mktemp("forked"), "voipmonitor")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tp-size=4"], "the following arguments are required: --model-path/--model"),
        (["--model-path=m", "--enable-pcie-oneshot-allreduce"], "unrecognized arguments: --enable-pcie-oneshot"),
        (["--model-path=m", "--cuda-graph-max-bs=64"], "ambiguous option: --cuda-graph-max-bs=64 could match"),
        (["--model-path=m", "--tool-call-parser=qwen3_xml"], "invalid choice: 'qwen3_xml'"),
        (["--model-path=m", "--max-running-requests=many"], "invalid int value: 'many'"),
        (["--model-path=m", "--trust-remote-code=yes"], "ignored explicit argument 'yes'"),
    ],
)
def test_a_wrong_argument_ends_as_argparse_ends_it(released: Image, words: list[str], message: str) -> None:
    result = released.run(*words)
    assert result.returncode == 2
    assert message in result.stderr


def test_too_few_gpus_or_none_end_the_server(released: Image) -> None:
    model = f"--model-path={released.root}/model"
    few = released.run(model, "--tp-size=8")
    assert (few.returncode, "invalid device ordinal" in few.stdout) == (137, True)
    none = released.run(model, "--tp-size=4", gpus=0)
    assert (none.returncode, "No accelerator (CUDA" in none.stdout) == (137, True)


def test_a_longer_context_needs_its_variable(released: Image) -> None:
    result = released.run(f"--model-path={released.root}/model", "--context-length=921600")
    assert result.returncode == 137
    assert "set the env var SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1" in result.stdout


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_of_the_catalog_is_understood_by_its_image(released: Image, forked: Image, name: str) -> None:
    recipe = CATALOGUE.recipe(name)
    image = forked if recipe.engine.fork else released
    words = [argument for argument, _ in arguments(recipe)]
    # A folder without a model is checked after the arguments.
    result = image.run("--model-path=/nowhere", *words, gpus=recipe.gpus)
    assert result.returncode == 137, result.stderr
    assert "/nowhere does not appear to have a file named config.json" in result.stdout


@dataclass
class Running:
    url: str
    client: OpenAI


@contextmanager
def serving(image: Image, *words: str) -> Iterator[str]:
    """Run a server until it is ready; yield its address. Assert that SIGTERM ends it and its log has no secret."""
    port = free_port()
    fixed = [f"--model-path={image.root}/model", "--served-model-name=qwen", f"--host={OWN_ADDRESS}", f"--port={port}"]
    fixed += ["--tp-size=4", "--tool-call-parser=qwen3_coder", "--reasoning-parser=qwen3"]
    log = image.root / f"log-{port}"
    with log.open("w") as output:
        process = subprocess.Popen(
            image.command(*fixed, *words), env=image.environment(4), stdout=output, stderr=subprocess.STDOUT
        )
    url = f"http://{OWN_ADDRESS}:{port}"
    try:
        until(lambda: status(f"{url}/health") == 200, lambda: process.poll() is None)
        yield url
    finally:
        process.terminate()
        assert process.wait(timeout=HANG_S) == 0
    assert "planted-secret" not in log.read_text()


@pytest.fixture(scope="module")
def running(released: Image) -> Iterator[Running]:
    key = released.root / "key.yaml"
    key.write_text('api-key: "planted-secret"\n')
    with serving(released, "--config", str(key)) as url:
        yield Running(url, OpenAI(base_url=f"{url}/v1", api_key="planted-secret", max_retries=0))


def test_it_passes_the_smoke_set_of_an_agents_recipe_as_the_lab_expects_it(released: Image) -> None:
    expect = Expectation(tools=True, reasoning=True, images=True, random_weights=True, long_prompt=2000, context=262144)
    with serving(released, "--chat-template=/rigup/chat_template.jinja") as url:
        checks = Smoke(url, "/health", "qwen", HANG_S, expect).checks()
        assert len(checks) >= 10
        for _, check in checks:
            assert check()


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=HANG_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_the_model_is_listed_with_its_context(running: Running) -> None:
    [model] = running.client.models.list().data
    assert (model.id, model.owned_by, model.max_model_len) == ("qwen", "sglang", 262144)  # type: ignore[attr-defined]


def test_without_the_key_only_health_answers(running: Running) -> None:
    assert status(f"{running.url}/v1/models") == 401
    assert status(f"{running.url}/health") == 200


def test_a_chat_follows_the_instruction_and_separates_its_reasoning(running: Running) -> None:
    said: Any = running.client.chat.completions.create(
        model="qwen", messages=[{"role": "user", "content": "Reply with exactly: OK-7319"}]
    )
    assert said.choices[0].message.content == "OK-7319"
    assert said.choices[0].message.reasoning_content
    assert (said.choices[0].finish_reason, said.usage.completion_tokens > 1) == ("stop", True)
    quick: Any = running.client.chat.completions.create(
        model="qwen", messages=QUESTION, max_tokens=3, extra_body={"chat_template_kwargs": {"enable_thinking": False}}
    )
    assert quick.choices[0].message.reasoning_content is None
    assert (quick.choices[0].finish_reason, quick.usage.completion_tokens) == ("length", 3)


def test_tools_are_called_at_once_and_streamed_until_their_result_arrives(running: Running) -> None:
    create: Any = running.client.chat.completions.create
    said = create(model="qwen", messages=QUESTION, tools=[WEATHER])
    [call] = said.choices[0].message.tool_calls
    assert said.choices[0].finish_reason == "tool_calls"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    pieces = list(create(model="qwen", messages=QUESTION, tools=[WEATHER], stream=True))
    parts = [part for each in pieces for part in each.choices[0].delta.tool_calls or []]
    assert [part.function.name for part in parts if part.function.name] == ["get_weather"]
    assert json.loads("".join(part.function.arguments or "" for part in parts)) == {"city": "Paris"}
    assert pieces[-1].choices[0].finish_reason == "tool_calls"
    result = {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"}
    after = create(model="qwen", messages=[*QUESTION, said.choices[0].message, result], tools=[WEATHER])
    assert (after.choices[0].finish_reason, after.choices[0].message.tool_calls) == ("stop", None)


def test_a_stream_begins_with_the_role_and_ends_with_the_usage(running: Running) -> None:
    pieces: list[Any] = list(
        running.client.chat.completions.create(
            model="qwen", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    assert pieces[0].choices[0].delta.role == "assistant"
    assert len("".join(piece.choices[0].delta.content or "" for piece in pieces[:-1]).split()) == 40
    assert pieces[-2].choices[0].finish_reason == "stop"
    assert pieces[-1].choices == [] and pieces[-1].usage.total_tokens > 0


@pytest.mark.parametrize(
    ("messages", "more", "message"),
    [
        ([], {}, "Messages cannot be empty."),
        (QUESTION, {"tool_choice": "required"}, "Tools cannot be empty if tool choice is set to required."),
        (
            QUESTION,
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}},
            "Tool 'other' not found in tools list.",
        ),
        ([{"role": "system", "content": "a"}, {"role": "system", "content": "b"}], {}, "System message must be at"),
    ],
)
def test_a_wrong_question_is_answered_as_sglang_answers_it(
    running: Running, messages: Any, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        running.client.chat.completions.create(model="qwen", messages=messages, **more)
    body: Any = caught.value.body
    assert message in body["message"] and (body["object"], body["code"]) == ("error", 400)


def test_paths_and_models_that_are_not_there_are_404(running: Running) -> None:
    assert status(f"{running.url}/nothing") in (401, 404)
    with pytest.raises(APIStatusError) as caught:
        running.client.models.retrieve("other")
    assert caught.value.status_code == 404
