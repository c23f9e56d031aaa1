"""The real clients with the configuration that `rigup connect` gives them: a streamed chat and a call of a tool.

Each runs in a network namespace of its own with the stand-in engine at the host's address, so nothing else is asked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from rigup.lock import lockfile
from tests.clients.installed import HERE, node_modules
from tests.unit.own_command import rigup
from tests.unit.sample import lock
from tests.unit.waiting import HANG_S

ROOT = Path(__file__).resolve().parents[2]
MODEL = "Qwen3.5-397B-A17B"
ADDRESS = "192.0.2.11"
KEY = "a-key-of-rig1"
VARIABLE = "RIGUP_KEY_RIG1_MAIN"
# What they would do beside their work; there is no network for it.
QUIET = {
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}


@pytest.fixture(scope="session")
def clients() -> Path:
    return node_modules()


@pytest.fixture(scope="session")
def unshare() -> list[str]:
    """The command that runs another in namespaces of its own; whatever that leaves running ends with it."""
    argv = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    argv += [] if os.geteuid() == 0 else ["--map-root-user"]
    if subprocess.run([*argv, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces for users here")
    return argv


@dataclass
class Desk:
    """A user's home directory and a directory with work, next to an inventory."""

    folder: Path
    unshare: list[str]
    url: str = f"http://{ADDRESS}:8000"

    def connect(self, *words: str) -> str:
        """Run `rigup connect` for this user and return what it prints."""
        done = rigup("connect", *words, "--inventory", str(self.folder / "lab.yaml"), cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run(self, *argv: str | Path, call: tuple[str, Any] | None = None, **variables: str) -> str:
        """Run a client beside the engine, which may be ordered to call a tool, and return what the client says."""
        ordered = ["--call", call[0], json.dumps(call[1])] if call else []
        engine = [sys.executable, "-m", "tests.clients.engine", "--url", self.url, "--model", MODEL]
        done = subprocess.run(
            [*self.unshare, *engine, "--record", self.folder / "record", *ordered, "--", *argv],
            cwd=self.folder / "work",
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder / "home"), "PYTHONPATH": str(ROOT), **variables},
            capture_output=True,
            text=True,
            timeout=HANG_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def asked(self, path: str) -> list[dict[str, Any]]:
        """The requests to a path. All that were made have the key."""
        requests = [json.loads(line) for line in (self.folder / "record").read_text().splitlines()]
        for request in requests:
            assert request["headers"].get("authorization") == f"Bearer {KEY}", request
        return [request["body"] for request in requests if request["path"].partition("?")[0] == path]


@pytest.fixture
def desk(tmp_path: Path, unshare: list[str], monkeypatch: pytest.MonkeyPatch) -> Desk:
    endpoint = {"listen": ADDRESS, "allowed_networks": ["192.0.2.0/24"]}
    hosts = {"rig1": {"address": ADDRESS, "endpoints": {"main": endpoint}}, "rig2": {"address": "192.0.2.12"}}
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump({"hosts": hosts}))
    lockfile.write(tmp_path / "lab.lock", lock())
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "work/note.txt").write_text("the note says marzipan\n")
    for name in ("XDG_CONFIG_HOME", "CLAUDE_CONFIG_DIR", "CLINE_DIR", "CONTINUE_GLOBAL_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return Desk(tmp_path, unshare)


def test_opencode_calls_a_tool_and_chats_and_returns_the_reasoning(desk: Desk, clients: Path) -> None:
    program = clients / "opencode-linux-x64-baseline/bin/opencode"
    model = f"rig1-main/{MODEL}"
    desk.connect("rig1", "--to", "opencode", "--write")
    call = ("read", {"filePath": str(desk.folder / "work/note.txt")})
    said = desk.run(program, "run", "--model", model, "Read the note.", call=call, **{VARIABLE: KEY, **QUIET})
    assert "The tool answered:" in said and "marzipan" in said
    *_, last = desk.asked("/v1/chat/completions")
    assert (last["model"], last["stream"]) == (MODEL, True)
    assert last["max_tokens"] <= 32768
    answers = [message for message in last["messages"] if message["role"] == "assistant"]
    assert [answer["reasoning"] for answer in answers] == ["I was told what to do."]


def test_opencode_knows_the_limits_and_abilities_of_the_model(desk: Desk, clients: Path) -> None:
    desk.connect("rig1", "--to", "opencode", "--write")
    program = clients / "opencode-linux-x64-baseline/bin/opencode"
    said = desk.run(program, "models", "rig1-main", "--verbose", **{VARIABLE: KEY, **QUIET})
    head, _, description = said.partition("\n")
    assert head == f"rig1-main/{MODEL}"
    model = json.loads(description)
    assert model["limit"] == {"context": 262144, "output": 32768}
    able = model["capabilities"]
    assert (able["toolcall"], able["reasoning"], able["interleaved"]) == (True, True, {"field": "reasoning"})
    assert (able["attachment"], able["input"]["image"]) == (True, True)


def test_cline_calls_a_tool_and_chats(desk: Desk, clients: Path) -> None:
    program = clients / "@cline/cli-linux-x64/bin/cline"
    desk.connect("rig1", "--to", "cline", "--write")
    call = ("read_files", {"paths": [str(desk.folder / "work/note.txt")]})
    said = desk.run(program, "Read the note.", call=call, OPENAI_API_KEY=KEY)
    assert "The tool answered:" in said and "marzipan" in said
    first, second = desk.asked("/v1/chat/completions")
    assert (first["model"], first["stream"]) == (MODEL, True)
    assert [message["role"] for message in second["messages"]][-2:] == ["assistant", "tool"]


def test_claude_code_calls_a_tool_and_chats_and_knows_the_context(desk: Desk, clients: Path) -> None:
    program = clients / "@anthropic-ai/claude-code-linux-x64/claude"
    desk.connect("rig1", "--to", "claude-code", "--write")
    more = {"ANTHROPIC_AUTH_TOKEN": KEY, **QUIET}
    call = ("Read", {"file_path": str(desk.folder / "work/note.txt")})
    said = desk.run(program, "-p", "--output-format", "json", "Read the note.", call=call, **more)
    result = json.loads(said)
    assert result["result"].startswith("The tool answered:") and "marzipan" in result["result"]
    assert result["modelUsage"][MODEL]["contextWindow"] == 262144
    first, _ = desk.asked("/v1/messages")
    assert (first["model"], first["stream"], first["max_tokens"]) == (MODEL, True, 32768)
    assert "x-anthropic-billing-header" not in json.dumps(first)


STREAM_AND_CALL = """
import json
chat = dict(model="{model}", messages=[{{"role": "user", "content": "Reply with exactly: blueberry"}}])
print("".join(part.choices[0].delta.content or "" for part in client.chat.completions.create(**chat, stream=True)))
tool = {{"type": "function", "function": {{"name": "get_weather", "parameters": {{"type": "object"}}}}}}
call = client.chat.completions.create(**chat, tools=[tool]).choices[0].message.tool_calls[0].function
print(call.name, json.loads(call.arguments))
"""


def test_the_python_package_runs_what_is_printed_and_streams_and_calls_a_tool(desk: Desk) -> None:
    program = desk.folder / "work/ask.py"
    program.write_text(desk.connect("rig1", "--to", "openai-python") + STREAM_AND_CALL.format(model=MODEL))
    said = desk.run(sys.executable, program, call=("get_weather", {"city": "Rome"}), **{VARIABLE: KEY})
    assert said.splitlines() == ["I have no orders.", "blueberry", "get_weather {'city': 'Rome'}"]
    first, *_ = desk.asked("/v1/chat/completions")
    assert (first["max_tokens"], first["chat_template_kwargs"]) == (512, {"enable_thinking": False})


def test_a_shell_runs_the_printed_commands(desk: Desk) -> None:
    desk.url = "http://127.0.0.1:8000"
    models, answer = desk.run("sh", "-ec", desk.connect("rig2", "--to", "curl").replace("\n", "; echo\n")).splitlines()
    assert json.loads(models)["data"][0]["id"] == MODEL
    assert json.loads(answer)["choices"][0]["message"]["content"] == "I have no orders."


def test_a_shell_passes_the_key_through_a_pipe(desk: Desk) -> None:
    programs = desk.folder / "bin"
    programs.mkdir()
    (programs / "rigup").write_text(
        f'#!/bin/sh\necho "$*" >> {desk.folder}/words\necho "Authorization: Bearer {KEY}"\n'
    )
    (programs / "rigup").chmod(0o755)
    printed = desk.connect("rig1", "--to", "curl")
    desk.run("sh", "-ec", printed, PATH=f"{programs}:{os.environ['PATH']}")
    assert (desk.folder / "words").read_text() == "key rig1/main --header\n" * 2
    assert len(desk.asked("/v1/models")) == len(desk.asked("/v1/chat/completions")) == 1


def test_continues_own_schema_takes_its_file(desk: Desk, clients: Path) -> None:
    desk.connect("rig1", "--to", "continue", "--write")
    file = desk.folder / "home/.continue/config.yaml"
    done = subprocess.run(["node", HERE / "continue_schema.mjs", clients, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == yaml.safe_load(file.read_text())


def test_the_lock_of_the_clients_names_no_registry_and_every_checksum() -> None:
    packages = json.loads((HERE / "package-lock.json").read_text())["packages"]
    assert not [name for name, package in packages.items() if "resolved" in package]
    assert all(package["integrity"].startswith("sha512-") for name, package in packages.items() if name)
