"""Preflight: each thing that would stop a deploy is found, with a remedy, and nothing else is."""

import re
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from rigup.config.findings import FINDINGS
from rigup.config.settings import Settings
from rigup.errors import InputError, Problem, ProblemsError
from rigup.lock.lockfile import Lock
from rigup.plan.build import make_plan
from rigup.preflight.checks import check
from rigup.preflight.disk import disk_paths, has_all_files
from rigup.preflight.network import destinations
from rigup.preflight.snapshot import DiskFacts, HardwareFacts, HostCheck, HostFacts, NetworkFacts, SystemFacts
from tests.unit.sample import CATALOGUE, DIGEST, GIB, PUBLISHED, REPO, REVISION, image, lock, plan

ROOT = Path(__file__).resolve().parents[2]
TODAY = date(2026, 12, 1)
STORE = f"/srv/models/{REPO}/{REVISION}"
IMAGE = f"vllm/vllm-openai@{DIGEST}"


@dataclass(frozen=True)
class Device:
    address: str
    vendor: int
    device: int
    class_code: int


@dataclass(frozen=True)
class Slot:
    lanes: int
    card_lanes: int
    window: int


@dataclass(frozen=True)
class Space:
    mount: str
    available: int
    read_only: bool = False
    files: int | None = None


@dataclass(frozen=True)
class Socket:
    address: str
    port: int


@dataclass(frozen=True)
class Way:
    ok: bool
    reason: str = ""


OPEN = {
    (host, 443): Way(True)
    for host in (
        "developer.download.nvidia.com",
        "download.docker.com",
        "nvidia.github.io",
        "pypi.org",
        "huggingface.co",
        "registry-1.docker.io",
    )
}
CARDS = tuple(Device(f"0000:{bus}:00.0", 0x10DE, 0x2BB1, 0x030000) for bus in ("21", "41", "61", "81"))
BMC = Device("0000:c4:00.0", 0x1A03, 0x2000, 0x030000)
NIC = Device("0000:01:00.0", 0x8086, 0x1563, 0x020000)
SOUND = Device("0000:21:00.1", 0x10DE, 0x22E8, 0x040300)

BARE = HostFacts(
    SystemFacts({"ID": "debian", "VERSION_ID": "13"}, architecture="x86_64", init="systemd", privilege="sudo"),
    HardwareFacts(memory=512 * GIB, secure_boot=False, pci=(*CARDS, BMC, NIC, SOUND)),
    DiskFacts({path: Space("/", 2000 * GIB) for path in disk_paths(Settings())}),
    NetworkFacts(listeners=[Socket("0.0.0.0", 22)], reachable=OPEN),
)


def changed(facts: HostFacts, **changes: Any) -> HostFacts:
    """The same facts with some fields changed, each in its group."""
    groups = {}
    for group in fields(HostFacts):
        before = getattr(facts, group.name)
        mine = {field.name: changes.pop(field.name) for field in fields(before) if field.name in changes}
        groups[group.name] = replace(before, **mine)
    assert not changes, f"no such facts: {changes}"
    return HostFacts(**groups)


def installed(of: Lock) -> dict[str, str]:
    return {name: version for group in of.packages["debian13"].values() for name, version in group.items()}


SERVED = changed(
    BARE,
    stored_bytes={STORE: 234 * GIB},
    has_client=True,
    images={IMAGE},
    installed=installed(lock()),
    ports={8000},
    listeners=[Socket("0.0.0.0", 22), Socket("127.0.0.1", 8000)],
)


def problems(facts: HostFacts, cuda: str | None = "13.0.1", **settings: object) -> list[Problem]:
    return check(checked(facts, cuda, **settings), TODAY)[0]


def checked(facts: HostFacts, cuda: str | None = "13.0.1", **settings: object) -> HostCheck:
    wanted, known = Settings.from_data(settings), lock(image(cuda=cuda))
    return HostCheck(make_plan("rig1", wanted, CATALOGUE, known, PUBLISHED), wanted, facts, known)


def warned(facts: HostFacts, **settings: object) -> list[Problem]:
    return check(checked(facts, **settings), TODAY)[1]


def only(found: list[Problem]) -> Problem:
    assert len(found) == 1, found
    assert found[0].host == "rig1"
    assert found[0].remedy
    return found[0]


def disks(**free: int) -> dict[str, Space]:
    """Free GiB by mount: `root`, and those that are mounts of their own."""
    mounts = {"/srv/models": "store", "/var/lib/docker": "docker", "/var/lib/containerd": "containerd"}
    found = dict.fromkeys(disk_paths(Settings()), Space("/", free["root"] * GIB))
    found |= {path: Space(path, free[name] * GIB) for path, name in mounts.items() if name in free}
    return found


def test_a_bare_host_that_can_do_it_has_no_problems() -> None:
    assert problems(BARE) == []


def test_a_host_that_serves_already_has_none_and_needs_nothing_any_more() -> None:
    bare_of_everything = changed(SERVED, disks=disks(root=1), reachable={})
    assert problems(bare_of_everything) == []


@pytest.mark.parametrize(
    ("release", "found"),
    [
        ({"ID": "debian", "VERSION_ID": "11", "PRETTY_NAME": "Debian GNU/Linux 11 (bullseye)"}, "Debian GNU/Linux 11"),
        ({}, "an unknown system is not supported"),
    ],
)
def test_an_unsupported_system_is_one_problem_and_not_ten(release: dict[str, str], found: str) -> None:
    problem = only(problems(changed(BARE, os_release=release)))
    assert problem.id == "system-release"
    assert found in problem.found
    assert problem.remedy == "install one of these: Debian 12, Debian 13, Ubuntu 24.04"


@pytest.mark.parametrize(
    ("change", "check", "words"),
    [
        ({"architecture": "aarch64"}, "system-architecture", "the machine is aarch64"),
        ({"init": "tini"}, "system-init", "process 1 is tini, not systemd"),
        ({"privilege": "none"}, "login-privilege", "cannot use sudo without a password"),
        ({"memory": 8 * GIB}, "memory-size", "8.0 GiB of memory; the engine needs 12.0 GiB"),
        ({"secure_boot": True}, "firmware-secure-boot", "Secure Boot is on"),
        ({"pci": (*CARDS[:3], BMC)}, "gpus-missing", "3 on the bus; recipe vllm-nvfp4-cu130 of endpoint main needs 4"),
        ({"pci": (BMC, NIC)}, "gpus-missing", "0 on the bus"),
    ],
)
def test_what_the_machine_lacks_is_named(change: dict[str, object], check: str, words: str) -> None:
    problem = only(problems(changed(BARE, **change)))
    assert problem.id == check
    assert words in problem.found


def test_a_server_edition_shows_as_3d_controller_and_counts() -> None:
    server = tuple(replace(card, device=0x2BB5, class_code=0x030200) for card in CARDS)
    assert problems(changed(BARE, pci=server)) == []


def test_another_nvidia_gpu_is_named_by_its_address() -> None:
    problem = only(problems(changed(BARE, pci=(*CARDS, Device("0000:a1:00.0", 0x10DE, 0x2684, 0x030000)))))
    assert problem.found.startswith("not supported: NVIDIA GeForce RTX 4090 (10de:2684): ")


def test_a_card_with_less_memory_than_the_recipe_needs_is_refused() -> None:
    small = replace(CARDS[2], device=0x2BB3)
    problem = only(problems(changed(BARE, pci=(*CARDS[:2], small, CARDS[3]))))
    assert problem.id == "gpus-memory"
    assert problem.found == "the GPU at 0000:61:00.0 has 71.7 GiB; recipe vllm-nvfp4-cu130 needs 94.7 GiB"


def test_gpu_numbers_beyond_those_present_are_refused() -> None:
    problem = only(problems(BARE, endpoints={"main": {"gpus": [2, 3, 4, 5]}}))
    assert problem.found == "endpoint main uses GPU 4, 5; the host has 4"


def test_all_gpus_may_be_more_than_the_recipe_needs() -> None:
    assert problems(changed(BARE, pci=CARDS + tuple(replace(card, address="x") for card in CARDS))) == []


def test_a_full_disk_says_what_needs_how_much() -> None:
    problem = only(problems(changed(BARE, disks=disks(root=200))))
    assert problem.id == "disk-space"
    # 234 GiB of checkpoint, 9 GiB of image unpacked, packages as they are fetched and installed, and two to spare.
    assert problem.found == (
        "/ has 200.0 GiB free and needs 285.8 GiB: 234.0 GiB for checkpoint nvidia/Qwen3.5-397B-A17B-NVFP4, "
        "28.8 GiB for image vllm/vllm-openai:cu130-nightly, 4.0 GiB for driver and Docker, "
        "1.0 GiB for the packages of driver and Docker, 10.0 GiB for cuda-toolkit-13-2, "
        "5.0 GiB for the packages of cuda-toolkit-13-2, 1.0 GiB for what DKMS builds, 2.0 GiB spare"
    )
    assert problem.remedy == "free 85.8 GiB there, or mount a larger disk"


def test_each_disk_is_judged_for_what_lies_on_it() -> None:
    assert problems(changed(BARE, disks=disks(root=60, store=300))) == []
    assert only(problems(changed(BARE, disks=disks(root=300, store=200)))).found.startswith("/srv/models has 200.0 GiB")
    assert only(problems(changed(BARE, disks=disks(root=30, store=300, docker=10)))).found.startswith("/var/lib/docker")
    assert only(problems(changed(BARE, disks=disks(root=5, store=300, docker=50)))).found.startswith("/ has 5.0 GiB")


def test_only_what_is_missing_of_a_checkpoint_counts() -> None:
    half = changed(BARE, stored_bytes={STORE: 117 * GIB}, disks=disks(root=60, store=120))
    assert problems(half) == []
    assert only(problems(changed(half, stored_bytes={}))).found.startswith("/srv/models")


def test_the_stores_own_disk_is_judged_once_it_is_mounted() -> None:
    bare = changed(BARE, labels=["models", "root"])
    assert problems(changed(bare, disks=disks(root=60)), model_disk="models") == []
    small = changed(bare, disks=disks(root=60, store=200))
    assert only(problems(small, model_disk="models")).found.startswith("/srv/models has 200.0 GiB")


def test_the_stores_own_disk_must_be_there() -> None:
    problem = only(problems(changed(BARE, labels=["root", "data"]), model_disk="models"))
    assert problem.found == "no file system has the label models (`model_disk`); there is data, root"
    assert "e2label DEVICE models" in problem.remedy
    assert problems(BARE, model_disk=None) == []


def test_a_host_that_has_its_files_on_a_disk_needs_no_way_to_the_hub() -> None:
    offline = changed(BARE, reachable={place: seen for place, seen in OPEN.items() if place[0] != "huggingface.co"})
    assert only(problems(offline)).id == "network-reach"
    assert problems(changed(offline, in_model_source=[STORE]), model_source="/mnt/usb") == []
    # What the disk lacks has to come from somewhere.
    assert only(problems(offline, model_source="/mnt/usb")).id == "network-reach"


def test_a_directory_of_checkpoints_must_be_there_as_long_as_something_is_missing() -> None:
    problem = only(problems(changed(BARE, has_model_source=False), model_source="/mnt/usb"))
    assert problem.found == "/mnt/usb (`model_source`) is not a directory on the host"
    assert problems(changed(SERVED, has_model_source=False), model_source="/mnt/usb") == []


def test_a_directory_holds_a_checkpoint_whose_files_are_all_there_in_their_size() -> None:
    listing = {"config.json": f"2 git:{'a' * 40}", "sub/weights": f"100 sha256:{'b' * 64}"}
    assert has_all_files([None, {"config.json": 2}, {"sub/weights": 100}], listing)
    assert not has_all_files([{"config.json": 2, "sub/weights": 99}], listing)
    assert not has_all_files([{"config.json": 2}], listing)
    assert not has_all_files([{"config.json": 2}], {})


@pytest.mark.parametrize(
    ("mirror", "hub", "refused"),
    [(True, True, []), (True, False, []), (False, True, []), (False, False, ["mirror.lan:8001", "huggingface.co:443"])],
)
def test_a_host_must_reach_the_hub_or_its_mirror(mirror: bool, hub: bool, refused: list[str]) -> None:
    ways = {("mirror.lan", 8001): Way(mirror, "refused"), ("huggingface.co", 443): Way(hub, "no route")}
    found = problems(changed(BARE, reachable={**OPEN, **ways}), hub_mirror="http://mirror.lan:8001")
    assert {problem.id for problem in found} <= {"network-reach"}
    told = [problem.found.removeprefix("the host cannot connect to ").rpartition(": ")[0] for problem in found]
    assert sorted(told) == sorted(refused)


def test_what_is_installed_and_pulled_needs_no_room() -> None:
    assert problems(changed(SERVED, stored_bytes={}, disks=disks(root=1, store=300))) == []


def test_docker_29_keeps_images_in_containerds_directory() -> None:
    versions = {**installed(lock()), "docker-ce": "5:29.6.1-1~debian.13~trixie"}
    facts = changed(SERVED, images=(), installed=versions, disks=disks(root=100, docker=100, containerd=10))
    assert only(problems(facts)).found.startswith("/var/lib/containerd has 10.0 GiB free and needs 30.8 GiB")


def test_without_the_cuda_toolkit_its_room_is_not_needed() -> None:
    facts = changed(BARE, disks=disks(root=8, store=300, docker=50))
    assert only(problems(facts)).id == "disk-space"
    assert problems(facts, cuda_toolkit="off") == []


def test_a_path_without_a_file_system_is_a_problem() -> None:
    facts = changed(BARE, disks={path: space for path, space in BARE.disk.disks.items() if path != "/srv/models"})
    assert "no file system was found for /srv/models" in only(problems(facts)).found


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_a_taken_port_is_a_problem(address: str) -> None:
    problem = only(problems(changed(BARE, listeners=[Socket(address, 8000)])))
    assert problem.id == "network-port"
    assert problem.found == f"port 8000 of endpoint main is already in use on {address}"


def test_a_port_on_another_address_is_in_nobodys_way() -> None:
    assert problems(changed(BARE, listeners=[Socket("10.0.0.11", 8000), Socket("127.0.0.1", 8001)])) == []


def test_our_own_endpoint_on_its_port_is_no_problem_but_a_new_port_must_be_free() -> None:
    assert problems(SERVED) == []
    taken = changed(SERVED, listeners=[*SERVED.network.listeners, Socket("127.0.0.1", 9000)])
    assert only(problems(taken, endpoints={"main": {"port": 9000}})).id == "network-port"


def test_a_driver_branch_that_the_distribution_lacks_is_refused() -> None:
    found = problems(BARE, driver_branch=580)
    assert "driver_branch 580 does not exist for Debian 13" in only(found).found
    assert "590" in only(found).remedy


@pytest.mark.parametrize(("cuda", "fits"), [("13.0.1", True), ("13.2", True), ("13.3.0", False), (None, True)])
def test_the_driver_must_know_the_images_cuda(cuda: str | None, fits: bool) -> None:
    found = problems(BARE, cuda)
    assert (found == []) == fits
    if not fits:
        assert only(found).found == "driver_branch 595 brings CUDA 13.2; vllm/vllm-openai:cu130-nightly needs 13.3.0"
        assert only(found).remedy == "set driver_branch to 610 or 615"


def test_a_branch_newer_than_the_table_is_trusted() -> None:
    assert problems(BARE, "13.5", driver_branch=620) == []


def test_an_image_newer_than_every_driver_says_so() -> None:
    assert only(problems(BARE, "14.0")).remedy == "choose a recipe with an older image"


def test_destinations_are_all_servers_by_name_and_port() -> None:
    settings = Settings.from_data({"registry_mirror": "http://10.98.0.1:5000", "hub_endpoint": "http://10.98.0.1:8001"})
    made = make_plan("rig1", settings, CATALOGUE, lock(), PUBLISHED)
    found = destinations(made, settings)
    assert found[("10.98.0.1", 5000)] == "registry_mirror"
    assert found[("10.98.0.1", 8001)] == "hub_endpoint"
    assert found[("developer.download.nvidia.com", 443)] == "cuda_mirror"
    assert ("registry-1.docker.io", 443) not in found


def test_a_server_that_the_host_cannot_reach_is_named_with_its_setting() -> None:
    facts = changed(BARE, reachable={**OPEN, ("huggingface.co", 443): Way(False, "Connection refused")})
    problem = only(problems(facts))
    assert problem.id == "network-reach"
    assert problem.found == "the host cannot connect to huggingface.co:443: Connection refused"
    assert "hub_endpoint" in problem.remedy


def test_packages_of_the_proof_that_are_missing_need_their_index_though_the_checkpoint_is_there() -> None:
    index = urlsplit(Settings().pypi_index).hostname or ""
    assert (index, 443) in OPEN
    closed = {**OPEN, (index, 443): Way(False, "Connection refused")}
    assert problems(changed(SERVED, reachable=closed)) == []
    assert "pypi_index" in only(problems(changed(SERVED, reachable=closed, has_client=False))).remedy


def test_one_mirror_for_several_things_is_one_problem_that_names_them_all() -> None:
    mirror = "http://10.98.0.1:8000"
    settings = {
        "cuda_mirror": f"{mirror}/cuda",
        "docker_mirror": f"{mirror}/docker",
        "toolkit_mirror": f"{mirror}/toolkit",
        "pypi_index": f"{mirror}/pypi/simple",
    }
    facts = changed(BARE, reachable={**OPEN, ("10.98.0.1", 8000): Way(False, "no answer within 5 s")})
    problem = only(problems(facts, **settings))
    assert "cuda_mirror, docker_mirror, pypi_index, toolkit_mirror" in problem.remedy


def test_a_mirror_that_something_still_needs_counts_even_where_its_first_use_is_done() -> None:
    mirror = "http://10.98.0.1:8000"
    settings = {"cuda_mirror": f"{mirror}/cuda", "pypi_index": f"{mirror}/pypi/simple"}
    facts = changed(SERVED, stored_bytes={}, reachable={**OPEN, ("10.98.0.1", 8000): Way(False, "refused")})
    assert only(problems(facts, **settings)).id == "network-reach"


def test_the_registry_is_not_needed_for_an_image_that_is_there() -> None:
    closed = {**OPEN, ("registry-1.docker.io", 443): Way(False, "refused")}
    assert problems(changed(BARE, images={IMAGE}, reachable=closed)) == []
    assert only(problems(changed(BARE, reachable=closed))).id == "network-reach"


def test_all_problems_come_at_once_and_fit_one_table() -> None:
    broken = changed(
        BARE, pci=(), memory=GIB, secure_boot=True, disks=disks(root=1), listeners=[Socket("::", 8000)], reachable={}
    )
    found = problems(broken)
    assert {problem.id for problem in found} == {
        "gpus-missing",
        "memory-size",
        "firmware-secure-boot",
        "disk-space",
        "network-port",
        "network-reach",
    }
    text = ProblemsError(found).table(width=100)
    assert text.startswith(f"{len(found)} problems; nothing was changed.")
    assert all(len(line) <= 100 for line in text.splitlines())
    assert str(ProblemsError(found[:1])).startswith("1 problem; nothing was changed.")


WHOLE = Slot(16, 16, 128 * GIB)


def test_a_host_whose_cards_are_connected_as_they_should_be_gets_no_warning() -> None:
    slots = {card.address: WHOLE for card in CARDS}
    assert warned(changed(BARE, slots=slots)) == []
    assert warned(changed(BARE, slots=dict.fromkeys(slots, Slot(0, 0, 0)))) == []


def test_cards_with_fewer_lanes_are_told_in_one_row_and_stop_nothing() -> None:
    first, second, *others = (card.address for card in CARDS)
    slots = {**dict.fromkeys((first, second), Slot(8, 16, 128 * GIB)), **dict.fromkeys(others, WHOLE)}
    facts = changed(BARE, slots=slots)
    assert only(warned(facts)).found == f"8 of 16 lanes: the GPU at {first}, {second}"
    assert problems(facts) == []


def test_a_card_that_shows_little_of_its_memory_is_told_with_the_switch_in_the_bios() -> None:
    slots = {card.address: WHOLE for card in CARDS} | {CARDS[2].address: Slot(16, 16, 256 << 20)}
    warning = only(warned(changed(BARE, slots=slots)))
    assert warning.found == f"256 MiB of memory on the bus (BAR1): the GPU at {CARDS[2].address}"
    assert "Resizable BAR" in warning.remedy


def test_a_description_of_the_gpus_made_by_hand_is_told_and_stops_nothing() -> None:
    facts = changed(BARE, foreign=["/etc/cdi/nvidia.yaml"])
    assert "/etc/cdi/nvidia.yaml" in only(warned(facts)).found
    assert problems(facts) == []


def test_a_host_that_serves_gets_no_warnings() -> None:
    slots = {card.address: Slot(8, 16, 256 << 20) for card in CARDS}
    assert len(warned(changed(BARE, slots=slots))) == 2
    assert warned(changed(BARE, slots=slots, active_units={"llm@main.service"})) == []


def test_square_brackets_in_what_a_host_says_are_shown_as_they_are() -> None:
    assert "[bold]x[/bold]" in ProblemsError([Problem("rig1", "system", "[bold]x[/bold]", "none")]).table()


ONE, TWO = "GPU-11111111-2222-3333-4444-555555555555", "GPU-11111111-2222-3333-4444-666666666666"


def test_gpus_named_by_uuid_are_looked_up_on_the_host() -> None:
    known = changed(BARE, gpu_indices={ONE: 0, TWO: 1, "GPU-c": 2, "GPU-d": 3})
    chosen = {"main": {"gpus": [ONE, TWO, 2, 3]}}
    assert problems(known, endpoints=chosen) == []
    # On a bare host there is no driver yet that knows them.
    assert problems(BARE, endpoints=chosen) == []
    found = only(problems(changed(known, gpu_indices={ONE: 0, "GPU-b": 1}), endpoints=chosen))
    assert (found.id, TWO in found.found) == ("gpus-unknown", True)
    assert "endpoints.main.gpus" in found.remedy


def test_a_gpu_named_by_number_and_by_uuid_is_one_gpu() -> None:
    more = [replace(card, address=card.address.replace("0000:", "0001:")) for card in CARDS]
    known = changed(BARE, pci=[*CARDS, *more], gpu_indices={ONE: 3, TWO: 4})
    both = {"a": {"gpus": [0, 1, 2, 3]}, "b": {"gpus": [ONE, 5, 6, 7], "port": 8001}}
    found = only(problems(known, endpoints=both))
    assert "endpoints a and b both use GPU 3" in found.found


def test_what_failed_on_the_host_before_is_refused_unless_it_shall_be_tried_again() -> None:
    generation = make_plan("rig1", Settings(), CATALOGUE, lock(), PUBLISHED).endpoints[0].generation
    facts = changed(SERVED, failed={("main", generation): "was tried here at noon and did not come up"})
    found = only(problems(facts))
    assert (found.id, "tried here at noon" in found.found) == ("recipe-failed", True)
    assert "--data retry=true" in found.remedy
    assert problems(facts, retry=True) == []


def test_a_source_file_that_names_one_of_our_repositories_beside_others_is_told() -> None:
    docker = "https://download.docker.com/linux/debian"
    mine = changed(BARE, apt_sources={"/etc/apt/sources.list.d/mine.list": {docker, "http://mine"}})
    problem = only(problems(mine))
    assert problem.id == "sources-entangled"
    assert problem.found.startswith(f"/etc/apt/sources.list.d/mine.list names {docker}, which ")
    assert problems(changed(BARE, apt_sources={"/etc/apt/sources.list.d/mine.list": {docker}})) == []


def test_arguments_of_the_kernel_need_a_grub_to_set_them_unless_they_are_in_effect() -> None:
    other = changed(BARE, uses_grub=False, kernel_arguments=["quiet", "pcie_aspm=off"])
    problem = only(problems(other))
    assert problem.id == "kernel-boot-loader"
    assert "booted without iommu=pt pcie_port_pm=off (`kernel_args`), and not by GRUB" in problem.found
    assert "/etc/kernel/cmdline" in problem.remedy
    assert problems(other, kernel_args=[]) == []
    assert problems(changed(other, kernel_arguments=Settings().kernel_args)) == []


def serving(driver: str, *gone: str) -> HostFacts:
    """A host that serves with the driver packages at this version, without those that are gone."""
    there = {**SERVED.software.installed, **dict.fromkeys(lock().packages["debian13"]["driver-595"], driver)}
    for name in gone:
        del there[name]
    return changed(SERVED, installed=there, active_units=["llm@main.service"])


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        (serving("595.91.07-1"), "595.91.07 is installed and would become 595.71.05"),
        (serving("595.71.05-1", "nvidia-kernel-open-dkms"), "another driver is installed and would become 595.71.05"),
    ],
)
def test_a_driver_is_not_changed_under_an_endpoint_that_serves(facts: HostFacts, found: str) -> None:
    problem = only(problems(facts))
    assert (problem.id, problem.found) == ("driver-serving", f"{found}, with a reboot, while llm@main.service serves")
    assert "`systemctl stop llm@main.service` there and deploy again" in problem.remedy
    assert "--exclude rig1" in problem.remedy
    assert problems(changed(facts, active_units=[])) == []


def test_what_serves_is_no_obstacle_where_the_driver_stays() -> None:
    assert problems(serving("595.71.05-1")) == []
    # Only the pin is missing: nothing that runs changes.
    assert problems(serving("595.71.05-1", "nvidia-driver-pinning-595.71.05")) == []


PUBLIC = {"endpoints": {"main": {"listen": "192.0.2.20", "allowed_networks": ["192.0.2.0/24"]}}}


def public_problems(facts: HostFacts) -> list[Problem]:
    facts = changed(facts, addresses=["192.0.2.20", "2001:db8::20"])
    return check(HostCheck(plan(**PUBLIC), Settings.from_data(PUBLIC), facts, lock()), TODAY)[0]


def test_a_public_address_of_this_host_is_fine() -> None:
    assert public_problems(BARE) == []


def test_a_public_address_of_another_host_is_a_problem_that_names_this_ones() -> None:
    facts = changed(BARE, addresses=["192.0.2.9"])
    problem = only(check(HostCheck(plan(**PUBLIC), Settings.from_data(PUBLIC), facts, lock()), TODAY)[0])
    assert problem.found == "192.0.2.20 of endpoint main is not an address of this host"
    assert problem.remedy.endswith("192.0.2.9")


def test_a_port_taken_on_the_public_address_is_a_problem_unless_our_gateway_has_it() -> None:
    taken = changed(BARE, listeners=[Socket("192.0.2.20", 8000)])
    assert only(public_problems(taken)).found == "port 8000 of endpoint main is already in use on 192.0.2.20"
    assert public_problems(changed(taken, gateways={"main": 8000})) == []


def accepted(id: str, until: str) -> dict[str, object]:
    return {"waivers": {id: {"reason": "old disks until spring", "until": until}}}


def test_a_waiver_turns_a_problem_into_a_warning_until_its_last_day() -> None:
    full = changed(BARE, disks=disks(root=200))
    assert problems(full, **accepted("disk-space", "2026-12-01")) == []
    (warning,) = warned(full, **accepted("disk-space", "2026-12-01"))
    assert warning.id == "disk-space"
    assert warning.found.endswith("(waived until 2026-12-01: old disks until spring)")

    problem = only(problems(full, **accepted("disk-space", "2026-11-30")))
    assert problem.found.endswith("(the waiver expired on 2026-11-30: old disks until spring)")
    assert warned(full, **accepted("disk-space", "2026-11-30")) == []


def test_a_waiver_silences_a_warning() -> None:
    shared = changed(BARE, containers=["pihole"])
    assert only(warned(shared)).id == "docker-stopped"
    assert warned(shared, **accepted("docker-stopped", "2027-01-31")) == []


@pytest.mark.parametrize("id", [id for id, at_own_risk in FINDINGS.items() if not at_own_risk])
def test_what_could_not_work_anyway_cannot_be_waived(id: str) -> None:
    with pytest.raises(InputError, match=f"no waiver accepts {id}: the deploy could not work"):
        Settings.from_data(accepted(id, "2027-01-31"))


def test_every_finding_of_preflight_has_an_id_of_its_own() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "rigup/preflight").glob("*.py"))
    used = re.findall(r'host\.problem\(\s*"([a-z0-9-]+)"', sources)
    assert {*used} == {*FINDINGS}
