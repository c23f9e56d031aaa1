"""What rigup refuses, on one bare host: a clear message with a remedy, an exit code, and no change."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from lab import machine, world
from lab.machine import Host
from lab.settings import GATEWAY, REGISTRY_PORT
from tests.lab.rigs import Result, Rigs

NAME = "rig9"
# No service of the lab listens here: a connection is refused at once.
CLOSED = f"http://{GATEWAY}:9"

LISTENS = "for i in {1..600}; do grep -q ':1F40 .* 0A ' /proc/net/tcp /proc/net/tcp6 && exit; sleep 0.1; done; exit 1"


@dataclass(frozen=True)
class Row:
    """A problem as the table shows it."""

    host: str
    check: str
    found: str
    remedy: str


def rows(output: str) -> list[Row]:
    """The problems in preflight's table, whose long cells go on in the lines below."""
    lines = output.splitlines()
    start = next(
        (index for index, line in enumerate(lines) if re.match(r"\s*host +check +found +what to do", line)), -1
    )
    if start < 0:
        return []
    edges = [lines[start].index(word) for word in ("host", "check", "found", "what to do")]
    found: list[list[str]] = []
    for line in lines[start + 2 :]:
        if not line.strip():
            break
        cells = [line[left:right].strip() for left, right in zip(edges, [*edges[1:], None], strict=True)]
        if cells[0]:
            found.append(cells)
        else:
            found[-1] = [f"{before} {more}".strip() for before, more in zip(found[-1], cells, strict=True)]
    return [Row(*cells) for cells in found]


def make_bare(host: Host) -> None:
    host.reset(release="trixie", gpus=4, login="ops")
    # The first sudo leaves a file in the user's home (sudo's `admin_flag`).
    host.ssh("sudo -n true")


@pytest.fixture(scope="module")
def host(services: None) -> Iterator[Host]:
    host = machine.start(NAME)
    make_bare(host)
    machine.write_known_hosts()
    yield host
    host.remove()
    machine.write_known_hosts()


@pytest.fixture(scope="module")
def resolved(host: Host, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The lock of a plan that is fine: what is refused below is refused for its own reason."""
    alone = Rigs(tmp_path_factory.mktemp("resolved"), {NAME: world.connection(host)}, world.defaults())
    alone.write()
    result = alone.deploy("--dry")
    assert result.code == 0, result.output
    return alone.lock.read_text()


@pytest.fixture
def alone(host: Host, resolved: str, tmp_path: Path) -> Rigs:
    alone = Rigs(tmp_path, {NAME: world.connection(host)}, world.defaults())
    alone.lock.write_text(resolved)
    alone.write()
    return alone


def refused(alone: Rigs, *arguments: str) -> Result:
    """A deploy that must fail with a message, and leave the host as it is."""
    host = machine.get(NAME)
    before = host.files()
    try:
        result = alone.deploy("-y", *arguments, timeout=300)
        assert result.code > 0, result.output
        assert "Traceback" not in result.output
        assert host.files() == before, result.output
    except (AssertionError, subprocess.TimeoutExpired):
        # It was not refused, and the tests that follow need a bare host.
        make_bare(host)
        raise
    return result


def refusals(alone: Rigs, *arguments: str) -> list[Row]:
    """The same, where preflight is what refuses."""
    result = refused(alone, *arguments)
    problems = rows(result.output)
    assert problems, result.output
    assert f"{len(problems)} problem{'s' if len(problems) > 1 else ''}; nothing was changed." in result.output
    assert all(row.remedy for row in problems)
    return problems


@contextmanager
def on(host: Host, *commands: str, undo: str) -> Iterator[None]:
    """The host as these commands leave it. They change mounts or processes, so that its disk stays the same."""
    try:
        for command in commands:
            host.shell(command)
        yield
    finally:
        host.shell(undo, check=False)


# What was written wrongly.


def test_an_unknown_recipe_is_refused_with_the_near_ones(alone: Rigs) -> None:
    result = refused(alone, "--data", "recipe=vllm-nvfp4-cu13")
    message = f"\n{NAME}: recipe: there is no recipe 'vllm-nvfp4-cu13': did you mean vllm-nvfp4-cu130"
    assert message in result.output
    alone.write(endpoints={"one": {"recipe": "mtp1", "gpus": [0]}, "two": {"recipe": "z", "gpus": [1], "port": 8001}})
    result = refused(alone)
    for message in (
        ": defaults.endpoints.one.recipe: there is no recipe 'mtp1': did you mean "
        "vllm-nvfp4-cu130-mtp1 or vllm-nvfp4-destroyed-mtp1?\n",
        ": defaults.endpoints.two.recipe: there is no recipe 'z': `rigup recipes --all` lists them\n",
    ):
        assert message in result.output


def test_all_that_is_wrong_in_the_inventory_is_named_with_file_line_and_key(alone: Rigs) -> None:
    lines = yaml.safe_dump({"defaults": alone.defaults, "hosts": alone.hosts}).splitlines()
    first = len(lines) + 1
    lines += [
        "    driver_brnach: 595",
        "    persistence: 'yes'",
        "    reboot: sometimes",
        "    model_store: models",
        "    endpoints:",
        "      main: {listen: 0.0.0.0, port: '8000'}",
    ]
    alone.inventory.write_text("\n".join(lines) + "\n")
    output = refused(alone).output
    for offset, key, message in [
        (0, "driver_brnach", "did you mean driver_branch"),
        (1, "persistence", "true or false"),
        (2, "reboot", "when-needed"),
        (3, "model_store", "for example /srv/models"),
        (5, "endpoints.main.listen", "use the address that clients connect to"),
        (5, "endpoints.main.port", "number"),
    ]:
        place = f"{alone.inventory}:{first + offset}: hosts.{NAME}.{key}: "
        line = next((line for line in output.splitlines() if line.startswith(place)), None)
        assert line is not None, f"nothing at {place}\n{output}"
        assert message in line


def test_an_inventory_that_is_not_yaml_is_refused_with_its_line(alone: Rigs) -> None:
    alone.inventory.write_text("hosts:\n  rig1: {address: 10.98.0.11\n  rig2: {}\n")
    assert re.search(rf"{re.escape(str(alone.inventory))}:2: has a \{{ that is not closed", refused(alone).output)


def test_a_missing_inventory_is_named(alone: Rigs) -> None:
    alone.inventory.unlink()
    wrong = f"{alone.inventory} is not a file: name an inventory file with --inventory or RIGUP_INVENTORY"
    assert wrong in refused(alone).output


def test_what_is_wrong_in_data_is_named(alone: Rigs) -> None:
    output = refused(alone, "--data", "driver_branch=new", "--data", "driver_brnach=595").output
    for message in ("driver_branch: must be ", "driver_brnach: unknown key: did you mean driver_branch"):
        assert f"\n{NAME}: --data or group_data: {message}" in output


def test_a_damaged_lock_is_named(alone: Rigs) -> None:
    alone.lock.write_text(alone.lock.read_text().replace("digest: sha256:", "digest: sha1:"))
    output = refused(alone).output
    assert str(alone.lock) in output
    assert "digest" in output


# Hosts that cannot be reached.


def test_a_host_that_does_not_answer_is_named(alone: Rigs) -> None:
    alone.hosts[NAME] |= {"port": 9}
    alone.write()
    output = refused(alone).output
    assert re.search(rf"\[{NAME}\].*(refused|could not connect|Unable to connect)", output, re.IGNORECASE), output


def test_a_host_with_another_key_than_the_known_one_is_refused(alone: Rigs, host: Host, tmp_path: Path) -> None:
    other = (machine.KEY.with_suffix(".pub")).read_text().split()
    known = tmp_path / "known_hosts"
    known.write_text(f"{host.address} {other[0]} {other[1]}\n")
    alone.hosts[NAME] |= {"known_hosts": str(known)}
    alone.write()
    output = refused(alone).output
    assert re.search(rf"\[{NAME}\].*host key", output, re.IGNORECASE), output


def test_a_login_that_is_refused_is_named(alone: Rigs) -> None:
    alone.hosts[NAME] |= {"user": "nobody"}
    alone.write()
    output = refused(alone).output
    assert re.search(rf"\[{NAME}\].*authentication", output, re.IGNORECASE), output


# Hosts that cannot become what the plan says.


def test_an_operating_system_without_drivers_is_refused(alone: Rigs, host: Host) -> None:
    text = 'ID=ubuntu\\nVERSION_ID="22.04"\\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\\n'
    with on(
        host,
        f"printf '{text}' >/run/os-release && mount --bind /run/os-release /usr/lib/os-release",
        undo="umount /usr/lib/os-release",
    ):
        [row] = refusals(alone)
    assert (row.host, row.check) == (NAME, "system-release")
    assert "Ubuntu 22.04" in row.found
    assert "Debian 12" in row.remedy and "Ubuntu 24.04" in row.remedy


def test_a_sudo_that_asks_for_a_password_is_refused(alone: Rigs, host: Host) -> None:
    with on(
        host,
        "mkdir -p /run/sudoers.d && echo 'ops ALL=(ALL:ALL) ALL' >/run/sudoers.d/ops && chmod 440 /run/sudoers.d/ops",
        "mount --bind /run/sudoers.d /etc/sudoers.d",
        undo="umount /etc/sudoers.d",
    ):
        [row] = refusals(alone)
    assert row.check == "login-privilege"
    assert "NOPASSWD" in row.remedy


def test_a_full_disk_is_refused_with_what_is_missing(alone: Rigs, host: Host) -> None:
    with on(host, "mount -t tmpfs -o size=64m tmpfs /srv", undo="umount /srv"):
        [row] = refusals(alone)
    assert row.check == "disk-space"
    assert re.match(r"/srv has 64 MiB free and needs 2\.0 GiB: \d+ MiB for checkpoint nvidia/Qwen", row.found)
    assert row.remedy.startswith("free 2.0 GiB there")


@pytest.mark.parametrize("address", ["127.0.0.1", "[::]"])
def test_a_port_that_another_program_has_is_refused(alone: Rigs, host: Host, address: str) -> None:
    listener = f"systemd-run --quiet --unit=squatter systemd-socket-activate --listen={address}:8000 /bin/cat"
    with on(host, listener, LISTENS, undo="systemctl stop squatter"):
        [row] = refusals(alone)
    assert row.check == "network-port"
    assert row.found == f"port 8000 of endpoint main is already in use on {address.strip('[]')}"
    assert "endpoints.main.port" in row.remedy


def test_secure_boot_is_refused(alone: Rigs, host: Host) -> None:
    variables = "/sys/firmware/efi/efivars"
    name = f"{variables}/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    with on(
        host,
        f"mount -t tmpfs tmpfs /sys/firmware && mkdir -p {variables}",
        f"printf '\\6\\0\\0\\0\\1' >{name}",
        undo="umount /sys/firmware",
    ):
        [row] = refusals(alone)
        assert row.check == "firmware-secure-boot"
        assert "firmware" in row.remedy
        host.shell(f"printf '\\6\\0\\0\\0\\0' >{name}")
        assert alone.deploy("--dry").code == 0


def test_badly_connected_cards_are_reported_but_not_refused(alone: Rigs, host: Host) -> None:
    [first, *_] = host.shell("grep -l 0x2bb1 /sys/bus/pci/devices/*/device | cut -d/ -f6").stdout.split()
    width = f"/sys/bus/pci/devices/{first}/current_link_width"
    with on(host, f"echo 4 >/run/width && mount --bind /run/width {width}", undo=f"umount {width}"):
        result = alone.deploy("--dry")
    assert result.code == 0, result.output
    assert "Warnings; the deploy continues." in result.output
    [row] = rows(result.output)
    assert (row.host, row.check, row.found) == (NAME, "gpus-lanes", f"4 of 16 lanes: the GPU at {first}")
    assert "riser" in row.remedy


def test_a_server_that_the_host_cannot_reach_is_refused(alone: Rigs, host: Host) -> None:
    """The control machine could reach it, but does not need to: the lock has the answer."""
    rule = f"to {GATEWAY} ipproto tcp dport {REGISTRY_PORT} prohibit"
    with on(host, f"ip rule add {rule}", undo=f"ip rule del {rule}"):
        [row] = refusals(alone)
    assert row.check == "network-reach"
    assert row.found.startswith(f"the host cannot connect to {GATEWAY}:{REGISTRY_PORT}: ")
    assert row.remedy == (
        "allow the connection, configure a proxy on the host, or set registry_mirror to a mirror that it can reach"
    )


def test_servers_that_are_down_are_named_with_their_settings(alone: Rigs) -> None:
    settings = ["hub_endpoint", "pypi_index", "registry_mirror"]
    alone.write(**dict.fromkeys(settings, CLOSED))
    [row] = refusals(alone)
    assert row.check == "network-reach"
    assert row.found == f"the host cannot connect to {GATEWAY}:9: Connection refused"
    assert ", ".join(settings) in row.remedy


def test_servers_that_cannot_resolve_a_floating_name_are_reported_at_once(alone: Rigs) -> None:
    alone.lock.unlink()
    settings = ["cuda_mirror", "docker_mirror", "toolkit_mirror", "hub_endpoint", "registry_mirror"]
    alone.write(**dict.fromkeys(settings, CLOSED))
    lines = refused(alone).output.splitlines()
    for setting in settings:
        assert [line for line in lines if line.startswith(f"{setting}: {CLOSED}/") and "refused" in line], lines
    assert not alone.lock.exists()


def test_a_driver_branch_that_the_distribution_lacks_is_refused(alone: Rigs) -> None:
    row = refusals(alone, "--data", "driver_branch=580")[0]
    assert row.check == "driver-branch"
    assert row.found == "driver_branch 580 does not exist for Debian 13"
    assert row.remedy == "the oldest one there is 590"


def test_a_driver_too_old_for_the_image_is_refused(alone: Rigs) -> None:
    lock = yaml.safe_load(alone.lock.read_text())
    for image in lock["images"].values():
        image["cuda"] = "13.4"
    alone.lock.write_text(yaml.safe_dump(lock))
    [row] = refusals(alone)
    assert row.check == "driver-cuda"
    assert row.found == "driver_branch 595 brings CUDA 13.2; vllm/vllm-openai:cu130-nightly needs 13.4"
    assert row.remedy == "set driver_branch to 615"


def test_too_few_gpus_and_all_else_that_is_wrong_stand_in_one_table(alone: Rigs, host: Host) -> None:
    host.set_gpus(2)
    try:
        with on(
            host,
            "mount -t tmpfs -o size=64m tmpfs /srv",
            "systemd-run --quiet --unit=squatter systemd-socket-activate --listen=127.0.0.1:8000 /bin/cat",
            LISTENS,
            undo="umount /srv; systemctl stop squatter",
        ):
            problems = refusals(alone, "--data", f"pypi_index={CLOSED}")
        assert [row.check for row in problems] == ["gpus-missing", "disk-space", "network-port", "network-reach"]
        assert problems[0].found == "2 on the bus; recipe vllm-nvfp4-cu130 of endpoint main needs 4"
        assert "Above 4G decoding" in problems[0].remedy
    finally:
        host.set_gpus(4)
