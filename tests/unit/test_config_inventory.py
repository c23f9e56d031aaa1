"""The inventory file, and the data that pyinfra gets from it."""

import subprocess
import sys
from pathlib import Path

import pytest

from rigup.config.inventory import find_inventory, load_inventory
from rigup.config.settings import Settings
from rigup.errors import InputError, RigupError
from tests.unit.waiting import HANG_S

ROOT = Path(__file__).resolve().parent.parent.parent


def written(directory: Path, text: str) -> Path:
    path = directory / "lab.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def findings(directory: Path, text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_inventory(written(directory, text))
    return [line.removeprefix(f"{directory}/") for line in str(caught.value).splitlines()]


def test_a_host_takes_the_defaults_and_its_own_values_over_them(tmp_path: Path) -> None:
    inventory = load_inventory(
        written(
            tmp_path,
            "defaults: {driver_branch: 610, user: ops, sysctl: {vm.swappiness: 5}}\n"
            "hosts:\n"
            "  rig1: {address: 10.0.0.11}\n"
            "  rig2: {address: 10.0.0.12, driver_branch: 595, user: root, sysctl: {kernel.numa_balancing: 1}}\n",
        )
    )
    one, two = inventory.host("rig1"), inventory.host("rig2")
    assert (one.settings.driver_branch, two.settings.driver_branch) == (610, 595)
    assert (one.connection.user, two.connection.user) == ("ops", "root")
    # A value is replaced as a whole.
    assert two.settings.sysctl == {"kernel.numa_balancing": 1}
    assert one.settings.sysctl == {"vm.swappiness": 5}


def test_pyinfra_gets_the_connection_in_its_own_keys_and_the_settings_flat(tmp_path: Path) -> None:
    text = (
        "hosts: {rig1: {address: 10.0.0.11, port: 2222, user: ops, key: keys/lab, known_hosts: ./kh, reboot: never}}\n"
    )
    [(name, data)] = load_inventory(written(tmp_path, text)).pyinfra_hosts()
    assert name == "@rig/rig1"
    assert data == {
        "ssh_hostname": "10.0.0.11",
        "ssh_port": 2222,
        "ssh_user": "ops",
        "ssh_key": str(tmp_path / "keys" / "lab"),
        "ssh_known_hosts_file": str(tmp_path / "kh"),
        "reboot": "never",
        "rigup_lock": str(tmp_path / "lab.lock"),
        "rigup_inventory": str(tmp_path / "lab.yaml"),
        "rigup_places": {key: f"{tmp_path}/lab.yaml:1" for key in ("address", "port", "user", "key", "known_hosts")},
    }


def test_the_stock_connector_gets_plain_names(tmp_path: Path) -> None:
    inventory = load_inventory(written(tmp_path, "hosts: {rig1: {address: h}}\n"))
    assert inventory.pyinfra_hosts("ssh")[0][0] == "rig1"
    with pytest.raises(RigupError, match="use rig or ssh"):
        inventory.pyinfra_hosts("telnet")


def test_only_what_is_written_reaches_pyinfra(tmp_path: Path) -> None:
    [(_, data)] = load_inventory(written(tmp_path, "hosts: {a: {address: h, sudo: false}}\n")).pyinfra_hosts()
    assert {key: value for key, value in data.items() if not key.startswith("rigup_")} == {
        "ssh_hostname": "h",
        "_sudo": False,
    }


def test_all_mistakes_are_reported_at_once_with_file_line_and_key(tmp_path: Path) -> None:
    assert findings(
        tmp_path,
        "default:\n"
        "  recipe: x\n"
        "hosts:\n"
        "  rig1:\n"
        "    adress: 127.0.0.1\n"
        "    docker_version: 29.6\n"
        "    endpoints:\n"
        "      main: {gpu: all}\n",
    ) == [
        "lab.yaml:1: default: unknown key: did you mean defaults?",
        "lab.yaml:4: hosts.rig1.address: is missing: for example `address: 192.0.2.11`",
        "lab.yaml:5: hosts.rig1.adress: unknown key: did you mean address or peer_address?",
        "lab.yaml:6: hosts.rig1.docker_version: must be text, and YAML reads 29.6 as a number: put it in quotes",
        "lab.yaml:8: hosts.rig1.endpoints.main.gpu: unknown key: did you mean gpus?",
    ]


def test_a_wrong_default_is_reported_once_at_its_own_line(tmp_path: Path) -> None:
    assert findings(
        tmp_path, "defaults:\n  driver_branch: 470\nhosts:\n  rig1: {address: a}\n  rig2: {address: b}\n"
    ) == [
        "lab.yaml:2: defaults.driver_branch: 470 is not a driver branch for these GPUs: "
        "leave driver_branch out for the default; 580 is the oldest"
    ]


@pytest.mark.parametrize(("old", "new"), Settings.RENAMED.items())
def test_a_renamed_key_is_refused_at_its_line_with_its_new_name(tmp_path: Path, old: str, new: str) -> None:
    *parents, key = old.replace("*", "main").split(".")
    lines = ["hosts:", "  rig1:", "    address: a"]
    for depth, part in enumerate((*parents, key), start=2):
        lines.append(f"{'  ' * depth}{part}:")
    lines[-1] += " 1"
    where = ".".join((*parents, key))
    assert findings(tmp_path, "\n".join(lines) + "\n") == [
        f"lab.yaml:{len(lines)}: hosts.rig1.{where}: was renamed: use {new}"
    ]


def test_a_setting_at_the_top_belongs_under_the_defaults(tmp_path: Path) -> None:
    [finding] = findings(tmp_path, "recipe: x\nhosts: {rig1: {address: a}}\n")
    assert finding == "lab.yaml:1: recipe: unknown key: move settings for all hosts under `defaults:`"


def test_a_key_written_twice_is_refused(tmp_path: Path) -> None:
    text = "hosts:\n  rig1:\n    address: a\n    recipe: x\n    recipe: y\n"
    assert findings(tmp_path, text) == ["lab.yaml:5: hosts.rig1.recipe: is already set in line 4: keep one"]


def test_two_names_for_one_host_are_refused(tmp_path: Path) -> None:
    [finding] = findings(tmp_path, "hosts:\n  rig1: {address: a}\n  rig2: {address: a}\n")
    assert finding.startswith("lab.yaml:3: hosts.rig2.address: is also the address of rig1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "contains no keys"),
        ("- rig1\n", "contains no keys"),
        ("hosts:\n", "lists no host"),
        ("defaults: {}\n", "lists no host"),
        ("hosts: [rig1]\n", "must contain keys"),
        ("hosts: {rig1: 10.0.0.1}\n", "must contain keys"),
        ("hosts: {'rig 1': {address: a}}\n", "is not a host name"),
        ("hosts: {rig1: {address: a\n", "has a { that is not closed"),
        ("defaults: {address: a}\nhosts: {rig1: {}}\n", "cannot be the same for all hosts"),
        (
            "hosts: {rig1: {address: a, endpoints: {main: {listen: 0.0.0.0}}}}\n",
            "must be a specific address, not a wildcard",
        ),
        ("hosts: {rig1: {address: a, endpoints: [main]}}\n", "hosts.rig1.endpoints"),
        ("hosts: {rig1: {address: a, port: '22'}}\n", "remove the quotes"),
        ("hosts: {rig1: {address: a, user: 'x; rm'}}\n", "hosts.rig1.user"),
    ],
)
def test_invalid_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    assert words in "\n".join(findings(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_inventory(tmp_path / "nowhere.yaml")


def test_an_unknown_host_suggests_a_similar_one(tmp_path: Path) -> None:
    inventory = load_inventory(written(tmp_path, "hosts: {rig1: {address: h}}\n"))
    with pytest.raises(RigupError, match="did you mean rig1"):
        inventory.host("rig11")


def test_the_users_own_inventory_wins_over_the_lab_and_a_named_one_over_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, state, other = tmp_path / "inventory", tmp_path / "state", tmp_path / "other.yaml"
    for directory in (own, state):
        directory.mkdir()
    monkeypatch.delenv("RIGUP_INVENTORY", raising=False)
    monkeypatch.setenv("RIGUP_LAB_STATE", str(state))
    with pytest.raises(RigupError, match="make lab"):
        find_inventory(own)
    (state / "lab.yaml").touch()
    assert find_inventory(own) == state / "lab.yaml"
    (own / "lab.yaml").touch()
    assert find_inventory(own) == own / "lab.yaml"
    monkeypatch.setenv("RIGUP_INVENTORY", str(other))
    with pytest.raises(RigupError, match="is not a file"):
        find_inventory(own)
    other.touch()
    assert find_inventory(own) == other


def test_a_page_is_named_for_all_hosts_from_the_inventorys_directory(tmp_path: Path) -> None:
    rest = "hosts: {rig1: {address: 10.0.0.11}}\n"
    assert load_inventory(written(tmp_path, rest)).status_page is None
    assert load_inventory(written(tmp_path, f"status_page: rigs.html\n{rest}")).status_page == tmp_path / "rigs.html"
    for wrong in ("rig1", "5", "[rigs.html]", '"rigs\\n.html"'):
        assert findings(tmp_path, f"status_page: {wrong}\n{rest}") == [
            "lab.yaml:1: status_page: is not the path of a page: for example status.html"
        ]


def test_the_example_is_a_valid_inventory() -> None:
    inventory = load_inventory(ROOT / "inventory" / "lab.example.yaml")
    assert set(inventory.hosts) == {"rig1", "rig2"}


def pyinfra(inventory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("pyinfra"), "inventory/lab.py", "debug-inventory", *arguments],
        cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": "/nonexistent",
            "RIGUP_INVENTORY": str(inventory),
            "RIGUP_CONNECTOR": "ssh",
        },
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )


def test_pyinfra_reads_the_hosts_as_group_lab_with_defaults_below_and_data_above(tmp_path: Path) -> None:
    ran = pyinfra(
        written(tmp_path, "hosts: {rig1: {address: 127.0.0.1, driver_branch: 610}}\n"), "--data", "reboot=never"
    )
    assert ran.returncode == 0
    shown = ran.stdout + ran.stderr
    assert "--> Groups: lab" in shown
    assert '"driver_branch": 610' in shown
    assert '"reboot": "never"' in shown
    assert '"model_store": "/srv/models"' in shown


def test_pyinfra_shows_a_mistake_as_one_message_without_a_traceback(tmp_path: Path) -> None:
    ran = pyinfra(written(tmp_path, "hosts: {rig1: {adress: 127.0.0.1}}\n"))
    assert ran.returncode == 1
    assert "lab.yaml:1: hosts.rig1.adress: unknown key: did you mean address or peer_address?" in ran.stderr
    assert "Traceback" not in ran.stdout + ran.stderr
