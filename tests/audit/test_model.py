"""The model step: each checkpoint is complete, at its commit and as published."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from rigup.audit.check import check
from rigup.audit.expect import expect, expect_file, expect_none, expect_open, expect_owner, expect_text, expect_units
from rigup.audit.subject import Subject
from rigup.lock.addresses import ip_of
from rigup.paths import (
    BOOT_UNITS,
    FETCH_REQUIREMENTS,
    FETCH_STORE_DROP_IN,
    FETCH_UNIT,
    FETCH_VENV,
    HOST_PROGRAM,
    HUB_TOKEN,
    PEERS_DROP_IN,
    PEERS_RUNTIME,
    PEERS_UNIT,
    RSYNCD_CONFIG,
    SYSTEM_UNITS,
)
from rigup.plan.model import CheckpointPlan
from rigup.resources import FILES
from rigup.ssh import testinfra_backend
from rigup.ssh.login import login_of
from rigup.templates import filled

# Hex digits of git's own hashes, which the hub lists for small files.
GIT = 40


def git_digest(rig: Subject, path: str) -> str:
    """Return git's hash of a file: SHA-1 of a header with its size, and its content."""
    content = base64.b64decode(rig.output("base64 -w0 -- %s", path))
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def stamp(rig: Subject, checkpoint: CheckpointPlan) -> dict[str, Any]:
    """Return the stamp that a download writes once everything is verified."""
    try:
        return dict(json.loads(rig.text(f"{checkpoint.path}.verified.json") or "{}"))
    except ValueError:
        return {}


def sizes(rig: Subject, checkpoint: CheckpointPlan) -> dict[str, int]:
    """Return the size of every file in the checkpoint's directory."""
    listed = rig.names("find %s -type f -printf '%%s %%P\\0'", checkpoint.path)
    return {name: int(size) for size, _, name in (entry.partition(" ") for entry in listed)}


def rsyncd(text: str) -> dict[str, str]:
    """Return the values of an rsync daemon's configuration by name; those of a module are prefixed with its name."""
    found, module = {}, ""
    for line in (line.strip() for line in text.splitlines()):
        if line.startswith("["):
            module = f"{line.strip('[]')} "
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found[f"{module}{name.strip()}"] = value.strip()
    return found


def peer_addresses(name: str) -> set[str]:
    """Return the IP addresses of the hosts that share files with a host.

    Hosts behind one address cannot be told apart and do not take part.
    """
    hosts = [host for host in testinfra_backend.inventory().hosts.values() if host.settings.peers]
    sharing = {host.name: ip_of(host.settings.peer_address or login_of(host).address) for host in hosts}
    own = {host: ip for host, ip in sharing.items() if ip and list(sharing.values()).count(ip) == 1}
    return {ip for host, ip in own.items() if host != name} if name in own else set()


@check("major", "recipe", "model_store")
def test_model_stamp(rig: Subject) -> None:
    """A checkpoint must have been verified at the plan's commit."""
    for checkpoint in rig.plan.checkpoints:
        found = stamp(rig, checkpoint)
        expect(
            {"repo": checkpoint.repo, "revision": checkpoint.revision},
            {"repo": found.get("repo", "no stamp"), "revision": found.get("revision", "no stamp")},
        )


@check("critical", "recipe", "model_store")
def test_model_files(rig: Subject) -> None:
    """The checkpoint must have as many files and bytes as were published: patches do not belong in the store."""
    for checkpoint in rig.plan.checkpoints:
        found = sizes(rig, checkpoint)
        expect(
            {"files": checkpoint.files, "bytes": checkpoint.bytes},
            {"files": len(found), "bytes": sum(found.values())},
        )


@check("critical", "recipe", "model_store")
def test_model_index(rig: Subject) -> None:
    """Every shard that the index names must be present, and together they must contain all weights."""
    for checkpoint in rig.plan.checkpoints:
        text = rig.text(f"{checkpoint.path}/model.safetensors.index.json")
        if text is None:
            expect("model.safetensors.index.json", "no such file")
            return
        index, found = json.loads(text), sizes(rig, checkpoint)
        shards = sorted(set(index["weight_map"].values()))
        missing = [name for name in shards if name not in found]
        expect_none(f"{len(shards)} shards", [f"{name} is missing" for name in missing])
        # Shards also contain headers.
        held, needed = sum(found[name] for name in shards), index["metadata"]["total_size"]
        if held < needed:
            expect(f"{needed} bytes of weights in {len(shards)} shards", f"{held}")


@check("critical", "recipe", "model_store", deep=True)
def test_model_hashes(rig: Subject) -> None:
    """Every byte must be as published, compared with the hub's hashes in the lock."""
    for checkpoint in rig.plan.checkpoints:
        published = {name: entry.partition(":")[2] for name, entry in checkpoint.listing.items()}
        listed = rig.names("cd %s && find . -type f -exec sha256sum -z -- {} +", checkpoint.path)
        found = {name.removeprefix("./"): digest for digest, _, name in (line.partition("  ") for line in listed)}
        for name in (name for name, digest in published.items() if len(digest) == GIT and name in found):
            found[name] = git_digest(rig, f"{checkpoint.path}/{name}")
        expect(published, {name: found.get(name, "missing") for name in {**published, **found}})


@check("minor")
def test_model_user(rig: Subject) -> None:
    """The downloader needs its own user, without a login, and packages that this user can read."""
    entry = rig.output("getent passwd rigup-fetch").split(":")
    expect("/usr/sbin/nologin", entry[-1] or "no user rigup-fetch")
    program = "import huggingface_hub as hub; print(hub.__version__)"
    version = rig.output(f"{FETCH_VENV}/bin/python -B -c %s", program)
    expect(
        f"the hub's client in {FETCH_VENV}",
        f"the hub's client in {FETCH_VENV}" if version else "none",
    )
    expect_open(rig, FETCH_VENV)


@check("minor")
def test_model_unit(rig: Subject) -> None:
    """The unit of downloads and the packages that it uses must be this version's."""
    expect_units(rig, f"{FETCH_UNIT}.service")
    requirements = (FILES / "fetch-requirements.lock").read_text()
    expect_file(rig, FETCH_REQUIREMENTS, requirements)
    expect_text(f"{FETCH_VENV}/requirements.lock", requirements, rig.text(f"{FETCH_VENV}/requirements.lock"))


@check("critical", "hub_endpoint")
def test_model_token(rig: Subject) -> None:
    """Only root may read the hub token."""
    found = rig.output("stat -c '%%a %%U' %s", HUB_TOKEN)
    if found:
        expect("600 root", found)


@check("critical", "model_disk", "model_store")
def test_model_disk(rig: Subject) -> None:
    """A store with its own disk must be mounted from it, also after a reboot."""
    if rig.settings.model_disk is None:
        return
    store, disk = rig.settings.model_store, f"/dev/disk/by-label/{rig.settings.model_disk}"
    unit = rig.output("systemd-escape --path --suffix=mount -- %s", store)
    expect_file(rig, f"{SYSTEM_UNITS}/{unit}", filled("store.mount.j2", store=store, label=rig.settings.model_disk))
    expect_file(rig, FETCH_STORE_DROP_IN, filled("model-fetch-store.conf.j2", store=store))
    expect(
        {"mounted": rig.output("mountpoint -x %s", disk) or f"{disk}, which does not exist", "at boot": "enabled"},
        {"mounted": rig.output("mountpoint -d %s", store), "at boot": rig.unit(unit)["UnitFileState"]},
    )


@check("minor", repair=("serve",))
def test_model_download_ended(rig: Subject) -> None:
    """No download may still run or start at the next boot: it would compete with serving."""
    listed = rig.output(f"systemctl list-units --all --plain --no-legend '{FETCH_UNIT}*.service'").splitlines()
    busy = [line.split()[0] for line in listed if len(line.split()) > 3 and line.split()[2] != "inactive"]
    enabled = rig.names(f"find {BOOT_UNITS}/ -mindepth 1 -printf '%f\\0'")
    busy += [f"{name} at boot" for name in enabled if name.startswith(FETCH_UNIT)]
    expect_none("no download", busy)


def shared(rig: Subject, *forms: str) -> str:
    """Return what peers may read beside each checkpoint, by patterns below the store: names of these forms."""
    rules = set()
    for checkpoint in rig.plan.checkpoints:
        owner, name, revision = checkpoint.path.split("/")[-3:]
        place = f"/{owner}/{name}"
        rules |= {f"/{owner}/", f"{place}/", *(f"{place}/{form.format(revision)}" for form in forms)}
    return " ".join(sorted(rules))


@check("major", "peers", "peer_port", "peer_address")
def test_model_peers(rig: Subject) -> None:
    """The host must share its checkpoints with the inventory's other hosts, and with nobody else."""
    allowed = peer_addresses(rig.name)
    if not allowed:
        expect("not running", "active" if rig.unit(PEERS_UNIT).get("ActiveState") == "active" else "not running")
        return
    connections = 16 * len(allowed)
    expected = {
        "port": str(rig.settings.peer_port),
        "use chroot": "no",
        "read only": "yes",
        "list": "no",
        "reverse lookup": "no",
        "hosts allow": " ".join(sorted(allowed)),
        "hosts deny": "*",
        "timeout": "60",
        "max connections": str(connections),
        "lock file": f"{PEERS_RUNTIME}/lock",
        "reports path": rig.settings.model_store,
        "reports include": shared(rig, "{}.shared.json"),
        "reports exclude": "*",
        "models path": rig.settings.model_store,
        "models pre-xfer exec": f"{HOST_PROGRAM} may-serve",
        "models filter": "- .arriving",
        "models include": shared(rig, "{}/***", ".{}.incoming/***"),
        "models exclude": "*",
    }
    expect(expected, rsyncd(rig.text(RSYNCD_CONFIG) or ""))
    expect_owner(rig, RSYNCD_CONFIG)
    drop_in = filled("rigup-peers-allow.conf.j2", allowed=sorted(allowed), connections=connections)
    expect_file(rig, PEERS_DROP_IN, drop_in)
    expect_units(rig, PEERS_UNIT)
    shown = rig.unit(PEERS_UNIT)
    expect({"now": "active", "at boot": "enabled"}, {"now": shown["ActiveState"], "at boot": shown["UnitFileState"]})
