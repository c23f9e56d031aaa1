"""HOST[/ENDPOINT] on the command line: what is found, and what is refused with a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from rigup.cli._hosts import find_host, find_targets
from rigup.cli._status_data import select
from rigup.cli.main import main
from rigup.config.inventory import Inventory, load_inventory
from rigup.errors import RigupError
from tests.unit.status_sample import endpoint, host


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
