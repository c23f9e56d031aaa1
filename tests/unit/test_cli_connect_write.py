"""`rigup connect --write`: what is ours gets into the client's own file, and everything else in it stays."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rigup.lock import lockfile
from tests.unit.loopback_sshd import programs_first, running_sshd
from tests.unit.own_command import rigup
from tests.unit.sample import lock

FILES = {
    "opencode": ".config/opencode/opencode.json",
    "claude-code": ".claude/settings.json",
    "cline": ".cline/data/settings/providers.json",
    "continue": ".continue/config.yaml",
}
VARIABLES = ("XDG_CONFIG_HOME", "CLAUDE_CONFIG_DIR", "CLINE_DIR", "CONTINUE_GLOBAL_DIR")
OPEN = {"main": {"listen": "192.0.2.11", "allowed_networks": ["192.0.2.0/24"]}}


class Desk:
    """A user's home directory, and an inventory with `rig1`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir()

    def serve(self, **host: Any) -> None:
        inventory = {"hosts": {"rig1": {"address": "192.0.2.11", "endpoints": OPEN, **host}}}
        (self.folder / "lab.yaml").write_text(yaml.safe_dump(inventory))
        lockfile.write(self.folder / "lab.lock", lock())

    def connect(self, client: str, *words: str) -> subprocess.CompletedProcess[str]:
        inventory = str(self.folder / "lab.yaml")
        return rigup("connect", "rig1", "--to", client, *words, "--inventory", inventory, cwd=self.folder)

    def write(self, client: str, *words: str) -> str:
        """Run it with --write, which must succeed, and return what it prints."""
        done = self.connect(client, "--write", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, client: str) -> str:
        """Run it with --write, which must leave everything as it was, and return the message."""
        before = {path: path.read_bytes() for path in self.home.rglob("*") if path.is_file()}
        done = self.connect(client, "--write")
        assert done.returncode == 1, done.stdout
        assert {path: path.read_bytes() for path in self.home.rglob("*") if path.is_file()} == before
        return done.stderr

    def file(self, client: str, text: str | None = None) -> Path:
        """The client's file, with this text if any."""
        path = self.home / FILES[client]
        if text is not None:
            path.parent.mkdir(parents=True)
            path.write_text(text)
            path.chmod(0o644)
        return path


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk = Desk(tmp_path)
    monkeypatch.setenv("HOME", str(desk.home))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    desk.serve()
    return desk


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("client", FILES)
def test_a_file_that_is_not_there_is_made_and_a_second_time_changes_nothing(desk: Desk, client: str) -> None:
    path = desk.file(client)
    assert desk.write(client) == f"Wrote {path}.\n"
    assert path.read_text() == desk.connect(client).stdout
    assert mode(path) == 0o600
    before = path.stat()
    assert desk.write(client) == f"{path} has it already.\n"
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert list(path.parent.iterdir()) == [path]


SETTINGS = {
    "opencode": {"theme": "system", "provider": {"other": {"npm": "x", "models": {"m": {}}}}, "model": "other/m"},
    "claude-code": {"permissions": {"deny": ["Read(./.env)"]}, "env": {"EDITOR": "vi", "ANTHROPIC_MODEL": "old"}},
    "cline": {
        "version": 1,
        "lastUsedProvider": "anthropic",
        "providers": {
            "anthropic": {"settings": {"provider": "anthropic"}, "updatedAt": "now", "tokenSource": "manual"},
            "openai-compatible": {"settings": {"timeout": 5}, "updatedAt": "2026-12-01", "tokenSource": "manual"},
        },
    },
}
KEPT = {
    "opencode": [("theme",), ("provider", "other"), ("model",)],
    "claude-code": [("permissions",), ("env", "EDITOR")],
    "cline": [("lastUsedProvider",), ("providers", "anthropic"), ("providers", "openai-compatible", "updatedAt"),
              ("providers", "openai-compatible", "settings", "timeout")],
}  # fmt: skip


def at(data: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        data = data[key]
    return data


@pytest.mark.parametrize("client", SETTINGS)
def test_what_is_in_the_file_stays_and_what_it_was_is_kept_beside_it(desk: Desk, client: str) -> None:
    before = json.dumps(SETTINGS[client], indent="\t")
    path = desk.file(client, before)
    assert desk.write(client) == f"Changed {path}; what it was is in {path.name}.backup.\n"
    after = json.loads(path.read_text())
    for keys in KEPT[client]:
        assert at(after, keys) == at(SETTINGS[client], keys)
    assert list(after)[: len(SETTINGS[client])] == list(SETTINGS[client])
    assert "Qwen3.5-397B-A17B" in path.read_text()
    assert '\n\t"' in path.read_text()
    backup = path.with_name(f"{path.name}.backup")
    assert (backup.read_text(), mode(backup), mode(path)) == (before, 0o600, 0o644)
    assert desk.write(client) == f"{path} has it already.\n"
    assert backup.read_text() == before


def test_a_file_named_in_the_environment_is_the_clients(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, str(tmp_path / name))
    for client in FILES:
        desk.write(client)
    written = sorted(str(path.relative_to(tmp_path)) for name in VARIABLES for path in (tmp_path / name).rglob("*.*"))
    assert written == [
        "CLAUDE_CONFIG_DIR/settings.json",
        "CLINE_DIR/data/settings/providers.json",
        "CONTINUE_GLOBAL_DIR/config.yaml",
        "XDG_CONFIG_HOME/opencode/opencode.json",
    ]
    assert list(desk.home.iterdir()) == []


def test_opencodes_other_file_name_is_used_where_only_that_is_there(desk: Desk) -> None:
    other = desk.file("opencode", "{}").rename(desk.file("opencode").with_suffix(".jsonc"))
    assert desk.write("opencode").startswith(f"Changed {other};")
    assert not desk.file("opencode").exists()


def test_a_link_stays_a_link(desk: Desk, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.json"
    real.write_text("{}")
    path = desk.file("claude-code")
    path.parent.mkdir()
    path.symlink_to(real)
    desk.write("claude-code")
    assert path.is_symlink()
    assert "ANTHROPIC_BASE_URL" in real.read_text()


@pytest.mark.parametrize(
    ("client", "text", "message"),
    [
        ("opencode", '{\n  "theme": "x"\n  "model": 1\n}', ":3: is not valid JSON: Expecting ',' delimiter"),
        ("opencode", '{\n  "theme": "x",\n}', "Expecting property name enclosed in double quotes"),
        ("claude-code", "{", ":1: is not valid JSON"),
        ("claude-code", "[]", ":1: does not contain keys"),
        ("claude-code", '{"env": ["A=1"]}', ": env: does not contain keys"),
        ("cline", '{"providers": {"openai-compatible": null}}', "providers.openai-compatible: does not contain keys"),
        ("cline", '{"x": ' + "[" * 100_000, "is not valid JSON"),
        ("continue", "name: x\nmodels: [\n", "config.yaml:2: has a [ that"),
        ("continue", "name: x\nname: y\n", ":2: name: is already set in line 1"),
        ("continue", "models:\n  a: {}\n", ":1: models: is not a list"),
        ("continue", "- name\n", ":1: does not contain keys"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(desk: Desk, client: str, text: str, message: str) -> None:
    path = desk.file(client, text)
    said = desk.refused(client)
    assert said.startswith(str(path))
    assert message in said


@pytest.mark.parametrize("content", [b"\xff{}", None])
def test_a_file_that_cannot_be_read_is_refused(desk: Desk, content: bytes | None) -> None:
    path = desk.file("claude-code", "")
    if content is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(content)
    assert f"{path} cannot be read: " in desk.refused("claude-code")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{\n  // mine\n  "theme": "x"\n}', 2),
        ('{"theme": "x", /* two\nlines */ "a": 1}', 1),
        ('{\n"url": "http://x//y",\n"a": 1 // end\n}', 3),
    ],
)
def test_comments_in_json_are_not_lost(desk: Desk, text: str, line: int) -> None:
    path = desk.file("opencode", text)
    done = desk.connect("opencode", "--write")
    assert (done.returncode, path.read_text()) == (1, text)
    assert done.stderr == (f"{path}:{line}: has comments, which a change would lose: add what is printed by hand\n")
    # What is printed is what would have been written into a new file.
    assert json.loads(done.stdout) == json.loads(desk.connect("opencode").stdout)


def test_a_file_with_comments_that_has_it_already_is_left_alone(desk: Desk) -> None:
    text = "// mine\n" + desk.connect("opencode").stdout
    path = desk.file("opencode", text)
    assert desk.write("opencode") == f"{path} has it already.\n"
    assert path.read_text() == text


OURS = """\
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
HEAD = "name: Mine # my own\nversion: 1.0.0\nschema: v1\n"
OTHER = "  # the old one\n  - name: 'old'   # keep\n    provider: ollama\n    model: llama\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"{HEAD}models:\n{OTHER}# rules\nrules:\n  - Be brief\n",
         f"{HEAD}models:\n{OTHER}{OURS}# rules\nrules:\n  - Be brief\n"),
        (f"{HEAD}models:\n{OTHER}", f"{HEAD}models:\n{OTHER}{OURS}"),
        (f"{HEAD}models:\n{OTHER.rstrip()}", f"{HEAD}models:\n{OTHER}{OURS}"),
        (f"{HEAD}models: []\nrules: []\n", f"{HEAD}models:\n{OURS}rules: []\n"),
        (f"{HEAD}models: []  # none\n", f"{HEAD}models: # none\n{OURS}"),
        (f"{HEAD}models:\n", f"{HEAD}models:\n{OURS}"),
        (f"{HEAD}# no models\n", f"{HEAD}# no models\nmodels:\n" + OURS.replace("\n  ", "\n").removeprefix("  ")),
        (f"{HEAD}models:\n  - name: rig1/main # ours\n    provider: vllm\n    model: old\n# rules\nrules: []\n",
         f"{HEAD}models:\n{OURS}# rules\nrules: []\n"),
        (f"{HEAD}models:\n  - {{name: rig1/main, provider: vllm, model: old}} # ours\n{OTHER}",
         f"{HEAD}models:\n{OURS.rstrip()} # ours\n{OTHER}"),
        ("# nothing yet\n", "# nothing yet\nmodels:\n" + OURS.replace("\n  ", "\n").removeprefix("  ")
         + "name: Local\nversion: 1.0.0\nschema: v1\n"),
    ],
)  # fmt: skip
def test_only_our_lines_of_a_yaml_file_change(desk: Desk, before: str, after: str) -> None:
    path = desk.file("continue", before)
    desk.write("continue")
    assert path.read_text() == after
    assert path.with_name("config.yaml.backup").read_text() == before
    assert desk.write("continue") == f"{path} has it already.\n"


@pytest.mark.parametrize(
    "text",
    [
        f"{HEAD}models: [{{name: old, provider: ollama, model: llama}}]\n",
        "{name: Mine, version: 1.0.0, schema: v1}\n",
        f"{HEAD}models: &all\n- name: old\n  model: &m |\n    text\n\nothers: *all\n",
    ],
)
def test_a_yaml_file_in_another_form_is_refused_or_stays_right(desk: Desk, text: str) -> None:
    path = desk.file("continue", text)
    done = desk.connect("continue", "--write")
    if done.returncode:
        assert path.read_text() == text
        assert ": models: is not written one item below the other: add what is printed by hand" in done.stderr
        assert yaml.safe_load(done.stdout)["models"][0]["name"] == "rig1/main"
    else:
        assert [model["name"] for model in yaml.safe_load(path.read_text())["models"]] == ["old", "rig1/main"]


@pytest.mark.parametrize(
    ("client", "remedy"),
    [
        ("open-webui", "save what is printed, and pass it with `docker run --env-file`"),
        ("openai-python", "copy what is printed"),
        ("curl", "copy what is printed"),
    ],
)
def test_a_client_without_a_file_says_what_to_do(desk: Desk, client: str, remedy: str) -> None:
    assert desk.refused(client).endswith(f" has no file to write: {remedy}\n")


def test_a_directory_that_cannot_be_made_is_named(desk: Desk) -> None:
    (desk.home / ".claude").write_text("a file")
    assert "settings.json cannot be" in desk.refused("claude-code")


@pytest.mark.parametrize("client", FILES)
def test_a_file_with_a_key_is_its_users_alone_and_the_key_goes_when_it_is_not_wanted(
    tmp_path_factory: pytest.TempPathFactory, desk: Desk, client: str
) -> None:
    folder = tmp_path_factory.mktemp("sshd")
    (folder / "bin").mkdir()
    (folder / "bin/cat").write_text("#!/bin/sh\necho s3cret-key\n")
    (folder / "bin/cat").chmod(0o755)
    path = desk.file(client, "")
    desk.write(client)
    path.chmod(0o644)
    with running_sshd(folder, more=programs_first(folder / "bin")) as sshd:
        sshd.lab()
        box = yaml.safe_load((folder / "lab.yaml").read_text())["hosts"]["box"]
        desk.serve(**{key: value for key, value in box.items() if key != "endpoints"})
        assert "Changed" in desk.write(client, "--with-key")
        assert ("s3cret-key" in path.read_text(), mode(path)) == (True, 0o600)
        path.chmod(0o644)
        # As it should be, but for who may read it.
        assert "Changed" in desk.write(client, "--with-key")
        assert mode(path) == 0o600
        assert desk.write(client, "--with-key") == f"{path} has it already.\n"
    desk.write(client)
    assert "s3cret-key" not in path.read_text()
    assert mode(path.with_name(f"{path.name}.backup")) == 0o600
    assert sorted(os.listdir(path.parent)) == [path.name, f"{path.name}.backup"]
