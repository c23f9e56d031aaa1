"""HOST[/ENDPOINT] on the command line: what is found, and what is refused with a remedy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rigup.cli._hosts import find_host, find_targets
from rigup.cli._status_data import select
from rigup.cli.main import main
from rigup.config.inventory import Inventory, load_inventory
from rigup.errors import RigupError
from tests.unit import warm_pyinfra
from tests.unit.loopback_sshd import ROOT
from tests.unit.status_sample import endpoint, host
from tests.unit.waiting import HANG_S


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    path = tmp_path / "lab.yaml"
    endpoints = "{main: {gpus: [0, 1, 2, 3]}, small: {gpus: [4, 5, 6, 7], port: 8001}}"
    rig1 = f"rig1: {{address: 192.0.2.1, endpoints: {endpoints}}}"
    path.write_text(f"hosts: {{{rig1}, rig2: {{address: 192.0.2.2}}}}\n")
    return load_inventory(path)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], ["rig1", "rig2"]),
        (["rig2"], ["rig2"]),
        (["rig1/small", "rig1/main", "rig2"], ["rig1/small", "rig1/main", "rig2"]),
    ],
)
def test_words_name_hosts_and_endpoints_and_no_words_name_all_hosts(
    inventory: Inventory, words: list[str], found: list[str]
) -> None:
    targets = find_targets(inventory, words)
    assert [target.host.name + (f"/{target.endpoint}" if target.endpoint else "") for target in targets] == found


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rig3", "no host is named 'rig3': did you mean rig"),
        ("rig1/smal", "rig1 has no endpoint 'smal': did you mean small?"),
        ("rig1/x", "rig1 has no endpoint 'x': endpoints: main, small"),
        ("rig1/", "rig1 has no endpoint '': endpoints: main, small"),
        ("", "no host is named ''"),
    ],
)
def test_unknown_names_are_refused_with_similar_ones(
    inventory: Inventory, capsys: pytest.CaptureFixture[str], word: str, message: str
) -> None:
    with pytest.raises(RigupError) as caught:
        find_targets(inventory, [word])
    assert message in str(caught.value)
    for command in ("status", "key"):
        assert main([command, word, "--inventory", str(inventory.path)]) == 1
        assert message in capsys.readouterr().err


def test_commands_about_whole_hosts_refuse_an_endpoint(inventory: Inventory) -> None:
    assert find_host(inventory, "rig1").name == "rig1"
    with pytest.raises(RigupError, match="rig1/main: this command works on whole hosts: write rig1"):
        find_host(inventory, "rig1/main")


@pytest.mark.parametrize(
    ("words", "shown"),
    [(["rig1"], ["main", "small"]), (["rig1/main"], ["main"]), (["rig1/main", "rig1"], ["main", "small"])],
)
def test_the_status_has_only_the_endpoints_that_are_named(
    inventory: Inventory, words: list[str], shown: list[str]
) -> None:
    selected = select(host(endpoint(), endpoint(name="small")), [t.endpoint for t in find_targets(inventory, words)])
    assert [each.name for each in selected.endpoints] == shown


@pytest.mark.parametrize(
    ("option", "pattern", "message"),
    [
        ("--limit", "rig3", "no host is named 'rig3': did you mean rig"),
        ("--limit", "x*", "no host is named 'x*': hosts: rig1, rig2"),
        ("--exclude", "rgi2", "no host is named 'rgi2': did you mean rig2"),
    ],
)
def test_a_deploy_refuses_a_limit_that_matches_no_host(
    inventory: Inventory, option: str, pattern: str, message: str
) -> None:
    done = deploy(inventory, option, pattern)
    assert done[0] == 1
    assert f"--> {option}: {inventory.path}: {message}" in done[1]
    assert "Connecting" not in done[1]


@pytest.mark.parametrize("pattern", ["rig1", "rig*", "lab"])
def test_a_deploy_takes_hosts_patterns_and_the_group_of_all(inventory: Inventory, pattern: str) -> None:
    assert "Connecting" in deploy(inventory, "--limit", pattern, "--exclude", "rig?")[1]


def deploy(inventory: Inventory, *options: str) -> tuple[int, str]:
    """The exit code of a deploy that would do nothing, and what it says."""
    folder = inventory.path.parent
    (folder / "deploy.py").touch()
    environment = {**os.environ, "RIGUP_INVENTORY": str(inventory.path)}
    arguments = [str(ROOT / "inventory/lab.py"), "deploy.py", "-y", *options]
    done = warm_pyinfra.run(arguments, folder, environment, "", HANG_S)
    return done.returncode, done.stdout + done.stderr
