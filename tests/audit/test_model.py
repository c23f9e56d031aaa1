"""The checkpoint: whole, at its commit, and as published."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from subject import PROGRAMS, UNITS, Subject, check, expect, expect_files, expect_none

from rigup.plan import peers
from rigup.plan.model import CheckpointPlan
from rigup.ssh import testinfra_backend

# Hex digits of git's own sums, which the hub gives for small files.
GIT = 40


def git_digest(rig: Subject, path: str) -> str:
    """git's sum of a file: SHA-1 over a header with its size, and its content."""
    content = base64.b64decode(rig.said("base64 -w0 -- %s", path))
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def stamp(rig: Subject, checkpoint: CheckpointPlan) -> dict[str, Any]:
    """What the download wrote when it had verified everything."""
    try:
        return dict(json.loads(rig.text(f"{checkpoint.path}.verified.json") or "{}"))
    except ValueError:
        return {}


def sizes(rig: Subject, checkpoint: CheckpointPlan) -> dict[str, int]:
    """Every file in the checkpoint's directory, with its size."""
    listed = rig.said("find %s -type f -printf '%%s %%P\\n'", checkpoint.path)
    return {name: int(size) for size, _, name in (line.partition(" ") for line in listed.splitlines())}


def rsyncd(text: str) -> dict[str, str]:
    """What an rsync daemon's configuration says: values by their names, those of a module with its name before."""
    found, module = {}, ""
    for line in (line.strip() for line in text.splitlines()):
        if line.startswith("["):
            module = f"{line.strip('[]')} "
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found[f"{module}{name.strip()}"] = value.strip()
    return found


@check("major", "recipe", "model_store")
def test_model_stamp(rig: Subject) -> None:
    """Verified once, at the commit that the plan names."""
    for checkpoint in rig.plan.checkpoints:
        said = stamp(rig, checkpoint)
        expect(
            {"repo": checkpoint.repo, "revision": checkpoint.revision},
            {"repo": said.get("repo", "no stamp"), "revision": said.get("revision", "no stamp")},
        )


@check("critical", "recipe", "model_store")
def test_model_files(rig: Subject) -> None:
    """As many files and bytes as were published; nothing was added."""
    for checkpoint in rig.plan.checkpoints:
        found = sizes(rig, checkpoint)
        expect(
            {"files": checkpoint.files, "bytes": checkpoint.bytes},
            {"files": len(found), "bytes": sum(found.values())},
        )


@check("critical", "recipe", "model_store")
def test_model_index(rig: Subject) -> None:
    """Every shard that the index names is there, and together they hold all the weights."""
    for checkpoint in rig.plan.checkpoints:
        text = rig.text(f"{checkpoint.path}/model.safetensors.index.json")
        if text is None:
            expect("model.safetensors.index.json", "no such file")
            return
        index, found = json.loads(text), sizes(rig, checkpoint)
        shards = sorted(set(index["weight_map"].values()))
        missing = [name for name in shards if name not in found]
        expect_none(f"{len(shards)} shards", [f"{name} is missing" for name in missing])
        # Headers come on top of the weights themselves.
        held, needed = sum(found[name] for name in shards), index["metadata"]["total_size"]
        if held < needed:
            expect(f"{needed} bytes of weights in {len(shards)} shards", f"{held}")


@check("critical", "recipe", "model_store", deep=True)
def test_model_hashes(rig: Subject) -> None:
    """Every byte is as published: the hub's own sums, which the lock holds."""
    for checkpoint in rig.plan.checkpoints:
        published = {name: entry.partition(":")[2] for name, entry in checkpoint.listing.items()}
        listed = rig.said("cd %s && find . -type f -exec sha256sum -- {} +", checkpoint.path).splitlines()
        found = {name.removeprefix("./"): digest for digest, _, name in (line.partition("  ") for line in listed)}
        for name in (name for name, digest in published.items() if len(digest) == GIT and name in found):
            found[name] = git_digest(rig, f"{checkpoint.path}/{name}")
        expect(published, {name: found.get(name, "missing") for name in {**published, **found}})


@check("minor")
def test_model_user(rig: Subject) -> None:
    """The downloader has a user of its own, who cannot log in, and its packages."""
    said = rig.said("getent passwd rigup-fetch").split(":")
    expect("/usr/sbin/nologin", said[-1] or "no user rigup-fetch")
    program = "import huggingface_hub as hub; print(hub.__version__)"
    version = rig.said("/usr/local/lib/rigup/venv/bin/python -B -c %s", program)
    expect(
        "the hub's client in /usr/local/lib/rigup/venv",
        "the hub's client in /usr/local/lib/rigup/venv" if version else "none",
    )


@check("minor")
def test_model_programs(rig: Subject) -> None:
    """The downloader is this version's: it decides what counts as whole."""
    expect_files(rig, PROGRAMS, "fetch.py", "fetch_hub.py", "fetch_request.py", "fetch_sources.py", "fetch_store.py")
    expect_files(rig, UNITS, "model-fetch@.service")


@check("critical", "hub_endpoint")
def test_model_token(rig: Subject) -> None:
    """The hub token, where there is one, is readable to root alone."""
    found = rig.said("stat -c '%%a %%U' %s", "/etc/rigup/hub-token")
    if found:
        expect("600 root", found)


@check("critical", "model_disk", "model_store")
def test_model_disk(rig: Subject) -> None:
    """A store that has a disk of its own lies on it, also after a boot."""
    if rig.settings.model_disk is None:
        return
    store, disk = rig.settings.model_store, f"/dev/disk/by-label/{rig.settings.model_disk}"
    unit = rig.said("systemd-escape --path --suffix=mount -- %s", store)
    expect(
        {"mounted": rig.said("mountpoint -x %s", disk) or f"{disk}, which is not there", "at boot": "enabled"},
        {"mounted": rig.said("mountpoint -d %s", store), "at boot": rig.unit(unit)["UnitFileState"]},
    )


@check("minor", repair=("serve",))
def test_model_download_ended(rig: Subject) -> None:
    """Nothing is downloading any more, nor will at the next boot."""
    listed = rig.said("systemctl list-units --all --plain --no-legend 'model-fetch@*.service'").splitlines()
    busy = [line.split()[0] for line in listed if len(line.split()) > 3 and line.split()[2] != "inactive"]
    enabled = rig.said("ls /etc/systemd/system/multi-user.target.wants").split()
    busy += [f"{name} at boot" for name in enabled if name.startswith("model-fetch@")]
    expect_none("no download", busy)


@check("major", "peers", "peer_port", "peer_address")
def test_model_peers(rig: Subject) -> None:
    """It serves what it holds to the inventory's other hosts, and to nobody else."""
    hosts = testinfra_backend.inventory().hosts.values()
    fleet = peers.fleet_of((host.name, host.connection.address, host.settings) for host in hosts)
    others = peers.peers_of(rig.name, fleet)
    if not others:
        expect("not running", "active" if rig.unit(peers.UNIT).get("ActiveState") == "active" else "not running")
        return
    wanted = {
        "port": str(rig.settings.peer_port),
        "use chroot": "no",
        "read only": "yes",
        "list": "no",
        "reverse lookup": "no",
        "hosts allow": " ".join(sorted(each.address for each in others)),
        "hosts deny": "*",
        "timeout": "60",
        "models path": rig.settings.model_store,
        "models exclude": ".arriving",
    }
    expect(wanted, rsyncd(rig.text(peers.CONFIG) or ""))
    expect_files(rig, UNITS, peers.UNIT)
    shown = rig.unit(peers.UNIT)
    expect({"now": "active", "at boot": "enabled"}, {"now": shown["ActiveState"], "at boot": shown["UnitFileState"]})
