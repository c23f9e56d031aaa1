"""The rigup command: output, exit codes, and the lock it moves."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rigup.cli.main import main
from rigup.lock import lockfile as locks
from tests.unit.loopback import Answer, Site, serving
from tests.unit.sample import REPO, TAG
from tests.unit.small_world import hub_pages, image_pages, packages, public_key, world

NAME, _, VERSION = TAG.rpartition(":")


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        yield site


@pytest.fixture
def inventory(site: Site, tmp_path: Path) -> Path:
    path = tmp_path / "lab.yaml"
    path.write_text(yaml.safe_dump({"defaults": world(site), "hosts": {"rig1": {"address": "10.0.0.11"}}}))
    return path


def test_recipes_are_listed_one_to_a_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("vllm-nvfp4-cu130 ") for line in lines) == 1
    assert "tool calls" in lines[0]


def test_version_is_the_one_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"rigup {project['version']}\n"


def test_settings_are_listed_with_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["key", "default", "what", "it", "is"]
    assert any(row.split()[:2] == ["driver_branch", "595"] for row in rows)


def test_lock_resolves_once_and_says_what(inventory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["lock", "--inventory", str(inventory), "--distro", "debian13"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert f"image {TAG}: (new) -> sha256:" in out
    assert "package debian13/driver-595 nvidia-driver-cuda: (new) -> 595.91.07-1" in out
    assert main(arguments) == 0
    assert "is complete" in capsys.readouterr().out


def test_lock_without_a_known_distribution_says_that_packages_come_later(
    inventory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lock", "--inventory", str(inventory)]) == 0
    assert "resolved by the first deploy" in capsys.readouterr().out


@pytest.fixture
def locked(inventory: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["lock", "--inventory", str(inventory), "--distro", "debian13"]) == 0
    capsys.readouterr()
    return inventory


def test_update_with_nothing_new_moves_nothing(locked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = locked.with_suffix(".lock").read_text()
    assert main(["update", "--inventory", str(locked)]) == 0
    assert "Nothing changed" in capsys.readouterr().out
    assert locked.with_suffix(".lock").read_text() == before
    assert main(["update", "--check", "--inventory", str(locked)]) == 0


BETTER = """\
id: better
title: One that ranks first
extends: vllm-nvfp4-cu130
status: verified
tool_calls: reliable
evidence: [{source: here, kind: assembled, says: it works, speeds: [{tokens: 99}]}]
"""


def test_the_choice_for_a_need_is_locked_and_update_moves_it(
    inventory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RIGUP_INVENTORY", str(inventory))
    data = yaml.safe_load(inventory.read_text())
    data["defaults"]["recipe"] = {"for": "agents", "engine": "vllm", "model": "Qwen3.5-397B-A17B"}
    inventory.write_text(yaml.safe_dump(data))
    key = "agents-4gpu-vllm-Qwen3.5-397B-A17B"
    assert main(["lock"]) == 0
    assert f"choice {key}: (new) -> vllm-nvfp4-cu130" in capsys.readouterr().out
    (inventory.parent / "recipes").mkdir()
    (inventory.parent / "recipes" / "better.yaml").write_text(BETTER)
    assert main(["lock"]) == 0
    assert "is complete" in capsys.readouterr().out
    moved = f"choice {key}: vllm-nvfp4-cu130 -> better\n"
    assert main(["update", "--check", "choices"]) == 2
    assert capsys.readouterr().out == moved
    assert main(["update", key]) == 0
    assert capsys.readouterr().out == moved
    assert locks.read(inventory.with_suffix(".lock")).choices == {key: "better"}
    assert main(["update", "agent-4gpu"]) == 1
    assert f"no entry named 'agent-4gpu': it has: {key}" in capsys.readouterr().err


def test_update_shows_what_moved_and_moves_it(locked: Path, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    old = locks.read(locked.with_suffix(".lock"))
    new = image_pages(site, NAME, VERSION, created="2026-05-01T00:00:00Z")
    hub_pages(site, "d" * 40)
    assert main(["update", "--inventory", str(locked)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert f"image {TAG}: {old.images[TAG].digest} -> {new}" in out
    assert f"checkpoint {REPO}@main: {old.checkpoints[f'{REPO}@main'].revision} -> {'d' * 40}" in out
    assert len(out) == 2
    assert locks.read(locked.with_suffix(".lock")).images[TAG].digest == new


def test_update_check_shows_it_and_leaves_the_lock(
    locked: Path, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    before = locked.with_suffix(".lock").read_text()
    image_pages(site, NAME, VERSION, created="2026-05-01T00:00:00Z")
    assert main(["update", "--check", "--inventory", str(locked)]) == 2
    assert f"image {TAG}: " in capsys.readouterr().out
    assert locked.with_suffix(".lock").read_text() == before


@pytest.mark.parametrize(
    ("what", "moves"),
    [
        (["images"], {"image"}),
        (["checkpoints"], {"checkpoint"}),
        ([TAG], {"image"}),
        ([REPO], {"checkpoint"}),
        (["docker"], {"package"}),
        (["docker-ce"], {"package"}),
        (["keys"], {"key"}),
        (["driver-595"], set()),
        (["images", "docker"], {"image", "package"}),
        ([], {"image", "checkpoint", "package", "key"}),
    ],
)
def test_update_moves_what_it_was_told_and_nothing_else(
    locked: Path, site: Site, capsys: pytest.CaptureFixture[str], what: list[str], moves: set[str]
) -> None:
    image_pages(site, NAME, VERSION, created="2026-05-01T00:00:00Z")
    hub_pages(site, "d" * 40)
    names = ("docker-ce", "docker-ce-cli", "containerd.io", "docker-buildx-plugin", "docker-compose-plugin")
    site.pages["/docker/debian/dists/trixie/stable/binary-amd64/Packages.gz"] = packages(
        *((n, "5:30.0.0-1") for n in names)
    )
    site.pages["/docker/debian/gpg"] = Answer(public_key("Docker", "renewed"))
    assert main(["update", *what, "--inventory", str(locked)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split(" ")[0] for line in lines if "->" in line} == moves


def test_update_of_an_unknown_entry_names_the_near_one(locked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["update", "driver-959", "--inventory", str(locked)]) == 1
    assert "no entry named 'driver-959': did you mean driver-595" in capsys.readouterr().err


def test_a_failed_update_leaves_the_lock(locked: Path, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    before = locked.with_suffix(".lock").read_text()
    site.pages.clear()
    assert main(["update", "--inventory", str(locked)]) == 1
    assert "registry_mirror: " in capsys.readouterr().err
    assert locked.with_suffix(".lock").read_text() == before


def test_a_wrong_inventory_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text("hosts: {rig1: {adress: a}}\n")
    assert main(["lock", "--inventory", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "lab.yaml:1: hosts.rig1.adress: unknown key" in captured.err


@pytest.mark.parametrize(
    "arguments", [[], ["frobnicate"], ["update", "--distro", "fedora"], ["report", "--bogus"], ["report", "a", "b"]]
)
def test_wrong_use_exits_with_1_as_2_means_something_else(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 1


@pytest.mark.parametrize(
    ("command", "codes"),
    [
        ([], "0 success, 1 failure (including wrong usage), 130 Ctrl-C. 2 is a result: changes are pending (`plan`)"),
        (["plan"], "0 nothing to change, 2 changes pending, 1 failure."),
        (["audit"], "0 everything is as planned, 2 findings or nothing deployed, 1 a check could not run."),
        (["accept"], "0 accepted or already known, 1 not accepted."),
        (["report"], "0 the run succeeded, 2 it did not, 1 there is no such run."),
        (["settings"], "0 success, 1 failure."),
        (["recipes"], "0 success, 2 no recipe matches, 1 failure."),
        (["check"], "0 no mistakes, 1 mistakes found."),
        (["show"], "0 success, 1 failure."),
        (["models"], "0 success, 1 a host is unreachable, or the removal was refused."),
        (["models", "rm"], "0 success, 1 failure."),
        (["status"], "0 all endpoints serve, 2 some do not"),
        (["diagnose"], "0 a cause is named, 2 no cause is known or only symptoms, 1 the log cannot be read."),
        (["logs"], "0 success, 2 there is no such line, 1 failure."),
        (["doctor"], "0 nothing fails, 1 something fails."),
        (["key"], "0 success, 1 failure."),
        (["lock"], "0 success, 1 failure."),
        (["update"], "0 success (with --check: nothing would change), 2 with --check: something would change"),
    ],
)
def test_the_help_of_each_command_explains_its_own_exit_codes(
    command: list[str], codes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Exit codes: {codes}" in shown
    assert shown.count("Exit codes") == 1
