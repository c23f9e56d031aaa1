"""The steps' own decisions, as far as they need no host."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import gevent
import pytest
from pyinfra.api.config import Config
from pyinfra.api.connect import connect_all
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State, StateStage
from pyinfra.context import ctx_host, ctx_state

from rigup.config.settings import Settings
from rigup.errors import InputError
from rigup.lock.lockfile import CheckpointLock
from rigup.plan.docker import daemon_values
from tasks import preflight
from tasks.base import NOT_RESTARTED
from tasks.context import Context, Refused
from tasks.gather import System, distro_of
from tasks.kernel import kernel
from tasks.preflight import _check_recipes
from tests.unit.deploys import Actor
from tests.unit.sample import CATALOGUE, lock, plan
from tests.unit.test_operations_units import shown

TRIXIE = {"ID": "debian", "VERSION_ID": "13", "PRETTY_NAME": "Debian GNU/Linux 13 (trixie)"}


def test_daemon_json_gets_only_our_keys_and_a_mirror_only_where_there_is_one() -> None:
    assert set(daemon_values(Settings())) == {"runtimes", "features", "log-driver"}
    assert daemon_values(Settings())["log-driver"] == "local"
    values = daemon_values(Settings(registry_mirror="http://10.0.0.1:5000", docker_log_driver="journald"))
    assert values["registry-mirrors"] == ["http://10.0.0.1:5000"]
    assert values["log-driver"] == "journald"


# What needrestart does with its configuration and with a unit (needrestart 3.6, sbin/needrestart).
NEEDRESTART = r"""
our %nrconf = (override_rc => { qr(^dbus) => 0, qr(^docker) => 0 });
eval do { local $/; <STDIN> }; die $@ if $@;
my %told = %{$nrconf{override_rc}};
for my $unit (@ARGV) { print "$unit\n" if !grep { $unit =~ /$_/ && !$told{$_} } keys %told }
"""


def test_of_all_units_only_rigups_are_kept_from_automatic_restarts() -> None:
    ours = [
        "llm@main.service",
        "model-fetch@nvidia--Qwen.service",
        "rigup-gateway@main.service",
        "rigup-switch.service",
    ]
    others = ["containerd.service", "llm-router.service", "my-llm@main.service", "ssh.service", "trigup-x.service"]
    argv = ["perl", "-e", NEEDRESTART, *ours, *others]
    restarted = subprocess.run(argv, input=NOT_RESTARTED, capture_output=True, text=True, check=True)
    assert restarted.stdout.split() == others


TODAY = date(2026, 12, 1)


def test_every_unknown_recipe_of_every_host_is_named_at_once() -> None:
    settings = {
        "rig1": Settings(recipe="vllm-nvfp4-cu13"),
        "rig2": Settings.model_validate({"endpoints": {"chat": {"recipe": "mtp1"}}}),
        "rig3": Settings(),
    }
    with pytest.raises(InputError) as caught:
        _check_recipes(settings, CATALOGUE, {}, TODAY)
    first, second = str(caught.value).splitlines()
    assert first.startswith("rig1: recipe: there is no recipe 'vllm-nvfp4-cu13': did you mean vllm-nvfp4-cu130")
    assert second == (
        "rig2: endpoints.chat.recipe: there is no recipe 'mtp1': did you mean "
        "vllm-nvfp4-cu130-mtp1 or vllm-nvfp4-destroyed-mtp1?"
    )


def test_a_recipe_that_would_load_for_minutes_and_not_fit_is_refused() -> None:
    large = CATALOGUE.recipe("vllm-nvfp4-cu130").model_copy(update={"id": "large", "checkpoint": "qwen3.5-397b-fp8"})
    catalog = replace(CATALOGUE, recipes={**CATALOGUE.recipes, "large": large})
    with pytest.raises(InputError) as caught:
        _check_recipes({"rig1": Settings(recipe="large"), "rig2": Settings()}, catalog, {}, TODAY)
    assert str(caught.value).startswith("rig1: recipe: recipe large: gpus: does not fit: weights 94.8")
    assert str(caught.value).endswith("use more GPUs, a smaller checkpoint or a shorter context [recipe-memory]")


def test_the_locked_files_of_a_checkpoint_decide_whether_it_fits() -> None:
    recipe = CATALOGUE.recipe("glm-5.3-flash")
    assert CATALOGUE.checkpoint(recipe.checkpoint).bytes is None
    settings = {"rig1": Settings(recipe=recipe.id)}
    _check_recipes(settings, CATALOGUE, {}, TODAY)
    listing = {"model.safetensors": f"{500 << 30} sha256:{'0' * 64}"}
    locked = CheckpointLock(revision="0" * 40, bytes=500 << 30, files=1, listing=listing)
    with pytest.raises(InputError, match=r"does not fit: weights 125.0 .*\[recipe-memory\]"):
        _check_recipes(settings, CATALOGUE, {}, TODAY, {CATALOGUE.checkpoint(recipe.checkpoint).key: locked})


def test_a_waiver_makes_a_finding_about_a_recipe_advice(capsys: pytest.CaptureFixture[str]) -> None:
    large = CATALOGUE.recipe("vllm-nvfp4-cu130").model_copy(update={"id": "large", "checkpoint": "qwen3.5-397b-fp8"})
    catalog = replace(CATALOGUE, recipes={**CATALOGUE.recipes, "large": large})
    waivers = {"recipe-memory": {"reason": "measured by hand", "until": "2026-12-01"}}
    settings = {"rig1": Settings.from_data({"recipe": "large", "waivers": waivers})}
    _check_recipes(settings, catalog, {}, TODAY)
    told = capsys.readouterr().err
    assert "Advice about recipes; the deploy continues." in told
    assert "(waived until 2026-12-01: measured by hand)" in told
    with pytest.raises(InputError, match="the waiver expired on 2026-12-01"):
        _check_recipes(settings, catalog, {}, TODAY + timedelta(days=1))


def test_a_distribution_counts_only_with_a_driver_of_the_wanted_branch() -> None:
    assert distro_of(System(TRIXIE, "root"), Settings()) == "debian13"
    assert distro_of(System(TRIXIE, "root"), Settings(driver_branch=580)) is None
    assert distro_of(System({"ID": "alpine"}, "root"), Settings()) is None


@pytest.mark.parametrize(
    ("offered", "installs"),
    [
        (
            ["linux-headers-6.12.57+deb13-amd64", "linux-headers-amd64"],
            "linux-headers-6.12.57+deb13-amd64 linux-headers-amd64",
        ),
        (["linux-headers-amd64", "linux-image-amd64"], "linux-headers-amd64 linux-image-amd64"),
    ],
)
def test_headers_are_those_of_the_kernel_that_boots_next_or_come_with_a_newer_one(
    offered: list[str], installs: str
) -> None:
    host = Actor().answers(
        "uname -r",
        ["6.12.41+deb13-amd64", "quiet", "/boot/vmlinuz-6.12.41+deb13-amd64", "/boot/vmlinuz-6.12.57+deb13-amd64"],
    )
    host.answers("apt-cache madison", [f" {name} | 6.12.63-1 | x" for name in offered])
    host.answers("'linux-image-*'", ["ii \tlinux-image-amd64\t6.12.57-1"])
    host.answers("systemctl show", shown("active", "exited"))

    outcome = host.walks(kernel, Context(plan(), Settings(), lock(), "debian13", gpus=4))

    assert [command.endswith(f" {installs}") for command in outcome.commands if "systemd-run" in command].count(
        True
    ) == 1


def test_a_kernel_of_another_flavor_never_comes_in_place_of_one_without_headers() -> None:
    release = "6.8.12-9-pve"
    host = Actor().answers("uname -r", [release, "quiet", f"/boot/vmlinuz-{release}"])
    host.answers("apt-cache madison", [" linux-headers-amd64 | 6.12.63-1 | x", " linux-image-amd64 | 6.12.63-1 | x"])
    host.answers("'linux-image-*'", [f"ii \tproxmox-kernel-{release}-signed\t6.8.12-9", "ii \tlinux-image-amd64\t6.1"])
    host.answers("systemctl show", shown("active", "exited"))

    outcome = host.walks(kernel, Context(plan(), Settings(), lock(), "debian12", gpus=4))

    assert outcome.failed
    assert f"no apt source offers proxmox-headers-{release}" in outcome.told
    assert not [command for command in outcome.commands if "linux-image-amd64" in command and "systemd-run" in command]


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("nonesuch", "@fake/rig2: recipe: there is no recipe 'nonesuch'"),
        ("vllm-nvfp4-destroyed-mtp1", "@fake/rig2: recipe: recipe vllm-nvfp4-destroyed-mtp1: "),
    ],
)
def test_what_is_refused_is_told_once_however_many_hosts_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, recipe: str, told: str
) -> None:
    for remembered in ("_contexts", "_refusals"):
        monkeypatch.setattr(preflight, remembered, type(getattr(preflight, remembered))())
    state = State(
        Inventory((["@fake/rig1", "@fake/rig2"], {"recipe": recipe, "rigup_lock": str(tmp_path / "lab.lock")})),
        Config(),
    )
    state.current_stage = StateStage.Connect
    connect_all(state)

    def looks(host: Host) -> str:
        with ctx_host.use(host), pytest.raises(Refused) as caught:
            preflight.preflight()
        return str(caught.value)

    with ctx_state.use(state):
        greenlets = [gevent.spawn(looks, host) for host in state.inventory]
        gevent.joinall(greenlets, raise_error=True)

    assert {each.value for each in greenlets} == {"preflight refused; nothing was changed"}
    assert capsys.readouterr().err.count(told) == 1
