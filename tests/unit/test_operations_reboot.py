"""reboot.when_needed: for a reason, once, and to some purpose."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from rigup.facts.kernel import KernelStateValue, ModuleParametersValue
from rigup.facts.nvidia import DriverStateValue
from rigup.operations import reboot
from tests.unit.deploys import Actor, Outcome, Said

K1, K2 = "6.12.57+deb13-amd64", "6.12.63+deb13-amd64"
V1, V2 = "595.71.05", "595.91.07"
OPTIONS = {"nvidia_uvm": {"uvm_disable_hmm": 1}}
HMM = "/sys/module/nvidia_uvm/parameters/uvm_disable_hmm"


def kernel(release: str = K1, *arguments: str, newest: str = K1) -> KernelStateValue:
    return KernelStateValue(release, arguments, tuple(sorted({release, newest})), frozenset({release, newest}))


DRIVER = DriverStateValue(loaded=V1, open_module=True, on_disk={K1: V1}, userspace=V1)
NOTHING = ModuleParametersValue()


def test_a_host_that_runs_what_it_has_needs_no_reboot() -> None:
    parameters = ModuleParametersValue({"nvidia_uvm": {"uvm_disable_hmm": "1"}})

    assert reboot.reasons(kernel(K1, "quiet", "iommu=pt"), DRIVER, parameters, ["iommu=pt"], OPTIONS) == []


def test_an_option_of_a_module_that_is_not_loaded_yet_is_no_reason() -> None:
    assert reboot.reasons(kernel(), DRIVER, NOTHING, [], OPTIONS) == []


@pytest.mark.parametrize(
    ("kernel_state", "driver", "value", "why"),
    [
        (kernel(K1, "iommu=pt", newest=K2), DRIVER, "1", f"kernel {K2} is installed"),
        (kernel(K1, "iommu=pt2"), DRIVER, "1", "booted without iommu=pt"),
        (kernel(K1, "iommu=pt"), DriverStateValue(on_disk={K1: V1}, nouveau=True), "1", "not loaded (nouveau is)"),
        (
            kernel(K1, "iommu=pt"),
            DriverStateValue(loaded=V1, on_disk={K1: V2}),
            "1",
            "is loaded, 595.91.07 is installed",
        ),
        (kernel(K1, "iommu=pt"), DRIVER, "0", "loaded without uvm_disable_hmm=1"),
    ],
)
def test_each_reason_is_told(kernel_state: KernelStateValue, driver: DriverStateValue, value: str, why: str) -> None:
    parameters = ModuleParametersValue({"nvidia_uvm": {"uvm_disable_hmm": value}})

    found = reboot.reasons(kernel_state, driver, parameters, ["iommu=pt"], OPTIONS)

    assert len(found) == 1
    assert why in found[0]


def test_a_newer_module_of_the_running_kernel_is_a_reason_although_the_next_kernel_has_none() -> None:
    driver = DriverStateValue(loaded=V1, open_module=True, on_disk={K1: V2}, userspace=V2)

    found = reboot.reasons(kernel(K1, newest=K2), driver, NOTHING)

    assert found == [f"kernel {K2} is installed, {K1} runs", f"NVIDIA module {V1} is loaded, {V2} is installed"]


def test_a_kernel_without_module_or_initrd_is_not_booted_into() -> None:
    bare = KernelStateValue(K1, (), (K1, K2), frozenset({K1}))

    found = " ".join(reboot.obstacles(bare, DRIVER))

    assert f"no NVIDIA module for kernel {K2}" in found
    assert f"kernel {K2} has no initrd" in found


@pytest.mark.parametrize(("menu", "told"), [(None, False), (("ro", "quiet"), True), (("ro", "iommu=pt"), False)])
def test_a_menu_without_the_arguments_stands_against_a_reboot_for_them(menu: tuple[str, ...], told: bool) -> None:
    found = " ".join(reboot.obstacles(replace(kernel(), next_arguments=menu), DRIVER, ["iommu=pt"]))

    assert (f"boots next, with kernel {K1}, has no iommu=pt" in found) is told
    assert reboot.obstacles(replace(kernel(K1, "iommu=pt"), next_arguments=menu), DRIVER, ["iommu=pt"]) == []


@pytest.mark.parametrize(
    ("running", "following", "why"),
    [
        # The newer kernel is installed, and the boot loader is set to boot the other one.
        (K1, K1, []),
        (K2, K1, []),
        (K1, K2, [f"kernel {K2} is installed, {K1} runs"]),
        (K1, None, [f"kernel {K2} is installed, {K1} runs"]),
    ],
)
def test_only_a_newer_kernel_that_boots_next_is_a_reason(running: str, following: str | None, why: list[str]) -> None:
    both = DriverStateValue(loaded=V1, open_module=True, on_disk={K1: V1, K2: V1}, userspace=V1)
    state = KernelStateValue(running, (), (K1, K2), frozenset({K1, K2}), following)

    assert reboot.reasons(state, both, NOTHING) == why
    assert reboot.obstacles(state, both) == []


def test_the_kernel_that_boots_next_needs_the_driver_and_not_the_newest() -> None:
    pinned = KernelStateValue(K1, (), (K1, K2), frozenset({K1}), K1)

    assert reboot.obstacles(pinned, DRIVER) == []


DKMS = [f"/lib/modules/{K1}/updates/dkms/nvidia.ko.xz", V1]
LOADED = [f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {V1}  Release Build", *DKMS]
BOOT = [K1, "BOOT_IMAGE=x quiet", f"/boot/initrd.img-{K1}", f"/boot/vmlinuz-{K1}"]
READY = [BOOT[0], "BOOT_IMAGE=x quiet iommu=pt", *BOOT[2:]]
GPUS = [f"GPU {at}: NVIDIA RTX PRO 6000 (UUID: GPU-{at})" for at in range(4)]
ORDER = "systemd-run --quiet --on-active=1"


def host(
    *,
    kernels: Any = (BOOT, BOOT, BOOT, READY),
    drivers: Any = (DKMS, DKMS, DKMS, LOADED),
    boots: Any = (["one"], ["two"]),
    gpus: Any = (GPUS,),
    serving: Any = ([],),
    hmm: Any = ([f"{HMM}:Y"],),
) -> Actor:
    """A host in its readings: prepared, executed, looked at before the reboot, and after it."""
    actor = Actor().answers("uname -r", *kernels).answers("nvidia.ko", *drivers).answers("boot_id", *boots)
    return actor.answers("nvidia-smi -L", *gpus).answers("list-units", *serving).answers("grep -H ''", *hmm)


def when_needed(actor: Actor, **arguments: Any) -> Outcome:
    wanted: dict[str, Any] = {"kernel_args": ["iommu=pt"], "modprobe_options": OPTIONS, "gpus": 4}
    return actor.does(reboot.when_needed, **{**wanted, **arguments})


def test_a_host_that_is_ready_is_not_rebooted() -> None:
    outcome = when_needed(host(kernels=(READY,), drivers=(LOADED,)))

    assert (outcome.foreseen, outcome.changed, outcome.ran(ORDER)) == (False, False, 0)


@pytest.mark.parametrize(("before", "after"), [("one", "two"), ("two", "one")])
def test_a_needed_reboot_is_proven_by_the_boot_id_and_by_the_gpus(before: str, after: str) -> None:
    outcome = when_needed(host(boots=([before], [before], [after]), gpus=(GPUS[:1], GPUS)))

    assert (outcome.foreseen, outcome.changed, outcome.failed) == (True, True, False), outcome.told
    assert outcome.ran(ORDER) == 1
    assert "rebooting: the kernel was booted without iommu=pt; the NVIDIA module is not loaded" in outcome.told


def test_a_module_option_that_is_not_in_effect_is_worth_a_reboot() -> None:
    lacking, there = [f"{HMM}:N"], [f"{HMM}:Y"]
    outcome = when_needed(host(kernels=(READY,), drivers=(LOADED,), hmm=(lacking, lacking, lacking, there)))

    assert (outcome.changed, outcome.failed, outcome.ran(ORDER)) == (True, False, 1), outcome.told
    assert "nvidia_uvm was loaded without uvm_disable_hmm=1" in outcome.told


def test_a_host_that_is_away_for_a_while_is_waited_for() -> None:
    outcome = when_needed(host(boots=(["one"], Said(breaks=True), Said(ok=False), ["two"])))

    assert not outcome.failed, outcome.told


def test_a_reboot_that_did_not_help_is_an_error_and_never_a_second_reboot() -> None:
    outcome = when_needed(host(drivers=(DKMS,), kernels=(BOOT, BOOT, BOOT, READY)))

    assert outcome.failed
    assert outcome.ran(ORDER) == 1
    assert "was rebooted, and still: the NVIDIA module is not loaded" in outcome.told
    assert "Secure Boot" in outcome.told


def test_a_reboot_that_did_not_help_is_not_tried_again_by_the_next_deploy() -> None:
    left = json.dumps({"boot": "one", "left": ["the NVIDIA module is not loaded", "another"]})

    def deploy(kernel: list[str], boot: str) -> Outcome:
        boots = ([boot], [boot], ["two"])
        return when_needed(host(kernels=(kernel,), drivers=(DKMS,), boots=boots).answers("rebooted.json", [left]))

    again, more, by_hand = deploy(READY, "one"), deploy(BOOT, "one"), deploy(READY, "hers")
    assert (again.failed, again.ran(ORDER)) == (True, 0)
    told = "was rebooted by an earlier deploy, and still: the NVIDIA module is not loaded. See `dmesg"
    assert told in again.told and "reboot the host yourself, and deploy again" in again.told
    # With a reason that is new, or after somebody else's reboot, it is worth one.
    assert (more.ran(ORDER), by_hand.ran(ORDER)) == (1, 1)


def test_what_a_reboot_did_not_change_is_remembered_on_the_host() -> None:
    outcome = when_needed(host(drivers=(DKMS,), kernels=(BOOT, BOOT, BOOT, READY)))

    (written,) = [
        command for command in outcome.commands if command.startswith("( test -d") and "rebooted.json" in command
    ]
    assert "base64 -d >" in written


def menu_of(*arguments: str) -> list[str]:
    """What a host says after the names of its kernels: its boot loader, with one entry."""
    entry = f"\tlinux\t/boot/vmlinuz-{K1} root=UUID=1 ro {' '.join(arguments)}"
    return ["--- next", "--- entries", "--- environment", "", "--- menu", "menuentry 'Debian' {", entry, "}"]


@pytest.mark.parametrize(("menu", "reboots"), [(menu_of("quiet"), 1), (menu_of("quiet", "old=1"), 0), ([], 0)])
def test_an_argument_that_the_settings_no_longer_have_goes_unless_others_have_it(menu: list[str], reboots: int) -> None:
    before = [K1, "BOOT_IMAGE=x quiet iommu=pt old=1", *BOOT[2:], *menu]
    actor = host(kernels=(before, before, before, READY), drivers=(LOADED,))

    outcome = when_needed(actor, kernel_args=[], former_args=["old=1", "older=1"])

    assert not outcome.failed, outcome.told
    assert outcome.ran(ORDER) == reboots
    assert ("booted with old=1, which the settings no longer have" in outcome.told) is bool(reboots)


@pytest.mark.parametrize(("given", "waited"), [({"timeout": 600}, "10 min 00 s"), ({}, "30 min 00 s")])
def test_a_host_that_never_comes_back_is_told_with_what_to_do(given: dict[str, Any], waited: str) -> None:
    outcome = when_needed(host(boots=(["one"],)), **given)

    assert outcome.failed
    assert f"did not come back within {waited} (" in outcome.told


def test_gpus_that_stay_away_are_counted() -> None:
    outcome = when_needed(host(gpus=(GPUS[:3],)))

    assert outcome.failed
    assert "lists 3 of 4 GPUs" in outcome.told


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"allowed": False}, "the setting `reboot` is `never`"),
        ({"actor": {"serving": (["llm@main.service loaded active running x"],)}}, "llm@main.service is serving"),
        ({"actor": {"drivers": ([],)}}, f"no NVIDIA module for kernel {K1}"),
    ],
)
def test_what_stands_against_a_reboot_is_told_and_nothing_is_rebooted(changes: dict[str, Any], why: str) -> None:
    actor = host(**changes.pop("actor", {}))

    outcome = when_needed(actor, **changes)

    assert outcome.failed
    assert why in outcome.told
    assert outcome.ran(ORDER) == 0


def test_a_module_that_did_not_build_comes_with_the_compilers_first_error() -> None:
    # As gcc said it of driver 550.163.01 on Debian's 6.1.0-57.
    error = (
        "/var/lib/dkms/nvidia/550.163.01/build/nvidia/nv-pci.c:219:9: error: too few arguments to function "
        "'pci_resize_resource'"
    )
    outcome = when_needed(host(drivers=([],)).answers("make.log", [error, "/var/lib/dkms/other.c:1:1: error: x"]))

    assert outcome.failed
    assert f"no NVIDIA module for kernel {K1}" in outcome.told
    assert f"DKMS's last build failed with: {error}. Fix that" in outcome.told
    assert outcome.ran(ORDER) == 0


SERVES = ["llm@main.service loaded active running x"]
NEWER = [K1, "BOOT_IMAGE=x quiet iommu=pt", f"/boot/initrd.img-{K2}", f"/boot/vmlinuz-{K1}", f"/boot/vmlinuz-{K2}"]


def test_a_newer_kernel_alone_waits_for_an_endpoint_that_serves_and_is_told() -> None:
    outcome = when_needed(host(kernels=(NEWER,), drivers=(LOADED,), serving=(SERVES,)))

    assert (outcome.foreseen, outcome.changed, outcome.failed) == (False, False, False)
    due = f"a reboot is due (kernel {K2} is installed, {K1} runs): waiting until llm@main.service no longer serves"
    # By the run itself, also where it does not show what needs no change; not while it is prepared.
    _, executed = outcome.told.split("--> Starting operation")
    assert [line for line in outcome.told.splitlines() if due in line and "noop" not in line and line in executed]


def test_a_newer_kernel_is_booted_where_nothing_serves_and_waits_for_nothing_beside_another_reason() -> None:
    both = [f"/lib/modules/{K2}/updates/dkms/nvidia.ko.xz", V1, *LOADED]
    booted = [K2, *NEWER[1:]]
    alone = when_needed(host(kernels=(NEWER, NEWER, NEWER, booted), drivers=(both,)))
    stale = [line.replace(" iommu=pt", "") for line in NEWER]
    beside = when_needed(host(kernels=(stale,), drivers=(both,), serving=(SERVES,)))

    assert (alone.failed, alone.ran(ORDER)) == (False, 1), alone.told
    assert (beside.failed, beside.ran(ORDER)) == (True, 0)
    assert "booted without iommu=pt), but llm@main.service is serving" in beside.told


def test_a_reboot_under_a_serving_endpoint_is_done_when_allowed() -> None:
    outcome = when_needed(host(serving=(SERVES,)), while_serving=True)

    assert not outcome.failed, outcome.told
    assert outcome.ran(ORDER) == 1


PINNED = [
    "--- next",
    "--- entries",
    "--- environment",
    "",
    "--- menu",
    '   set default="${next_entry}"',
    '   set default="gnulinux-advanced-1>gnulinux-6.12.57+deb13-amd64-advanced-1"',
    "menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple-1' {",
    f"\tlinux\t/boot/vmlinuz-{K2} root=UUID=1 ro quiet iommu=pt",
    "}",
    "submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-1' {",
    f"\tmenuentry 'Debian, with Linux {K2}' $menuentry_id_option 'gnulinux-{K2}-advanced-1' {{",
    f"\t\tlinux\t/boot/vmlinuz-{K2} root=UUID=1 ro quiet iommu=pt",
    "\t}",
    f"\tmenuentry 'Debian, with Linux {K1}' $menuentry_id_option 'gnulinux-{K1}-advanced-1' {{",
    f"\t\tlinux\t/boot/vmlinuz-{K1} root=UUID=1 ro quiet iommu=pt",
    "\t}",
    "}",
]


def test_a_host_whose_boot_loader_keeps_the_running_kernel_is_not_rebooted() -> None:
    both = [f"/lib/modules/{K2}/updates/dkms/nvidia.ko.xz", V1, *LOADED]
    outcome = when_needed(host(kernels=([*NEWER, *PINNED],), drivers=(both,)))

    assert (outcome.foreseen, outcome.changed, outcome.failed) == (False, False, False)
