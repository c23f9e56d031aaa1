"""Hosts as people have them: what their owners have set up neither breaks a run nor is broken by it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.lab.standin import Rig, bare
from tests.lab.test_refusals import rows

NAME = "rig18"
# What a login of this host has: German, a csh, a narrow umask, and settings of pip and the hub's client.
PERSONAL = """
apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y locales tcsh >/dev/null
echo 'de_DE.UTF-8 UTF-8' >/etc/locale.gen && locale-gen >/dev/null && echo LANG=de_DE.UTF-8 >/etc/default/locale
chsh -s /bin/tcsh ops
for kind in common-session common-session-noninteractive; do
    echo 'session optional pam_umask.so nousergroups umask=0077' >>/etc/pam.d/$kind
done
printf '[install]\\nuser = true\\n' >/etc/pip.conf
printf '%s\\n' 'HF_HUB_OFFLINE=1' 'PATH="/opt/tools/bin:$PATH"' >/etc/environment
"""


# Debian's Docker with a container and a log driver of its owner's; little space in three places; a package on hold; a
# GPU in MIG mode.
TROUBLE = """
apt-get -qq install -y docker.io >/dev/null 2>&1
printf '{"log-driver": "fluentd", "log-opts": {"fluentd-address": "192.0.2.1:24224"}}' >/etc/docker/daemon.json
systemctl restart docker
tar -chP /usr/bin/sleep /lib/x86_64-linux-gnu/libc.so.6 /lib64/ld-linux-x86-64.so.2 | docker import - theirs >/dev/null
docker run --detach --name=theirs --log-driver=none theirs /usr/bin/sleep infinity >/dev/null
mkdir -p /run/c/DEBIAN && printf 'Package: docker-compose-plugin\\nVersion: 2.0.0\\nArchitecture: all\\n\
Maintainer: x <x@example.org>\\nDescription: an old one\\n' >/run/c/DEBIAN/control
dpkg-deb -b /run/c /run/c.deb >/dev/null && dpkg -i /run/c.deb >/dev/null && apt-mark hold docker-compose-plugin
mount -t tmpfs -o size=1m tmpfs /var/cache/apt/archives
cp -a /boot /run/boot && mount -t tmpfs -o size=$(du -sk /boot | cut -f 1)k,nr_inodes=0 tmpfs /boot
cp -a /run/boot/. /boot; head -c 1G /dev/zero >/boot/full 2>/dev/null
mount -t tmpfs -o size=64m tmpfs /mnt && mkdir -p /srv/models /mnt/models && mount --bind /mnt/models /srv/models
nvidia-smi -i 1 -mig 1
"""
REMEDIES = """
apt-mark unhold docker-compose-plugin
umount /var/cache/apt/archives /srv/models /mnt
umount /boot && nvidia-smi -i 1 -mig 0
"""


@pytest.fixture
def rig(services: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A bare host whose endpoint will be the stand-in engine."""
    with bare(NAME, tmp_path_factory, login="ops") as rig:
        yield rig


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


def test_everything_in_the_way_is_told_at_once_and_after_the_remedies_one_deploy_serves(rig: Rig) -> None:
    older = rig.rigs.run(
        "pyinfra", "inventory/lab.py", "tests/lab/driver_steps.py", "-y", "--data", "driver_branch=610"
    )
    assert older.code == 0, older.output
    rig.host.reboot()
    rig.host.shell(TROUBLE)

    refused = rig.deploy()
    assert refused.code == 1, refused.output
    found = {f"{row.check}: {row.found}" for row in rows(refused.output)}
    for told in (
        r"docker-replaced: Docker CE must replace .*docker\.io.*, which stops running containers: theirs",
        r"packages-held: .*docker-compose-plugin",
        r"disk-space: /boot has .* free and needs",
        r"disk-space: /var/cache/apt/archives has .* free and needs",
        r"disk-space: /srv/models has .* free and needs",
        r"gpus-mig: GPU 1 \(.*\) is in MIG mode",
    ):
        assert [each for each in found if re.match(told, each)], (told, refused.output)

    rig.host.shell(REMEDIES)
    served = rig.deploy(replace_docker=True)
    assert served.code == 0, served.output
    assert rig.serves() == "standin-a"
    assert json.loads(rig.shell("cat /etc/docker/daemon.json"))["log-driver"] == "fluentd"
    assert "theirs" in rig.shell("docker ps --all --format '{{.Names}}'").split()
    assert rig.deploy().changed() == []
