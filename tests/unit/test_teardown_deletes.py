"""What a rebuild deletes, and what it must leave: each operation that removes something, on scripted answers."""

from __future__ import annotations

import io
import json
import shlex
from dataclasses import replace

import pytest
from pyinfra.api.operation import operation
from pyinfra.context import state

from rigup.catalog.memory import asked_context
from rigup.distros.apt_sources import source_uris
from rigup.ledger import Ledger
from rigup.operations._host import Commands
from rigup.operations.teardown import docker, files, finish, packages, units
from rigup.operations.teardown.kept import Kept, some
from tests.unit.deploys import Actor, Outcome, Said
from tests.unit.sample import CATALOGUE

DAEMON = "/etc/docker/daemon.json"
OURS = {"log-driver": "local", "features": {"cdi": True}}
BOOK = Ledger(
    files={"/etc/x": frozenset({"ours"})},
    keys={DAEMON: OURS},
    packages=("docker-ce", "haproxy", "nvidia-persistenced"),
    users=("rigup-fetch",),
    checkpoints=("/srv/models/org/name/abc",),
)


@operation()
def skipped(ledger: Ledger) -> Commands:
    """Confirm, in a run with -y."""
    state.check_for_changes = False
    yield from finish.confirmed._inner(ledger=ledger)  # type: ignore[attr-defined]


def removals(outcome: Outcome) -> list[str]:
    return [command for command in outcome.commands if command.startswith(("rm ", "userdel", "groupdel", "cp -a"))]


# The name


@pytest.mark.parametrize("typed", ["", "\n", "rig2\n", "@fake/rig\n", "@FAKE/RIG1\n", "yes\n", "y\n"])
def test_anything_but_the_hosts_name_stops_the_rebuild(monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    outcome = Actor().does(finish.confirmed, ledger=BOOK)
    assert outcome.failed and not outcome.changed
    assert "@fake/rig1 was not changed: its name was not typed" in outcome.told
    assert outcome.commands == []


def test_the_hosts_name_starts_it_and_so_does_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(" @fake/rig1 \n"))
    assert not Actor().does(finish.confirmed, ledger=BOOK).failed
    # With -y nothing is asked.
    monkeypatch.setattr("sys.stdin", io.StringIO("no\n"))
    outcome = Actor().does(skipped, ledger=BOOK)
    assert not outcome.failed and not outcome.foreseen


# Keys in files of others


def keys_removed(present: object, before: object | None = None) -> tuple[Outcome, Kept]:
    kept = Kept()
    actor = Actor()
    actor.answers(f"cat -- /var/lib/rigup/before{DAEMON}", Said([json.dumps(before)], ok=before is not None))
    actor.answers(f"cat -- {DAEMON}", Said([json.dumps(present)], ok=present is not None))
    actor.answers("stat -c", ["640 root docker"])
    outcome = actor.does(files.keys_removed, ledger=BOOK, kept=kept)
    return outcome, kept


def test_our_keys_stay_where_others_changed_the_value() -> None:
    outcome, kept = keys_removed({**OURS, "log-driver": "journald", "theirs": 1})
    assert kept.notes == [f"log-driver in {DAEMON}, which was changed since"]
    # It is rewritten with their values, with its mode and owner, and neither removed nor restored.
    assert f"cp -a -- /var/lib/rigup/before{DAEMON} {DAEMON}" not in outcome.commands
    assert outcome.ran("chown root:docker") and outcome.ran("chmod 640")
    assert [command for command in removals(outcome) if command == f"rm -f -- {DAEMON}"] == []


def test_a_file_that_held_only_our_keys_goes_and_one_of_others_is_restored() -> None:
    outcome, kept = keys_removed(OURS)
    assert f"rm -f -- {DAEMON}" in outcome.commands and kept.notes == []
    outcome, kept = keys_removed({**OURS, "theirs": 1}, {"theirs": 1})
    assert f"cp -a -- /var/lib/rigup/before{DAEMON} {DAEMON}" in outcome.commands
    assert f"rm -f -- {DAEMON}" not in outcome.commands and kept.notes == []


def test_a_file_that_is_gone_or_without_our_keys_is_left_alone() -> None:
    for present in (None, {"theirs": 1}):
        outcome, kept = keys_removed(present)
        assert removals(outcome) == [f"rm -f -- {DAEMON}.rigup-backup"], present
        assert kept.notes == []


# Files


def restored(*sums: str) -> tuple[Outcome, Kept]:
    kept = Kept()
    outcome = Actor().answers("sha256sum", list(sums)).does(files.files_restored, ledger=BOOK, kept=kept)
    assert not outcome.failed, outcome.told
    return outcome, kept


def test_our_file_is_removed_and_an_edited_one_is_saved_first() -> None:
    outcome, kept = restored("ours  /etc/x")
    assert "rm -f -- /etc/x" in outcome.commands and kept.notes == []
    outcome, kept = restored("edited  /etc/x")
    saved = next(number for number, each in enumerate(outcome.commands) if "/var/backups/rigup/etc/x" in each)
    assert saved < outcome.commands.index("rm -f -- /etc/x")
    assert kept.notes == ["/etc/x as it was changed by hand: saved as /var/backups/rigup/etc/x"]


def test_a_file_of_others_comes_back_and_one_that_is_back_is_left_alone() -> None:
    back = "cp -a -- /var/lib/rigup/before/etc/x /etc/x"
    for present in (["ours  /etc/x"], []):
        outcome, kept = restored(*present, "theirs  /var/lib/rigup/before/etc/x")
        assert back in outcome.commands and "rm -f -- /etc/x" not in outcome.commands and kept.notes == []
    outcome, kept = restored("theirs  /etc/x", "theirs  /var/lib/rigup/before/etc/x")
    assert back not in outcome.commands and "rm -f -- /etc/x" not in outcome.commands and kept.notes == []
    outcome, kept = restored()
    assert "rm -f -- /etc/x" not in outcome.commands


def test_directories_are_removed_from_the_inside() -> None:
    book = replace(BOOK, directories=("/etc/one", "/etc/one/two"))
    commands = Actor().does(files.files_restored, ledger=book, kept=Kept()).commands
    assert [each for each in commands if each.startswith("rmdir")] == [
        "rmdir -- /etc/one/two 2>/dev/null",
        "rmdir -- /etc/one 2>/dev/null",
    ]


@pytest.mark.parametrize(
    ("path", "ran"),
    [
        ("/etc/x", []),
        ("/etc/default/grub.d/rigup.cfg", ["update-grub"]),
        ("/etc/modprobe.d/rigup.conf", ["update-initramfs"]),
    ],
)
def test_what_the_boot_reads_is_made_anew_where_a_file_for_it_is_gone(path: str, ran: list[str]) -> None:
    book = replace(BOOK, files={path: frozenset({"ours"})})
    commands = Actor().does(files.files_restored, ledger=book, kept=Kept()).commands
    programs = ("update-grub", "update-initramfs")
    assert [each for each in programs if any(f"command -v {each} " in command for command in commands)] == ran


# Docker


def emptied(book: Ledger, **holds: list[str]) -> tuple[list[str], Kept]:
    """What is run where Docker holds this, and what is kept; `docker` itself lists containers."""
    actor, kept = Actor().answers("docker ps --all --filter label=rigup.plan", ["llm-main"]), Kept()
    for kind, listing in {"container": "docker ps", "volume": "docker volume ls", "image": "docker image ls"}.items():
        actor.answers(listing, holds.get(kind, []))
    outcome = actor.does(docker.docker_emptied, ledger=book, kept=kept)
    assert not outcome.failed, outcome.told
    return outcome.commands, kept


def test_a_docker_of_ours_that_holds_nothing_else_loses_its_data() -> None:
    book = replace(BOOK, images=("vllm@sha256:1",), volumes=("llm-main-root",))
    commands, kept = emptied(book)
    assert [each for each in commands if each.startswith(("docker rm", "docker volume rm", "docker image rm"))] == [
        "docker rm --force -- llm-main",
        "docker volume rm --force -- llm-main-root",
        "docker image rm -- vllm@sha256:1",
    ]
    stopped = commands.index("systemctl stop docker.socket docker.service containerd.service")
    for path in ("/var/lib/docker", "/var/lib/containerd"):
        aside = f"{path}.rigup-old"
        (removed,) = (number for number, each in enumerate(commands) if f"mv -T -- {path} {aside}" in each)
        assert commands[removed].startswith(f"rm -rf -- {aside} && ") and commands[removed].endswith(
            f"rm -rf -- {aside}"
        )
        assert stopped < removed
    assert (kept.docker, kept.notes) == ([], [])


@pytest.mark.parametrize("kind", ["container", "volume", "image"])
def test_a_docker_that_holds_something_of_others_keeps_its_data(kind: str) -> None:
    commands, kept = emptied(BOOK, **{kind: ["theirs", "theirs", ""]})
    assert kept.docker == [f"{kind} theirs"]
    assert kept.notes == [f"Docker itself, which holds {kind} theirs"]
    assert not any("rigup-old" in each or "systemctl stop" in each for each in commands)


def test_of_a_docker_of_others_only_what_is_ours_is_removed() -> None:
    commands, kept = emptied(replace(BOOK, packages=(), images=("vllm@sha256:1",)))
    assert "docker image rm -- vllm@sha256:1" in commands and kept.notes == []
    assert not any("rigup-old" in each or "systemctl stop" in each for each in commands)
    nothing = Actor().does(docker.docker_emptied, ledger=replace(BOOK, packages=()), kept=Kept())
    assert not nothing.foreseen and not any("docker" in each for each in nothing.commands)


@pytest.mark.parametrize("mounted", [True, False])
def test_the_disk_of_the_store_is_unmounted_and_not_mounted_at_boot(mounted: bool) -> None:
    outcome = Actor().answers("is-active", Said(ok=mounted)).does(units.unmounted, mounts=["srv-models.mount"])
    assert "systemctl disable --quiet -- srv-models.mount" in outcome.commands
    assert ("systemctl stop -- srv-models.mount" in outcome.commands) == mounted
    assert not Actor().does(units.unmounted, mounts=[]).foreseen


def test_a_message_names_twelve_things_and_counts_the_others() -> None:
    names = [f"n{number}" for number in range(14)]
    assert some(names[:12]) == "n0, n1, n2, n3, n4, n5, n6, n7, n8, n9, n10, n11"
    assert some(names) == f"{some(names[:12])} and 2 more"


# Users and the accounts of packages


def accounts(book: Ledger = BOOK, kept: Kept | None = None, group: str = "docker:x:999:") -> list[str]:
    actor = Actor().answers("getent group docker", [group]).answers("getent", ["there:x:998:998::/:/usr/sbin/nologin"])
    outcome = actor.does(packages.users_removed, ledger=book, kept=kept or Kept())
    assert not outcome.failed, outcome.told
    return [command for command in outcome.commands if command.startswith(("userdel", "groupdel"))]


def test_users_and_the_accounts_of_purged_packages_are_removed() -> None:
    own, group, haproxy = "userdel -- rigup-fetch", "groupdel -- docker", "userdel -- haproxy"
    persistenced = "userdel -- nvidia-persistenced"
    assert accounts() == [own, group, haproxy, persistenced]
    # Those of packages that stay, that others replaced, or that no deploy installed, stay as well.
    assert accounts(kept=Kept(packages={"haproxy"})) == [own, group, persistenced]
    assert accounts(replace(BOOK, removed=("docker.io",))) == [own]
    assert accounts(replace(BOOK, packages=("haproxy",))) == [own, haproxy]
    # A deploy may have installed packages and created no user.
    assert accounts(replace(BOOK, users=())) == [group, haproxy, persistenced]
    neither = Actor().does(packages.users_removed, ledger=replace(BOOK, users=(), packages=()), kept=Kept())
    assert not neither.foreseen


def test_a_group_with_members_stays_and_is_told() -> None:
    kept = Kept()
    assert "groupdel -- docker" not in accounts(kept=kept, group="docker:x:999:ops,dev")
    assert kept.notes == ["the group docker, which has members: ops,dev"]


def test_a_user_that_is_gone_is_not_removed_again_and_its_files_become_roots_first() -> None:
    gone = Actor().answers("getent", Said(ok=False)).does(packages.users_removed, ledger=BOOK, kept=Kept())
    assert not gone.failed and removals(gone) == []
    there = Actor().answers("getent group", Said(ok=False)).answers("getent passwd rigup", ["rigup-fetch:x"])
    there.answers("getent", Said(ok=False))
    commands = there.does(packages.users_removed, ledger=BOOK, kept=Kept()).commands
    given = next(number for number, each in enumerate(commands) if each.startswith("find /srv/models/org/name"))
    assert "-user rigup-fetch" in commands[given] and "chown -h root:root" in commands[given]
    assert given < commands.index("userdel -- rigup-fetch")


# The reboot


@pytest.mark.parametrize(
    ("cmdline", "loaded", "on_disk", "reboots"),
    [
        ("ro quiet", False, False, False),
        ("ro iommu=pt quiet", False, False, True),
        ("ro iommu=ptx", False, False, False),
        ("ro", True, False, True),
        ("ro", True, True, False),
    ],
)
def test_a_host_that_runs_nothing_of_ours_is_not_rebooted(
    cmdline: str, loaded: bool, on_disk: bool, reboots: bool
) -> None:
    actor = Actor().answers("uname -r", ["6.1.0-9-amd64", cmdline])
    actor.answers("test -d /sys/module/nvidia", Said(ok=loaded)).answers("modinfo nvidia", Said(ok=on_disk))
    kept = Kept()
    arguments = {"ledger": BOOK, "kernel_args": ["iommu=pt"], "timeout": 10, "kept": kept}
    outcome = actor.does(units.rebooted, allowed=False, **arguments)
    assert not outcome.failed and not any("reboot" in shlex.split(each) for each in outcome.commands)
    assert bool(kept.notes) == reboots
    assert all("until the next reboot" in note for note in kept.notes)


def test_what_a_deploy_has_written_or_installed_may_be_in_effect_until_a_reboot() -> None:
    arguments = {"kernel_args": [], "allowed": False, "timeout": 10, "kept": Kept()}
    books = {"packages": replace(BOOK, files={}), "files": replace(BOOK, packages=()), "both": BOOK}
    for name, book in {**books, "neither": replace(BOOK, packages=(), files={})}.items():
        outcome = Actor().answers("uname -r", ["6.1.0-9-amd64", "ro"]).does(units.rebooted, ledger=book, **arguments)
        assert outcome.foreseen == (name != "neither"), name


# Elsewhere


@pytest.mark.parametrize("no", ["no", "No", "false", "off", "OFF", "without", "disable"])
def test_a_disabled_source_has_no_addresses(no: str) -> None:
    text = f"Types: deb\nURIs: http://a\nEnabled: {no}\n"
    assert source_uris("a.sources", text) == set()
    assert source_uris("a.sources", text.replace(no, "yes")) == {"http://a"}


@pytest.mark.parametrize(
    ("written", "tokens"),
    [("262144", 262144), ("256K", 262144), ("256k", 256000), ("1m", 1_000_000), ("1M", 1 << 20), ("0.5K", 512)],
)
def test_a_context_is_read_with_every_unit_that_vllm_takes(written: str, tokens: int) -> None:
    recipe = CATALOGUE.recipe("vllm-nvfp4-cu130")
    argv = (*(each for each in recipe.argv if "max-model-len" not in each), f"--max-model-len={written}")
    assert asked_context(recipe.model_copy(update={"argv": argv})) == tokens
