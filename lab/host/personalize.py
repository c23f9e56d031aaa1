"""Turn the cached disk, which is the same for all hosts of all labs, into the disk of one host."""

import os
import uuid
from pathlib import Path

from lab import mirror
from lab.host.rootfs import place
from lab.mirror.distributions import RELEASES
from lab.settings import MIRROR_URL

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# As cloud-init writes it (cc_ssh, disable_root_opts).
_CLOSED = (
    "no-port-forwarding,no-agent-forwarding,no-X11-forwarding,"
    r"""command="echo 'Please login as the user \"{user}\" rather than the user \"root\".';echo;sleep 10;exit 142" """
)


def personalize(root: Path, name: str, host_key: Path, login_key: Path) -> None:
    """Write name, machine id, ssh keys and the lab's mirror to the disk under `root`.

    + host_key: the host's private ssh key, with the public one next to it in `.pub`
    + login_key: the public key that may log in, as the users of `Distribution.logins`
    """
    name_mirror(root)
    logins = RELEASES[_codename(root)].logins
    place(root / "etc/hostname", f"{name}\n")
    place(root / "etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost\n")
    place(root / "etc/machine-id", f"{uuid.uuid4().hex}\n", 0o444)
    place(root / "etc/resolv.conf", "# No name server: a lab host reaches only the lab's own network.\n")
    place(root / "etc/ssh/ssh_host_ed25519_key", host_key.read_text(), 0o600)
    place(root / "etc/ssh/ssh_host_ed25519_key.pub", host_key.with_suffix(".pub").read_text())
    for home in (root / "root", root / "home" / logins[0]):
        closed = _CLOSED.format(user=logins[0]) if home.name not in logins else ""
        place(home / ".ssh/authorized_keys", closed + login_key.read_text(), 0o600)
        (home / ".ssh").chmod(0o700)
        owner = home.stat()
        for path in (home / ".ssh", home / ".ssh/authorized_keys"):
            os.chown(path, owner.st_uid, owner.st_gid)


def _codename(root: Path) -> str:
    release = (root / "etc/os-release").read_text()
    codename = release.partition("VERSION_CODENAME=")[2].partition("\n")[0].strip('"')
    if not codename:
        raise ValueError(f"{root}/etc/os-release has no VERSION_CODENAME")
    return codename


def name_mirror(root: Path) -> None:
    """Write the apt sources of the disk under `root`: this lab's mirror, whose address the cached disk cannot know."""
    codename = _codename(root)
    directory = root / "etc/apt/sources.list.d"
    if RELEASES[codename].family == "ubuntu":
        sources = directory / "ubuntu.sources"
        sources.write_text(sources.read_text().replace("@MIRROR@", MIRROR_URL))
        keyring = root / "usr/share/keyrings/ubuntu-archive-keyring.gpg"
        keyring.write_bytes(mirror.public_keys()["ubuntu"].keyring.read_bytes())
        return
    (directory / "debian.sources").write_text(
        f"Types: deb\nURIs: {MIRROR_URL}/debian\nSuites: {codename} {codename}-updates\nComponents: main\n"
        f"Signed-By: {_KEYRING}\n\n"
        f"Types: deb\nURIs: {MIRROR_URL}/debian-security\nSuites: {codename}-security\nComponents: main\n"
        f"Signed-By: {_KEYRING}\n"
    )
    (directory / "lab-kernel.sources").write_text(f"Types: deb\nURIs: {MIRROR_URL}/kernel\nSuites: ./\nTrusted: yes\n")
