"""`rigup connect`: what it prints for each client, endpoint and engine."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from rigup.lock import lockfile
from rigup.lock.lockfile import CheckpointLock, ImageLock, VenvLock
from rigup.render.clients.traps import TRAPS
from tests.unit.loopback_sshd import Sshd, programs_first, running_sshd
from tests.unit.own_command import rigup
from tests.unit.sample import CATALOGUE, DIGEST, OWN, REVISION, image, lock

OPEN = {"main": {"listen": "192.0.2.11", "allowed_networks": ["192.0.2.0/24"]}}
VLLM = "vllm-nvfp4-cu130"
SGLANG = "sglang-nvfp4-b12x"
Connect = Callable[..., subprocess.CompletedProcess[str]]


def locked(folder: Path, recipe: str) -> None:
    """Write a lock with what a recipe needs."""
    found = CATALOGUE.recipe(recipe)
    checkpoint = CATALOGUE.checkpoint(found.checkpoint)
    images = {found.image.tag: ImageLock(digest=DIGEST, created=image().created, bytes=1)} if found.image else {}
    venvs = {found.venv.key: VenvLock.model_construct(requirements=found.venv.packages)} if found.venv else {}
    commit = CheckpointLock(revision=checkpoint.revision or REVISION, bytes=1, files=1)
    changes: dict[str, Any] = {"images": images, "venvs": venvs, "checkpoints": {checkpoint.key: commit}}
    lockfile.write(folder / "lab.lock", lock().model_copy(update=changes))


@pytest.fixture
def connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Run `rigup connect` for an endpoint of `rig1`, which is open to a network unless `endpoints` says otherwise."""
    # Without an inventory in the commands that it prints.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inventory").mkdir()

    def run(
        *words: str, target: str = "rig1", recipe: str = "vllm-nvfp4-cu130", endpoints: Any = OPEN
    ) -> subprocess.CompletedProcess[str]:
        host = {"address": "192.0.2.11", "user": "ops", "endpoints": endpoints, "recipe": recipe}
        (tmp_path / "inventory/lab.yaml").write_text(yaml.safe_dump({"hosts": {"rig1": host}}))
        locked(tmp_path / "inventory", recipe)
        return rigup("connect", target, *words, cwd=tmp_path)

    return run


OPENCODE = {
    "$schema": "https://opencode.ai/config.json",
    "provider": {
        "rig1-main": {
            "npm": "@ai-sdk/openai-compatible",
            "name": "rig1/main",
            "options": {"baseURL": "http://192.0.2.11:8000/v1", "apiKey": "{env:RIGUP_KEY_RIG1_MAIN}"},
            "models": {
                "Qwen3.5-397B-A17B": {
                    "name": "Qwen3.5-397B-A17B",
                    "tool_call": True,
                    "reasoning": True,
                    "interleaved": {"field": "reasoning"},
                    "attachment": True,
                    "modalities": {"input": ["text", "image"], "output": ["text"]},
                    "limit": {"context": 262144, "output": 32768},
                }
            },
        }
    },
}

CLAUDE_CODE = {
    "env": {
        "ANTHROPIC_BASE_URL": "http://192.0.2.11:8000",
        "ANTHROPIC_MODEL": "Qwen3.5-397B-A17B",
        "ANTHROPIC_DEFAULT_OPUS_MODEL": "Qwen3.5-397B-A17B",
        "ANTHROPIC_DEFAULT_SONNET_MODEL": "Qwen3.5-397B-A17B",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": "Qwen3.5-397B-A17B",
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": "262144",
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "32768",
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
    }
}

CLINE = {
    "version": 1,
    "lastUsedProvider": "openai-compatible",
    "modes": {},
    "providers": {
        "openai-compatible": {
            "updatedAt": "1970-01-01T00:00:00.000Z",
            "tokenSource": "manual",
            "settings": {
                "provider": "openai-compatible",
                "model": "Qwen3.5-397B-A17B",
                "baseUrl": "http://192.0.2.11:8000/v1",
                "contextWindow": 262144,
                "maxTokens": 32768,
            },
        }
    },
}

CONTINUE = """\
name: Local
version: 1.0.0
schema: v1
models:
- name: rig1/main
  provider: openai
  model: Qwen3.5-397B-A17B
  apiBase: http://192.0.2.11:8000/v1
  apiKey: ${{ secrets.RIGUP_KEY_RIG1_MAIN }}
  roles:
  - chat
  - edit
  - apply
  - summarize
  capabilities:
  - tool_use
  - image_input
  defaultCompletionOptions:
    contextLength: 262144
    maxTokens: 32768
"""

OPEN_WEBUI = """\
ENABLE_OPENAI_API=True
OPENAI_API_BASE_URLS=http://192.0.2.11:8000/v1
OPENAI_API_KEYS=KEY
DEFAULT_MODELS=Qwen3.5-397B-A17B
"""

OPENAI_PYTHON = """\
import os

from openai import OpenAI

client = OpenAI(base_url="http://192.0.2.11:8000/v1", api_key=os.environ["RIGUP_KEY_RIG1_MAIN"])
answer = client.chat.completions.create(
    model="Qwen3.5-397B-A17B",
    messages=[{"role": "user", "content": "Hello"}],
    max_tokens=512,
    extra_body={"chat_template_kwargs": {"enable_thinking": False}},
)
print(answer.choices[0].message.content)
"""

CURL = """\
rigup key rig1/main --header | curl -sS -H @- http://192.0.2.11:8000/v1/models
rigup key rig1/main --header | curl -sS -H @- http://192.0.2.11:8000/v1/chat/completions \
-H Content-Type:application/json -d '{"model": "Qwen3.5-397B-A17B", \
"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 512, \
"chat_template_kwargs": {"enable_thinking": false}}'
"""


@pytest.mark.parametrize(
    ("client", "printed"), [("opencode", OPENCODE), ("claude-code", CLAUDE_CODE), ("cline", CLINE)]
)
def test_a_client_with_a_json_file_gets_its_configuration(connect: Connect, client: str, printed: object) -> None:
    done = connect("--to", client)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == printed


@pytest.mark.parametrize(
    ("client", "printed"),
    [("continue", CONTINUE), ("open-webui", OPEN_WEBUI), ("openai-python", OPENAI_PYTHON), ("curl", CURL)],
)
def test_every_other_client_gets_its_text(connect: Connect, client: str, printed: str) -> None:
    done = connect("--to", client)
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed


def test_what_the_endpoint_offers_and_the_traps_go_to_standard_error(connect: Connect) -> None:
    assert connect("--to", "opencode").stderr == (
        "rig1/main for OpenCode:\n"
        "  address:        http://192.0.2.11:8000\n"
        "  model:          Qwen3.5-397B-A17B\n"
        "  context:        262144 tokens; the recipe does not set it, and /v1/models shows it\n"
        "  longest answer: 32768 tokens\n"
        "  streaming:      yes\n"
        "  tool calls:     reliable\n"
        '  reasoning:      in reasoning; off with chat_template_kwargs {"enable_thinking": false}\n'
        "  images:         yes\n"
        '  key: export RIGUP_KEY_RIG1_MAIN="$(rigup key rig1/main)"\n'
        "  use: opencode --model rig1-main/Qwen3.5-397B-A17B\n"
        "trap: vLLM refuses a request whose prompt and max_tokens exceed the context together; it shortens neither. "
        "[https://github.com/vllm-project/vllm/issues/42474]\n"
        "trap: OpenCode before June 2026 refuses `interleaved.field: reasoning`, without which vLLM drops earlier "
        "reasoning. [https://github.com/anomalyco/opencode/pull/30477]\n"
    )


@pytest.mark.parametrize(
    ("client", "hint"),
    [
        ("claude-code", '  key: export ANTHROPIC_AUTH_TOKEN="$(rigup key rig1/main)"'),
        ("cline", '  key: export OPENAI_API_KEY="$(rigup key rig1/main)"'),
        ("cline", "  in VS Code, set by hand: API Provider: OpenAI Compatible, Base URL: http://192.0.2.11:8000/v1, "
                  "Model ID: Qwen3.5-397B-A17B, Context Window Size: 262144, Max Output Tokens: 32768, "
                  "Supports Images: yes"),
        ("continue", "  key: write RIGUP_KEY_RIG1_MAIN=KEY into ~/.continue/.env; `rigup key rig1/main` prints KEY"),
        ("open-webui", "  key: replace KEY by what `rigup key rig1/main` prints"),
        ("openai-python", '  key: export RIGUP_KEY_RIG1_MAIN="$(rigup key rig1/main)"'),
    ],
)  # fmt: skip
def test_without_the_key_it_says_where_the_key_goes(connect: Connect, client: str, hint: str) -> None:
    assert hint in connect("--to", client).stderr.splitlines()


@pytest.mark.parametrize(
    ("endpoint", "tunnel"),
    [
        ({}, "ssh -N -L 8000:127.0.0.1:8000 ops@192.0.2.11"),
        ({"port": 9001}, "ssh -N -L 9001:127.0.0.1:9001 ops@192.0.2.11"),
        ({"listen": "127.0.0.2"}, "ssh -N -L 8000:127.0.0.2:8000 ops@192.0.2.11"),
        ({"listen": "::1"}, "ssh -N -L '8000:[::1]:8000' ops@192.0.2.11"),
    ],
)
def test_an_endpoint_on_loopback_is_reached_through_a_tunnel_and_without_a_key(
    connect: Connect, endpoint: dict[str, Any], tunnel: str
) -> None:
    port = endpoint.get("port", 8000)
    done = connect("--to", "opencode", endpoints={"main": endpoint})
    options = json.loads(done.stdout)["provider"]["rig1-main"]["options"]
    assert options == {"baseURL": f"http://127.0.0.1:{port}/v1", "apiKey": "none"}
    assert f"  tunnel:         {tunnel}" in done.stderr.splitlines()
    assert "rigup key" not in done.stderr
    env = json.loads(connect("--to", "claude-code", endpoints={"main": endpoint}).stdout)["env"]
    assert env["ANTHROPIC_AUTH_TOKEN"] == "none"
    text = connect("--to", "curl", endpoints={"main": endpoint}).stdout
    assert text.startswith(f"curl -sS http://127.0.0.1:{port}/v1/models\n")
    docker = connect("--to", "open-webui", endpoints={"main": endpoint})
    # The loopback of a container is another one.
    assert "--network=host" in docker.stderr


def test_an_ipv6_address_is_written_in_brackets(connect: Connect) -> None:
    endpoint = {"listen": "2001:db8::11", "allowed_networks": ["2001:db8::/64"]}
    done = connect("--to", "open-webui", endpoints={"main": endpoint})
    assert "OPENAI_API_BASE_URLS=http://[2001:db8::11]:8000/v1\n" in done.stdout


def test_each_endpoint_has_names_of_its_own(connect: Connect) -> None:
    both = {"left-1": {**OPEN["main"], "gpus": [0, 1, 2, 3]}, "right": {"port": 8001, "gpus": [4, 5, 6, 7]}}
    done = connect("--to", "opencode", endpoints=both)
    assert (done.returncode, done.stdout) == (1, "")
    assert "rig1 has several endpoints: name one: rig1/left-1, rig1/right" in done.stderr
    done = connect("--to", "opencode", target="rig1/left-1", endpoints=both)
    assert list(json.loads(done.stdout)["provider"]) == ["rig1-left-1"]
    assert "{env:RIGUP_KEY_RIG1_LEFT_1}" in done.stdout


@pytest.mark.parametrize(
    ("recipe", "context", "output"),
    [("vllm-fp8-6gpu", 98304, 24576), ("sglang-awq-yarn-524k", 524288, 32768), ("deepseek-v4.1-flash", None, None)],
)
def test_the_limits_are_the_recipes(connect: Connect, recipe: str, context: int | None, output: int | None) -> None:
    done = connect("--to", "opencode", recipe=recipe)
    (model,) = json.loads(done.stdout)["provider"]["rig1-main"]["models"].values()
    assert model.get("limit") == ({"context": context, "output": output} if context else None)
    text = yaml.safe_load(connect("--to", "continue", recipe=recipe).stdout)["models"][0]
    limits = {"contextLength": context, "maxTokens": output} if context else None
    assert text.get("defaultCompletionOptions") == limits


def test_sglang_has_another_field_for_its_reasoning(connect: Connect) -> None:
    done = connect("--to", "opencode", recipe="sglang-nvfp4-b12x-nomtp")
    assert '"field": "reasoning_content"' in done.stdout
    assert "in reasoning_content;" in done.stderr


def own_recipe(folder: Path, more: str, client: str) -> subprocess.CompletedProcess[str]:
    """Run `rigup connect` for a user's recipe, which is the catalog's but for `more`."""
    (folder / "own/recipes").mkdir(parents=True)
    (folder / "own/recipes/mine.yaml").write_text(OWN.format(base=VLLM) + more)
    (folder / "own/lab.yaml").write_text("hosts: {rig1: {address: 192.0.2.11, recipe: mine}}\n")
    locked(folder / "own", VLLM)
    # As its environment says, in which the catalog looks for the user's recipes.
    with patch.dict(os.environ, RIGUP_INVENTORY=str(folder / "own/lab.yaml")):
        return rigup("connect", "rig1", "--to", client, cwd=folder)


@pytest.mark.parametrize(
    ("client", "without"), [("opencode", "interleaved"), ("continue", "tool_use"), ("openai-python", "extra_body")]
)
def test_a_recipe_without_parsers_promises_no_tools_and_no_reasoning(tmp_path: Path, client: str, without: str) -> None:
    done = own_recipe(tmp_path, "tool_parser: null\nreasoning_parser: null\n", client)
    assert done.returncode == 0, done.stderr
    assert "  tool calls:     no\n  reasoning:      no\n" in done.stderr
    assert without not in done.stdout
    if client == "opencode":
        (model,) = json.loads(done.stdout)["provider"]["rig1-main"]["models"].values()
        assert (model["tool_call"], model["reasoning"]) == (False, False)


def test_a_recipe_without_vision_promises_no_images(connect: Connect) -> None:
    done = connect("--to", "opencode", recipe="vllm-nvfp4-cu130-text")
    (model,) = json.loads(done.stdout)["provider"]["rig1-main"]["models"].values()
    assert (model["attachment"], model["modalities"]["input"]) == (False, ["text"])
    assert "image_input" not in connect("--to", "continue", recipe="vllm-nvfp4-cu130-text").stdout


def test_a_model_with_another_switch_for_thinking_gets_that(connect: Connect) -> None:
    done = connect("--to", "openai-python", recipe="deepseek-v4-flash-2gpu")
    assert '    extra_body={"chat_template_kwargs": {"thinking": False}},\n' in done.stdout


LENGTH = "vllm-project/vllm/issues/42474"
VLLM_GUIDE = "docs.vllm.ai/en/stable/serving/integrations/claude_code/"


@pytest.mark.parametrize(
    ("client", "recipe", "sources"),
    [
        ("curl", VLLM, [LENGTH, "vllm-project/vllm/pull/33402"]),
        ("curl", SGLANG, []),
        ("opencode", VLLM, [LENGTH, "anomalyco/opencode/pull/30477"]),
        ("opencode", SGLANG, ["anomalyco/opencode/issues/20785"]),
        ("opencode", "deepseek-v4.1-flash",
         [LENGTH, "anomalyco/opencode/pull/30477", "code-yeongyu/oh-my-openagent/issues/4184"]),
        ("claude-code", VLLM, [LENGTH, "vllm-project/vllm/releases/tag/v0.11.1", "vllm-project/vllm/issues/44000",
                               VLLM_GUIDE, "anthropics/claude-code/issues/68522"]),
        ("claude-code", SGLANG, ["sgl-project/sglang/releases/tag/v0.5.9", VLLM_GUIDE,
                                 "anthropics/claude-code/issues/68522"]),
        ("cline", VLLM, [LENGTH, "cline/cline/issues/1984"]),
        ("continue", VLLM, [LENGTH, "continuedev/continue/pull/12591", "continuedev/continue/issues/5902"]),
        ("open-webui", VLLM, [LENGTH, "docs.openwebui.com/reference/env-configuration"]),
    ],
)  # fmt: skip
def test_the_traps_are_those_of_the_client_with_the_engine_and_the_model(
    connect: Connect, client: str, recipe: str, sources: list[str]
) -> None:
    lines = [line for line in connect("--to", client, recipe=recipe).stderr.splitlines() if line.startswith("trap: ")]
    found = [line.rpartition(" [https://")[2].removesuffix("]").removeprefix("github.com/") for line in lines]
    assert found == sources


def test_every_trap_has_a_source() -> None:
    assert all(trap.source.startswith("https://") for trap in TRAPS)


def test_a_model_name_with_a_slash_is_a_trap_for_claude_code(tmp_path: Path) -> None:
    done = own_recipe(tmp_path, "served_name: org/model\n", "claude-code")
    assert "trap: Claude Code cannot use a model name with a slash." in done.stderr


def test_a_host_without_a_lock_is_told_to_make_one(connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "inventory/lab.yaml").write_text("hosts: {rig1: {address: 192.0.2.11}}\n")
    done = rigup("connect", "rig1", "--to", "opencode", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the lock has no image vllm/vllm-openai:cu130-nightly: run `rigup lock`" in done.stderr


@pytest.fixture
def sshd(tmp_path: Path) -> Any:
    programs = tmp_path / "programs"
    programs.mkdir()
    with running_sshd(tmp_path, more=programs_first(programs)) as sshd:
        (programs / "cat").write_text("#!/bin/sh\n[ $2 = /etc/rigup/endpoints/main/key ] && echo s3cret-key\n")
        (programs / "cat").chmod(0o755)
        sshd.lab(endpoints=OPEN)
        lockfile.write(tmp_path / "lab.lock", lock())
        yield sshd


@pytest.mark.parametrize(
    ("client", "part"),
    [
        ("opencode", '"apiKey": "s3cret-key"'),
        ("claude-code", '"ANTHROPIC_AUTH_TOKEN": "s3cret-key"'),
        ("cline", '"apiKey": "s3cret-key"'),
        ("continue", "apiKey: s3cret-key\n"),
        ("open-webui", "OPENAI_API_KEYS=s3cret-key\n"),
        ("openai-python", 'api_key="s3cret-key")\n'),
    ],
)
def test_the_key_is_read_from_its_host_on_request(sshd: Sshd, client: str, part: str) -> None:
    words = ["box", "--to", client, "--with-key", "--inventory", str(sshd.folder / "lab.yaml")]
    done = rigup("connect", *words, cwd=sshd.folder)
    assert done.returncode == 0, done.stderr
    assert part in done.stdout
    assert "s3cret-key" not in done.stderr
    assert "It contains the key: keep it where only you can read it." in done.stderr
    assert "  key: " not in done.stderr


def test_a_command_line_never_gets_the_key(connect: Connect) -> None:
    done = connect("--to", "curl", "--with-key")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the key would be on curl's command line, which other users can read: leave --with-key out" in done.stderr


def test_there_is_no_key_on_loopback(connect: Connect) -> None:
    done = connect("--to", "opencode", "--with-key", endpoints={"main": {}})
    assert (done.returncode, done.stdout) == (1, "")
    assert "endpoint main listens on loopback only and needs no key" in done.stderr
