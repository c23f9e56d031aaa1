"""The checkpoint: whole, at its commit, and as published."""

from __future__ import annotations

import json
from typing import Any

from subject import Subject, expect, expect_none, expect_text

from rigup import neighbours, testinfra_backend
from rigup.plan import CheckpointPlan


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


def test_model_stamp(rig: Subject) -> None:
    """Verified once, at the commit that the plan names."""
    for checkpoint in rig.plan.checkpoints:
        said = stamp(rig, checkpoint)
        expect(
            {"repo": checkpoint.repo, "revision": checkpoint.revision},
            {"repo": said.get("repo", "no stamp"), "revision": said.get("revision", "no stamp")},
        )


def test_model_files(rig: Subject) -> None:
    """As many files and bytes as were published; nothing was added."""
    for checkpoint in rig.plan.checkpoints:
        found = sizes(rig, checkpoint)
        expect(
            {"files": checkpoint.files, "bytes": checkpoint.bytes},
            {"files": len(found), "bytes": sum(found.values())},
        )


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


def test_model_download_ended(rig: Subject) -> None:
    """Nothing is downloading any more, nor will at the next boot."""
    listed = rig.said("systemctl list-units --all --plain --no-legend 'model-fetch@*.service'").splitlines()
    busy = [line.split()[0] for line in listed if len(line.split()) > 3 and line.split()[2] != "inactive"]
    enabled = rig.said("ls /etc/systemd/system/multi-user.target.wants").split()
    busy += [f"{name} at boot" for name in enabled if name.startswith("model-fetch@")]
    expect_none("no download", busy)


def test_model_neighbours(rig: Subject) -> None:
    """It serves what it holds to the inventory's other hosts, and to nobody else."""
    hosts = testinfra_backend.inventory().hosts.values()
    fleet = neighbours.fleet_of((host.name, host.connection.address, host.settings) for host in hosts)
    others = neighbours.neighbours_of(rig.name, fleet)
    if not others:
        expect("not running", "active" if rig.unit(neighbours.UNIT).get("ActiveState") == "active" else "not running")
        return
    allowed = [each.address for each in others]
    wanted = neighbours.daemon_config(rig.settings.model_store, rig.settings.neighbour_port, allowed)
    expect_text(neighbours.CONFIG, wanted, rig.text(neighbours.CONFIG))
    expect("active", rig.unit(neighbours.UNIT).get("ActiveState", "not there"))
