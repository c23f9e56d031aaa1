"""`rigup init`: hosts are looked at over ssh, and a project is written completely or not at all."""

from __future__ import annotations

import getpass
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from rigup.config.inventory import load_inventory
from rigup.ssh import login
from tests.unit.loopback_sshd import OWN_ADDRESS, Sshd, programs_first, running_sshd
from tests.unit.own_command import rigup

GIB = 1 << 30
DEBIAN = 'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n'
IDENTITY = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "EMAIL": ""}
ANN = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "Ann"), ("EMAIL", "a@b.c"))
}
FILES = {
    "README.md", ".gitignore", "deploy.py", "rebuild.py", "group_data/all.py", "inventory/lab.py", "inventory/lab.yaml",
}  # fmt: skip


def pci(*devices: str) -> str:
    """What `grep` shows of a bus with these cards of NVIDIA's, and another vendor's graphics."""
    cards = [("0x10de", f"0x{device}", "0x030200") for device in devices] + [("0x1a03", "0x2000", "0x030000")]
    return "".join(
        f"/sys/bus/pci/devices/0000:{number:02x}:00.0/{name}:{value}\n"
        for number, card in enumerate(cards)
        for name, value in zip(("vendor", "device", "class"), card, strict=True)
    )


def disks(**free: int) -> str:
    """What `df` shows: GiB that are free, by mount point without its slash."""
    rows = [f"{2000 * GIB} {amount * GIB} /{name}" for name, amount in free.items()]
    return "\n".join(["     1B-blocks        Avail Mounted on", *rows]) + "\n"


SERVER = {
    "release": DEBIAN,
    "pci": pci(*["2bb1"] * 4),
    "disks": disks(**{"": 40, "data": 1500}),
    "uid": "0\n",
    "memory": f"MemTotal: {512 << 20} kB\n",
}


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """A host that ssh's own configuration knows as `box` and as `other`, and that counts its sessions."""
    folder = tmp_path / "sshd"
    (folder / "programs").mkdir(parents=True)
    (folder / ".ssh").mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name, value in (IDENTITY | ANN).items():
        monkeypatch.setenv(name, value)
    count = f"ForceCommand echo session >>{folder}/sessions;"
    with running_sshd(folder, programs_first(folder / "programs").replace("ForceCommand", count)) as server:
        (folder / ".ssh/config").write_text(
            f"Host box other\nHostName {OWN_ADDRESS}\nPort {server.port}\nUser {getpass.getuser()}\n"
            f"IdentityFile {server.key}\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known_hosts\n"
        )
        # Of another test's configuration.
        login._login.cache_clear()
        yield server


@pytest.fixture
def host(sshd: Sshd) -> Callable[..., None]:
    """Sets what the host is."""

    def is_(**parts: str) -> None:
        for name, text in (SERVER | parts).items():
            (sshd.folder / name).write_text(text)
        at = sshd.folder
        scripts = {
            "cat": f"case $1 in /etc/os-release) set {at}/release;; /proc/meminfo) set {at}/memory;; esac\n"
            'exec /bin/cat "$@"',
            "id": f"exec /bin/cat {at}/uid",
            "sudo": "exit 1",
            "df": f"exec /bin/cat {at}/disks",
            "grep": f'case "$*" in *sys/bus/pci*) exec /bin/cat {at}/pci;; esac; exec /bin/grep "$@"',
        }
        for name, script in scripts.items():
            (at / "programs" / name).write_text(f"#!/bin/sh\n{script}\n")
            (at / "programs" / name).chmod(0o755)

    return is_


def init(cwd: Path, *hosts: str, answer: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    done = rigup("init", "lab", *(word for each in hosts for word in ("--host", each)), cwd=cwd, answer=answer)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def names(directory: Path) -> set[str]:
    return {
        str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file() and ".git" not in path.parts
    }


def git(directory: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=directory, capture_output=True, text=True, check=True).stdout


def written(tmp_path: Path) -> str:
    """The entries of the hosts, with their comments."""
    return (tmp_path / "lab/inventory/lab.yaml").read_text().partition("\nhosts:\n")[2]


def test_a_host_is_looked_at_in_one_round_trip_and_gets_a_recipe_that_fits(
    host: Callable[..., None], sshd: Sshd, tmp_path: Path
) -> None:
    host()
    said = init(tmp_path, "rig1=box").stdout.splitlines()
    found = (
        "Debian GNU/Linux 13 (trixie); 4 x RTX PRO 6000 Blackwell Workstation Edition; 512.0 GiB of memory; login: root"
    )
    assert said[0] == f"rig1: {found}"
    assert said[1] == "    free space: 42.9 GB on /, 1610.6 GB on /data"
    assert said[2] == "    the checkpoint takes 251.2 GB, and /srv/models has less: `model_store` is /data/models"
    assert said[3].startswith("recipe: vllm-nvfp4-cu130 (the best for agents on these cards: tool calls reliable; ")
    assert said[4:] == ["Wrote lab. Next: cd lab && rigup plan"]
    # What shows that the login runs commands, and one for everything else.
    assert (sshd.folder / "sessions").read_text().count("session") == 2

    assert names(tmp_path / "lab") == FILES
    inventory = load_inventory(tmp_path / "lab/inventory/lab.yaml")
    settings = inventory.host("rig1").settings
    assert (settings.recipe, settings.model_store) == ("vllm-nvfp4-cu130", "/data/models")
    assert f"  # {said[2].strip()}\n  rig1:\n    address: box\n" in written(tmp_path)


@pytest.mark.parametrize(
    ("parts", "recipe"),
    [
        ({"pci": pci("2bb1", "2bb1")}, "qwen3.8-flash-next-sglang"),
        ({"pci": pci("2bb1")}, "qwen3.8-flash-next-sglang"),
        # Not enough memory, another architecture, none at all.
        ({"pci": pci(*["2c02"] * 4)}, None),
        ({"pci": pci(*["2335"] * 4)}, None),
        ({"pci": pci()}, None),
    ],
)
def test_the_recipe_fits_the_cards(
    host: Callable[..., None], tmp_path: Path, parts: dict[str, str], recipe: str | None
) -> None:
    host(**parts)
    said = init(tmp_path, "rig1=box").stdout
    text = (tmp_path / "lab/inventory/lab.yaml").read_text()
    if recipe:
        assert f"recipe: {recipe} (the best for agents on these cards: " in said
        assert f"\n  recipe: {recipe}\n" in text
    else:
        assert "recipe: none chosen, no recipe fits these cards" in said
        assert "\n  # recipe: NAME " in text and "  # no recipe fits these cards\n  rig1:\n" in text
    load_inventory(tmp_path / "lab/inventory/lab.yaml")


def test_what_a_deploy_would_refuse_is_said(host: Callable[..., None], tmp_path: Path) -> None:
    host(release='ID=fedora\nVERSION_ID=43\nPRETTY_NAME="Fedora Linux 43"\n', pci=pci("2335"), uid="1000\n")
    said = init(tmp_path, "rig1=box").stdout
    for words in (
        "Fedora Linux 43 is not supported",
        "not supported: NVIDIA H200 (10de:2335)",
        "a deploy needs root, or sudo without a password",
    ):
        assert words in said and words in written(tmp_path)


@pytest.mark.parametrize("name", ["x\x1b[2J # y", "x\x85hosts: {evil: {address: a}}", "\u202ex"])
def test_nothing_that_a_host_says_gets_out_of_its_comment(host: Callable[..., None], tmp_path: Path, name: str) -> None:
    host(release=f'ID=debian\nVERSION_ID=13\nPRETTY_NAME="{name}"\n')
    said = init(tmp_path, "rig1=box").stdout
    for text in (said, written(tmp_path)):
        assert text.replace("\n", "").isprintable()
    assert list(load_inventory(tmp_path / "lab/inventory/lab.yaml").hosts) == ["rig1"]


def test_a_host_that_is_not_reached_is_written_with_the_reason_and_the_others_go_on(
    host: Callable[..., None], tmp_path: Path
) -> None:
    host()
    said = init(tmp_path, "gone=me@127.0.0.1:1", "rig1=box").stdout
    why = "no connection to me@127.0.0.1, port 1: Connection refused: start sshd on the host"
    assert f"gone: not reached: {why}" in said
    assert written(tmp_path).startswith(f"  # `rigup init` did not reach it: {why}")
    inventory = load_inventory(tmp_path / "lab/inventory/lab.yaml")
    gone = inventory.host("gone").connection
    assert (gone.address, gone.user, gone.port) == ("127.0.0.1", "me", 1)
    assert inventory.host("rig1").settings.recipe == "vllm-nvfp4-cu130"


def test_a_machine_without_any_key_is_told_to_make_one(sshd: Sshd, tmp_path: Path) -> None:
    # With ssh's usual keys, which are not there.
    config = (sshd.folder / ".ssh/config").read_text().replace(f"IdentityFile {sshd.key}\n", "IdentityAgent none\n")
    (sshd.folder / ".ssh/config").write_text(config.replace("IdentitiesOnly yes\n", ""))
    said = init(tmp_path, "rig1=box").stdout
    assert "there is no key to offer: make a key with `ssh-keygen -t ed25519` and put the public key into ~" in said


def test_hosts_are_asked_for_until_an_empty_line_and_a_wrong_one_again(
    host: Callable[..., None], tmp_path: Path
) -> None:
    host()
    said = init(tmp_path, answer="rig1\nrig1=box\nrig2=box\nrig2=other\n\n").stdout
    assert "'rig1' is not a host: write NAME=[USER@]ADDRESS[:PORT], for example rig1=ops@192.0.2.11" in said
    assert "hosts.rig2.address: is also the address of rig1" in said
    assert list(load_inventory(tmp_path / "lab/inventory/lab.yaml").hosts) == ["rig1", "rig2"]


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("a=h", "h", None),
        ("a=h:22", "h", 22),
        ("a=u@[::1]:22", "::1", 22),
        ("a=[2001:db8::1]", "2001:db8::1", None),
        ("a=::1", "::1", None),
    ],
)
def test_a_host_is_named_as_for_ssh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, address: str, port: int | None
) -> None:
    # A user without keys, and so without a connection.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    init(tmp_path, text)
    connection = load_inventory(tmp_path / "lab/inventory/lab.yaml").host("a").connection
    assert (connection.address, connection.port, connection.user) == (address, port, "u" if "@" in text else None)


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        ([], "no host was named: name each with --host NAME=[USER@]ADDRESS[:PORT]"),
        (["rig1"], "'rig1' is not a host"),
        (["a=b:c"], "'a=b:c' is not a host"),
        (["a=[::1"], "'a=[::1' is not a host"),
        (["a=h:99999"], "hosts.a.port: must be at most 65535, got 99999"),
        (["a/b=h"], "hosts.a/b: is not a host name"),
        (["a=h", "a=i"], "a is named twice"),
        (["a=h", "b=h"], "hosts.b.address: is also the address of a"),
    ],
)
def test_hosts_that_cannot_be_right_are_refused_before_anything_is_written(
    tmp_path: Path, hosts: list[str], message: str
) -> None:
    assert message in init(tmp_path, *hosts, code=1).stderr
    assert list(tmp_path.iterdir()) == []


def test_a_directory_with_content_stays_as_it_is(host: Callable[..., None], tmp_path: Path) -> None:
    host()
    (tmp_path / "lab").mkdir()
    init(tmp_path, "rig1=box")
    before = {name: (tmp_path / "lab" / name).read_bytes() for name in FILES}
    refused = init(tmp_path, "rig2=box", code=1).stderr
    assert refused == "lab is not empty: choose another directory, or add the hosts to lab/inventory/lab.yaml\n"
    assert {name: (tmp_path / "lab" / name).read_bytes() for name in FILES} == before
    (tmp_path / "file").touch()
    assert "file is not a directory" in rigup("init", "file", cwd=tmp_path).stderr


def test_the_users_files_are_in_a_repository_of_their_own(
    host: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host()
    # As in a hook of another repository.
    with monkeypatch.context() as hook:
        hook.setenv("GIT_DIR", str(tmp_path / "another"))
        init(tmp_path, "rig1=box")
    lab = tmp_path / "lab"
    assert git(lab, "log", "--format=%an %s") == f"Ann Begin with rigup {version('rigup')}\n"
    assert set(git(lab, "ls-files").split()) == FILES
    for name in ("inventory/lab.lock", ".rigup/runs/x", "hub.key", "id_ed25519", ".env", "inventory/recipes/mine.yaml"):
        (lab / name).parent.mkdir(parents=True, exist_ok=True)
        (lab / name).touch()
    git(lab, "add", "--all")
    assert set(git(lab, "ls-files").split()) == FILES | {"inventory/lab.lock", "inventory/recipes/mine.yaml"}


def test_without_an_identity_or_without_git_the_project_is_there_all_the_same(
    host: Callable[..., None], sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host()
    for name in ANN:
        monkeypatch.delenv(name)
    said = init(tmp_path, "rig1=box").stdout
    assert "git does not know your name and address, so nothing is committed yet: set them with `git config" in said
    assert set(git(tmp_path / "lab", "diff", "--cached", "--name-only").split()) == FILES
    (tmp_path / "lab").rename(tmp_path / "first")
    # Only ssh is installed.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").symlink_to("/usr/bin/ssh")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert "git is not installed" in init(tmp_path, "rig1=box").stdout
    assert names(tmp_path / "lab") == FILES
    assert not (tmp_path / "lab/.git").exists()


def test_what_fails_in_the_middle_leaves_nothing(
    host: Callable[..., None], sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host()
    (tmp_path / "in").mkdir()
    # Another program is faster: the directory has content when the project is complete.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git").write_text(f"#!/bin/sh\nmkdir -p {tmp_path}/in/lab && touch {tmp_path}/in/lab/theirs\n")
    (tmp_path / "bin/git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    refused = init(tmp_path / "in", "rig1=box", code=1).stderr
    assert refused == "lab cannot be written: Directory not empty: nothing was left there\n"
    assert [str(path.relative_to(tmp_path)) for path in (tmp_path / "in").rglob("*")] == ["in/lab", "in/lab/theirs"]


def test_killed_at_any_time_it_leaves_no_project(host: Callable[..., None], sshd: Sshd, tmp_path: Path) -> None:
    host()
    # Killed by git, when all files are there.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git").write_text("#!/bin/sh\nkill -9 $PPID\n")
    (tmp_path / "bin/git").chmod(0o755)
    argv = [sys.executable, "-m", "rigup.cli", "init", "lab", "--host", "rig1=box"]
    done = subprocess.run(argv, cwd=tmp_path, env={**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"})
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "lab").exists()
    init(tmp_path, "rig1=box")
    assert names(tmp_path / "lab") == FILES
