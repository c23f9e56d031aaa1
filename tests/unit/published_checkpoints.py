"""Checkpoints of tests/data/checkpoints.yaml on a hub on loopback."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from tests.unit.loopback import Answer, Site
from tests.unit.small_world import published

CHECKPOINTS: dict[str, dict[str, Any]] = {
    row["repo"]: row
    for row in yaml.safe_load((Path(__file__).parent.parent / "data/checkpoints.yaml").read_text(encoding="utf-8"))
}


def commit_of(repo: str) -> str:
    return hashlib.sha1(repo.encode()).hexdigest()


def publish(site: Site, row: dict[str, Any]) -> str:
    """Add a repository to the site; return its commit."""
    repo, commit = row["repo"], commit_of(row["repo"])
    files = {"config.json": json.dumps(row["config"]).encode()} if "config" in row else {}
    if "hf_quant_config" in row:
        files["hf_quant_config.json"] = json.dumps({"quantization": row["hf_quant_config"]}).encode()
    if "template" in row:
        files["chat_template.jinja"] = row["template"].encode()
    names = ["model.layers.0.mlp.gate.weight", *row.get("tensors", ())]
    files["model.safetensors.index.json"] = json.dumps(
        {"weight_map": dict.fromkeys(names, "model.safetensors")}
    ).encode()
    files |= {name: text.encode() for name, text in row.get("files", {}).items()}
    weights = row.get("weights", "model.safetensors")
    large = {"type": "file", "path": weights, "size": row["bytes"], "lfs": {"oid": "d" * 64}}
    listed = [*(published(name, content) for name, content in files.items()), large]
    site.pages |= {
        f"/api/models/{repo}/revision/main": Answer(json.dumps({"sha": commit}).encode()),
        f"/api/models/{repo}/tree/{commit}?recursive=true&expand=false": Answer(json.dumps(listed).encode()),
        **{f"/{repo}/resolve/{commit}/{name}": Answer(content) for name, content in files.items()},
    }
    return commit
