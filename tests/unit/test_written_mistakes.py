"""What people write into an inventory by mistake, and what `rigup status` then says, word for word.

Most of these are from public trackers of Ansible, Docker Compose and YAML tools: tabs, Norway's `no`, ports in base 60,
versions that lose a zero, merge conflicts, templates, typographic quotes, no-break spaces.
"""

from __future__ import annotations

import socket
from pathlib import Path
from random import Random

import pytest
import yaml

from rigup.catalog.check_names import check_names
from rigup.catalog.loader import default_catalog
from rigup.config.inventory import load_inventory
from rigup.errors import InputError
from tests.unit.own_address import OWN_ADDRESS
from tests.unit.own_command import rigup
from tests.unit.sample import OWN

ROOT = Path(__file__).resolve().parents[2]
RIG1 = "hosts:\n  rig1:\n    address: 10.0.0.1\n"
MISTAKES = {row["why"]: row for row in yaml.safe_load((ROOT / "tests/data/written_mistakes.yaml").read_text())}
NO_TEXT: dict[str, tuple[bytes, str]] = {
    "UTF-16": (RIG1.encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
    "UTF-16 without its mark": (RIG1.encode("utf-16-le"), "is UTF-16 text: save it as UTF-8"),
    "Latin-1": (
        "hosts:\n  # B\xfcro\n".encode("latin-1"),
        "2: is not UTF-8 text: it has the byte 0xfc: save it as UTF-8, if it is the right file",
    ),
    "a NUL": (b"hosts:\n  rig1: \0\n", "2: has the control character U+0000: remove it, if it is the right file"),
    "brackets": (b"hosts: " + b"[" * 1_000_000, "1: is nested more than 64 deep: simplify it"),
    "ten megabytes of brackets": (b"[" * 10_000_000, "has more than 2097152 bytes: is it the right file?"),
    "a file of zeros": (b"\0" * 4096, "1: has the control character U+0000: remove it, if it is the right file"),
}


def told(folder: Path, text: str | bytes) -> list[str]:
    """The lines that `rigup status` prints about this inventory, without its path."""
    lab = folder / "lab.yaml"
    lab.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = rigup("status", "--inventory", str(lab), cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    return [line.removeprefix(f"{lab}:").removeprefix(" ") for line in done.stderr.splitlines()]


@pytest.mark.parametrize("why", MISTAKES)
def test_a_mistake_is_named_with_line_meaning_and_example(tmp_path: Path, why: str) -> None:
    assert told(tmp_path, MISTAKES[why]["text"]) == MISTAKES[why]["told"]


@pytest.mark.parametrize("why", NO_TEXT)
def test_what_is_no_text_of_a_person_is_named(tmp_path: Path, why: str) -> None:
    content, line = NO_TEXT[why]
    assert told(tmp_path, content) == [line]


PIECES = ["hosts:", ":", " ", "\n", "- ", "[", "]", "{", "}", "&a ", "*a", "<<: ", "? ", "!!int ", "'", '"', "~", "|\n",
          ",", "\t", "#", "---\n", "endpoints:\n", "@", "%", "`", "no: ", "x-a: ", "{{ a }}", "\xa0"]  # fmt: skip


def test_behind_a_tab_many_brackets_are_still_brackets(tmp_path: Path) -> None:
    assert told(tmp_path, "hosts:\n\ta: 1\nb: " + "[" * 90_000) == [
        "2: is indented with a tab: use spaces, two for each level",
        "3: is nested more than 64 deep: simplify it",
    ]


def test_whatever_becomes_of_a_file_is_said_in_lines_of_it(tmp_path: Path) -> None:
    texts, lab, chance = [row["text"] for row in MISTAKES.values()], tmp_path / "lab.yaml", Random(1)
    for _ in range(1500):
        text = chance.choice(texts)
        for _ in range(chance.randint(1, 4)):
            at = chance.randint(0, len(text))
            text = text[:at] + chance.choice([*PIECES, ""]) + text[at + chance.choice([0, 0, 3]) :]
        lab.write_text(text)
        try:
            load_inventory(lab)
        except InputError as error:
            last = len(lab.read_text().splitlines()) + 1
            assert all(finding.line is None or 1 <= finding.line <= last for finding in error.findings), text


SEVERAL = """hosts:
  rig1:
\taddress: ops@10.98.0.12:2222
    kernel_args: iommu=pt
   sudo: 'yes'
    on: true
    waivers:
      gpu-lanes: {reason: slow, until: 31.01.2027}
      disk-space: {reason: until spring, until: 2027-02-30}
    user: @ops
    port: 22:22
    port: 22
  rig2:
  address: 10.98.0.298
  rig3: {address: c, endpoints: {main: {listen: 10.0.0.1, allowed_networks: 10.0.0.0/24}}}
"""


def test_all_mistakes_are_told_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    assert told(tmp_path, SEVERAL) == [
        "3: is indented with a tab: use spaces, two for each level",
        "3: hosts.rig1.address: 'ops@10.98.0.12:2222' is an address with a user and a port: write "
        "`address: 10.98.0.12`, `user: ops`, `port: 2222`, each on its own line",
        "4: hosts.rig1.kernel_args: must be a list: for example [iommu=pt]",
        "5: is indented by 3 spaces, and the lines above it by 4 or 2: indent it by 4 spaces",
        "5: hosts.rig1.sudo: must be true or false, got the text 'yes': write true or false, without quotes",
        '6: hosts.rig1.on: is a key that YAML reads as a boolean: write "on", in quotes',
        "8: hosts.rig1.waivers.gpu-lanes: there is no finding 'gpu-lanes': did you mean gpus-lanes?",
        "8: hosts.rig1.waivers.gpu-lanes.reason: 'slow' is too short: a reason has at least 8 characters: say why the "
        "finding does no harm, for whoever reads it when the waiver ends",
        "8: hosts.rig1.waivers.gpu-lanes.until: '31.01.2027' is not a day: write year-month-day, "
        "for example 2027-01-31",
        "9: hosts.rig1.waivers.disk-space.until: '2027-02-30' is not a valid timestamp: day is out of range for month: "
        "correct or quote it",
        "10: has a value or key that begins with @: put it in quotes",
        "10: hosts.rig1.user: '@ops' is not a user name: use letters, digits, _ . and -, for example ops",
        "11: hosts.rig1.port: is 22:22, which YAML reads as the number 1342: write a number in decimal digits, and put "
        "text in quotes",
        "12: hosts.rig1.port: is already set in line 11: keep one",
        "14: hosts.address: is indented one level too little: indent it by two more spaces, below `rig2:`",
        "14: hosts.rig2.address: '10.98.0.298' is not an IP address: 298 is above 255: for example 192.0.2.11",
        "15: hosts.rig3.endpoints.main.allowed_networks: must be a list: for example [10.0.0.0/24]",
    ]


def test_a_plan_tells_the_same_before_it_asks_a_host(tmp_path: Path) -> None:
    lab = tmp_path / "lab.yaml"
    lab.write_text("hosts:\n  rig1:\n  address: 10.98.0.298\n")
    done = rigup("plan", "--inventory", str(lab), cwd=ROOT)
    assert done.returncode == 1
    assert (
        f"--> The inventory cannot be used:\n"
        f"{lab}:3: hosts.address: is indented one level too little: indent it by two more spaces, below `rig1:`\n"
        f"{lab}:3: hosts.rig1.address: '10.98.0.298' is not an IP address: 298 is above 255: for example 192.0.2.11\n"
    ) in done.stdout


TYPOS = """defaults:
  driver_branch: 591
hosts:
  rig1: {{address: {address}, port: {port}, recipe: vllm-nvfp4-cu13}}
  rig2:
    address: localhost
    port: {port}
    driver_branch: 959
    endpoints: {{main: {{recipe: vllm-nvfp4-cu130-tex}}}}
"""


def test_names_that_do_not_exist_are_told_before_a_host_is_asked(tmp_path: Path) -> None:
    with socket.create_server((OWN_ADDRESS, 0)) as host:
        host.setblocking(False)
        lab = tmp_path / "lab.yaml"
        lab.write_text(TYPOS.format(address=OWN_ADDRESS, port=host.getsockname()[1]))
        for command in (("plan",), ("lock",)):
            done = rigup(*command, "--inventory", str(lab), cwd=ROOT)
            assert done.returncode == 1
            lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(str(lab))]
            assert lines == [
                f"{lab}:2: defaults.driver_branch: there is no driver branch 591: did you mean 595 or 590?",
                f"{lab}:4: hosts.rig1.recipe: there is no recipe 'vllm-nvfp4-cu13': did you mean vllm-nvfp4-cu130 or "
                "vllm-nvfp4-cu130-text or vllm-nvfp4-cu130-mtp5?",
                f"{lab}:8: hosts.rig2.driver_branch: there is no driver branch 959: did you mean 595 or 590?",
                f"{lab}:9: hosts.rig2.endpoints.main.recipe: there is no recipe 'vllm-nvfp4-cu130-tex': did you mean "
                "vllm-nvfp4-cu130-text or vllm-nvfp4-cu130 or vllm-nvfp4-cu130-mtp5?",
            ]
        with pytest.raises(BlockingIOError):
            host.accept()


def test_a_branch_that_is_newer_than_rigup_is_left_to_the_lock(tmp_path: Path) -> None:
    lab = tmp_path / "lab.yaml"
    lab.write_text("hosts: {rig1: {address: a, driver_branch: 640}}\n")
    check_names(load_inventory(lab), default_catalog())


def test_keys_for_anchors_are_ignored(tmp_path: Path) -> None:
    lab = tmp_path / "lab.yaml"
    lab.write_text(
        "x-ops: &ops {user: ops, x-note: old hosts}\nx-2: [1]\ndefaults: {x-why: disks, driver_branch: 610}\n"
        "hosts:\n  rig1:\n    <<: *ops\n    address: a\n    x-rack: 7\n  x-2: {address: b}\n"
    )
    inventory = load_inventory(lab)
    assert {name: host.connection.user for name, host in inventory.hosts.items()} == {"rig1": "ops", "x-2": None}
    assert [dict(host.written) for host in inventory.hosts.values()] == [{"driver_branch": 610}] * 2


@pytest.mark.parametrize("text", ["\ufeff" + RIG1, RIG1.replace("\n", "\r\n"), RIG1.replace("\n", "\r")])
def test_marks_and_line_ends_of_other_systems_are_read(tmp_path: Path, text: str) -> None:
    lab = tmp_path / "lab.yaml"
    lab.write_bytes(text.encode())
    assert load_inventory(lab).host("rig1").connection.address == "10.0.0.1"


def test_a_recipe_of_the_user_has_the_same_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    monkeypatch.setenv("RIGUP_INVENTORY", str(tmp_path / "lab.yaml"))
    (tmp_path / "lab.yaml").write_text(RIG1)
    mine = folder / "mine.yaml"
    mine.write_text(OWN.format(base="vllm-nvfp4-cu130") + "caveats: slow\ngpus: '4'\nenv: {NCCL_DEBUG: on}\ntitle: x\n")
    done = rigup("check", "mine", cwd=tmp_path)
    assert (done.stdout + done.stderr).splitlines() == [
        f"{mine}:7: caveats: must be a list: for example [slow] [recipe-schema]",
        f"{mine}:8: gpus: must be a number, got the text '4': remove the quotes [recipe-schema]",
        f"{mine}:9: env.NCCL_DEBUG: must be text, and YAML reads on as true: put it in quotes [recipe-schema]",
        f"{mine}:10: title: is already set in line 2: keep one [recipe-schema]",
    ]
