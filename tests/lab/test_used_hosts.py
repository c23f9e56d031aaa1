"""Hosts as people have them: what their owners have set up neither breaks a run nor is broken by it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab import machine, world
from tests.lab.rigs import Rigs
from tests.lab.standin import Rig, lock_trained_weights, project

NAME = "rig18"
# What a login of this host has: German, a csh, a narrow umask, and settings of pip and the hub's client.
PERSONAL = """
apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y locales tcsh >/dev/null
echo 'de_DE.UTF-8 UTF-8' >/etc/locale.gen && locale-gen >/dev/null && echo LANG=de_DE.UTF-8 >/etc/default/locale
chsh -s /bin/tcsh ops
for kind in common-session common-session-noninteractive; do
    echo 'session optional pam_umask.so umask=0077' >>/etc/pam.d/$kind
done
printf '[install]\\nuser = true\\n' >/etc/pip.conf
printf '%s\\n' 'HF_HUB_OFFLINE=1' 'PATH="/opt/tools/bin:$PATH"' >/etc/environment
"""


@pytest.fixture
def rig(services: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A bare host whose endpoint will be the stand-in engine."""
    host = machine.start(NAME)
    try:
        host.reset(release="trixie", gpus=4, login="ops")
        machine.write_known_hosts()
        copy = project(tmp_path_factory.mktemp("project"))
        rigs = Rigs(tmp_path_factory.mktemp("used"), {NAME: world.connection(host)}, world.defaults(), copy)
        lock_trained_weights(rigs)
        yield Rig(host, rigs)
    finally:
        host.remove()
        machine.write_known_hosts()


def test_a_login_with_habits_of_its_own_is_served_without_a_remark(rig: Rig) -> None:
    rig.host.shell(PERSONAL)
    assert rig.host.ssh("umask; echo $LANG", check=False).stdout.split() == ["77", "de_DE.UTF-8"]

    deployed = rig.deploy()
    assert deployed.code == 0, deployed.output
    assert "Warning" not in deployed.output
    assert rig.serves() == "standin-a"
    assert rig.deploy().changed() == []
    audit = rig.rigs.audit()
    assert audit.code == 0, audit.output
    # What the owner has set is still there.
    kept = rig.host.shell("cat /etc/pip.conf /etc/environment /etc/default/locale; getent passwd ops").stdout
    assert [line for line in kept.splitlines() if line in ("user = true", "HF_HUB_OFFLINE=1", "LANG=de_DE.UTF-8")] == [
        "user = true",
        "HF_HUB_OFFLINE=1",
        "LANG=de_DE.UTF-8",
    ]
    assert kept.splitlines()[-1].endswith(":/bin/tcsh")
