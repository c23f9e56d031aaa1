"""An Ubuntu host as its cloud images make it: from bare to served, through its owner's updates, and back to bare.

The tests build on each other, in file order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.lab.rigs import Result
from tests.lab.standin import Rig, bare
from tests.lab.test_refusals import rows

NAME = "rig19"
# What the image brings and a deploy passes by: GRUB's defaults, sources, needrestart, unattended upgrades.
OWNERS = (
    "etc/apt/apt.conf.d/20auto-upgrades",
    "etc/apt/apt.conf.d/50unattended-upgrades",
    "etc/apt/apt.conf.d/99needrestart",
    "etc/apt/sources.list",
    "etc/apt/sources.list.d/ubuntu.sources",
    "etc/default/grub",
    "etc/default/grub.d/50-cloudimg-settings.cfg",
    "etc/needrestart/needrestart.conf",
    "etc/sudoers.d/90-cloud-init-users",
)
# What dpkg and systemd write of their own accord when packages come and go.
ITS_OWN = re.compile(r"etc/((passwd|group|shadow|gshadow|subuid|subgid)-?|ld\.so\.cache)$")


@dataclass
class Ubuntu:
    """The host, and its /etc when it was bare."""

    rig: Rig
    etc: dict[str, str] = field(default_factory=dict)

    def files(self) -> dict[str, str]:
        files = self.rig.host.files().items()
        return {path: what for path, what in files if path.startswith("etc/") and not ITS_OWN.match(path)}


@pytest.fixture(scope="module")
def ubuntu(services: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ubuntu]:
    """A bare host whose endpoint will be the stand-in engine."""
    with bare(NAME, tmp_path_factory, login="ubuntu", release="noble") as rig:
        ubuntu = Ubuntu(rig)
        ubuntu.etc = ubuntu.files()
        assert ubuntu.etc.keys() >= {*OWNERS}
        yield ubuntu


def plan(rig: Rig) -> Result:
    rig.rigs.write(recipe="standin-a")
    return rig.rigs.run("rigup", "plan")


def test_only_what_is_in_the_way_is_named(ubuntu: Ubuntu) -> None:
    rig = ubuntu.rig
    rig.shell("snap install docker")
    refused = plan(rig)
    assert [row.check for row in rows(refused.output)] == ["docker-snap"], refused.output
    rig.shell("snap remove docker")
    ready = plan(rig)
    assert (ready.code, rows(ready.output)) == (2, []), ready.output
    assert "operations would change something" in ready.output


def test_the_closed_login_of_root_is_told_in_the_hosts_own_words(ubuntu: Ubuntu) -> None:
    rig = ubuntu.rig
    rig.rigs.hosts[NAME]["user"] = "root"
    try:
        refused = plan(rig)
    finally:
        rig.rigs.hosts[NAME]["user"] = "ubuntu"
    assert refused.code != 0
    assert 'Please login as the user "ubuntu" rather than the user "root".' in refused.output


def test_a_bare_host_that_fetches_its_updates_is_served(ubuntu: Ubuntu) -> None:
    rig = ubuntu.rig
    # As at the first boot; it holds the lock of apt's lists.
    rig.shell("systemctl start --no-block apt-daily.service")
    deployed = rig.deploy()
    assert deployed.code == 0, deployed.output
    assert rig.serves() == "standin-a"
    assert rig.deploy().changed() == []
    audit = rig.rigs.audit()
    assert audit.code == 0, audit.output
    # The settings of the image come first, and the kernel is the newest.
    assert re.match(
        r"\S+6\.8\.0-85-generic \S+ ro console=tty1 console=ttyS0 .*iommu=pt", rig.shell("cat /proc/cmdline")
    )
    # An update that is being phased in and is not yet for this host.
    assert "deferred due to phasing:\n  curl" in rig.shell("apt-get --simulate upgrade")
    assert {path: ubuntu.files()[path] for path in OWNERS} == {path: ubuntu.etc[path] for path in OWNERS}


def test_an_update_of_libraries_restarts_other_services_and_no_endpoint(ubuntu: Ubuntu) -> None:
    rig = ubuntu.rig
    before, ssh = rig.invocation(), rig.invocation("nvidia-persistenced")
    # needrestart then runs in the mode of Ubuntu's hook.
    said = rig.shell("DEBIAN_FRONTEND=noninteractive apt-get -y install --reinstall libc6")
    assert "Restarting services..." in said
    assert (rig.invocation(), rig.serves()) == (before, "standin-a")
    assert rig.invocation("nvidia-persistenced") != ssh


def test_another_driver_branch_comes_together_with_a_kernel_of_the_enablement_series(ubuntu: Ubuntu) -> None:
    rig = ubuntu.rig
    rig.shell("DEBIAN_FRONTEND=noninteractive apt-get -y install linux-image-generic-hwe-24.04")
    rig.shell("systemctl stop llm@main")
    deployed = rig.deploy(driver_branch=610)
    assert deployed.code == 0, deployed.output
    assert rig.serves() == "standin-a"
    assert rig.shell("uname -r; cat /sys/module/nvidia/version").split() == ["6.14.0-33-generic", "610.57.04"]
    assert "linux-headers-generic-hwe-24.04" in rig.shell("apt-mark showmanual").split()
    assert rig.deploy(driver_branch=610).changed() == []
    audit = rig.rigs.audit()
    assert audit.code == 0, audit.output


def test_a_rebuild_leaves_the_host_as_the_image_made_it(ubuntu: Ubuntu) -> None:
    rig = ubuntu.rig
    rebuilt = rig.rigs.run("pyinfra", "inventory/lab.py", "rebuild.py", "-y")
    assert rebuilt.code == 0, rebuilt.output
    assert "nothing is left of" in rebuilt.output
    now = ubuntu.files()
    changed = {path for path in {*now, *ubuntu.etc} if now.get(path) != ubuntu.etc.get(path)}
    assert changed == set()
    names = rig.shell("dpkg-query -W -f '${Package}\\n'").split()
    assert [name for name in names if "nvidia" in name or "docker" in name or "cuda" in name] == []
