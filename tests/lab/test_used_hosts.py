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

# What people reported in public, docs/contributing/reports.md. None of this needs a remedy.
REPORTED = """
DEBIAN_FRONTEND=noninteractive apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq install -y apt-listbugs >/dev/null
for name in docker.gpg docker-archive.gpg; do
    printf 'deb [signed-by=/usr/share/keyrings/%s] DOCKER trixie stable\\n' $name >/etc/apt/sources.list.d/$name.list
done
mount -t tmpfs -o noexec tmpfs /tmp && mount -t tmpfs -o noexec tmpfs /var/tmp
mkdir -p /etc/docker /etc/systemd/system/docker.service.d && echo '{"userns-remap": "default"}' >/etc/docker/daemon.json
runtime=nvidia=/usr/bin/nvidia-container-runtime
printf '%s\\n' '[Service]' ExecStart= "ExecStart=/usr/bin/dockerd --host=fd:// --add-runtime=$runtime" \
    >/etc/systemd/system/docker.service.d/override.conf
"""
# And this does: another repository with two keys, a module that DKMS cannot build, a disk without inodes, a module of
# the driver that must not load, a log driver in Docker's unit.
REFUSED = """
for name in winehq.gpg winehq-archive.gpg; do
    printf 'deb [signed-by=/usr/share/keyrings/%s] http://192.0.2.1/wine trixie main\\n' $name
done >/etc/apt/sources.list.d/winehq.list
mkdir -p /var/lib/dkms/asihpi/4.20.39/build && touch /var/lib/dkms/asihpi/4.20.39/build/make.log
mkdir -p /run/h/DEBIAN && printf 'Package: linux-headers-6.1.0-10-amd64\\nVersion: 6.1.38-1\\nArchitecture: all\\n\
Maintainer: x <x@example.org>\\nDescription: not configured\\n' >/run/h/DEBIAN/control
printf '#!/bin/sh\\nexit 11\\n' >/run/h/DEBIAN/postinst && chmod 755 /run/h/DEBIAN/postinst
dpkg-deb -b /run/h /run/h.deb >/dev/null && ! dpkg -i /run/h.deb
for path in /var/lib/docker /var/lib/containerd; do
    mkdir -p $path && mount -t tmpfs -o size=32g,nr_inodes=2000 tmpfs $path
done
echo 'install nvidia /bin/false' >/etc/modprobe.d/blacklist-nvidia.conf
sed -i '/dockerd/s/$/ --log-driver=journald/' /etc/systemd/system/docker.service.d/override.conf
"""
REMEDIED = """
rm -r /etc/apt/sources.list.d/winehq.list /var/lib/dkms/asihpi /etc/modprobe.d/blacklist-nvidia.conf
dpkg --purge linux-headers-6.1.0-10-amd64
umount /var/lib/docker /var/lib/containerd
sed -i 's/ --log-driver=journald$//' /etc/systemd/system/docker.service.d/override.conf
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


def test_a_host_as_people_report_them_is_refused_for_what_is_in_the_way_and_served_with_the_rest(rig: Rig) -> None:
    rig.host.shell(REPORTED.replace("DOCKER", f"{rig.rigs.defaults['docker_mirror']}/debian"))
    rig.host.shell(REFUSED)

    refused = rig.deploy()
    assert refused.code == 1, refused.output
    assert {row.check for row in rows(refused.output)} == {
        "apt-refuses",
        "packages-unconfigured",
        "disk-inodes",
        "driver-disabled",
        "docker-flags",
    }

    rig.host.shell(REMEDIED)
    served = rig.deploy()
    assert served.code == 0, served.output
    assert rig.serves() == "standin-a"
    kept = json.loads(rig.shell("cat /etc/docker/daemon.json"))
    assert (kept["userns-remap"], kept["log-driver"]) == ("default", "local")
    assert rig.shell("systemctl show --property=ExecStart docker").count("--add-runtime=nvidia=") == 1
    assert rig.deploy().changed() == []
