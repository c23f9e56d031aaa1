"""A lab host that serves the stand-in engine, which starts in a second and misbehaves on request."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import machine, world
from lab.machine import Host
from tests.lab.rigs import ROOT, Result, Rigs

UNIT = "llm@main.service"
PARTS = (
    "deploy.py",
    "files",
    "group_data",
    "inventory",
    "pyproject.toml",
    "rebuild.py",
    "recipes",
    "rigup",
    "tasks",
    "templates",
    "tests/audit",
    "tests/lab",
)

SLOW = {"add": ["--lab-load-seconds=6"], "remove": ["--lab-load-seconds"]}
# Recipes that differ from `standin-a` in these arguments; `standin-half` takes two GPUs.
RECIPES: dict[str, dict[str, Any]] = {
    "standin-b": {"add": ["--seed=1"]},
    "standin-never-healthy": {"add": ["--lab-fault=never-healthy"]},
    "standin-dies-at-load": {"add": ["--lab-fault=dies-at-load"]},
    "standin-stalls": {"add": ["--lab-fault=stalls"]},
    "standin-dies-at-first-request": {"add": ["--lab-fault=dies-at-first-request"]},
    "standin-no-streamed-tools": {"add": ["--lab-fault=no-streamed-tools"]},
    "standin-slow": SLOW,
    "standin-dies-late": {**SLOW, "add": [*SLOW["add"], "--lab-fault=dies-at-load"]},
    "standin-half": {"add": ["--seed=2"]},
    "standin-half-broken": {"add": ["--seed=2", "--lab-fault=dies-at-load"]},
    "standin-secret": {"add": ["--seed=3"]},
}
PLANTED = "planted0token0c0ffee00000000000042"


@dataclass
class Rig:
    """The host, and how it is deployed."""

    host: Host
    rigs: Rigs

    def deploy(self, *arguments: str, **changes: Any) -> Result:
        self.rigs.write(**{"recipe": "standin-a", **changes})
        return self.rigs.deploy("-y", *arguments, timeout=900)

    def serves(self, name: str = "main") -> str | None:
        """The recipe that the unit runs, as its active unit says."""
        shown = self.shell(f"systemctl show --property=ActiveState,Description llm@{name}")
        state = dict(line.split("=", 1) for line in shown.splitlines())
        found = re.search(r"\((.+)\)", state["Description"])
        return found[1] if found and state["ActiveState"] == "active" else None

    def invocation(self, unit: str = UNIT) -> str:
        return self.shell(f"systemctl show --value --property=InvocationID {unit}")

    def shell(self, command: str) -> str:
        return self.host.shell(command).stdout.strip()

    def settled(self) -> None:
        """Wait until no switch is under way."""
        self.shell("while systemctl show rigup-switch | grep -q '^ActiveState=activating'; do sleep 0.2; done")

    def is_whole(self) -> None:
        """Assert that no switch is in progress: the committed generation runs, and nothing is on trial."""
        assert self.shell("ls /run/systemd/system | grep llm@ || true") == ""
        in_force = self.shell("sed -n s/^Generation=//p /usr/local/lib/systemd/system/llm@main.service")
        assert f"/etc/rigup/endpoints/main/{in_force}/env" in self.shell(
            f"tr '\\0' ' ' </proc/$(systemctl show --value --property=MainPID {UNIT})/cmdline"
        )


def project(directory: Path) -> Path:
    """A copy of the project with the stand-in's recipes."""
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, directory / part)
    kept = {"status": "reported", "tool_calls": "reliable"}
    evidence = [{"source": "the lab", "kind": "assembled", "says": "a stand-in", "speeds": [{"tokens": 100}]}]
    base = yaml.safe_load((directory / "recipes/vllm-nvfp4-cu130.yaml").read_text())
    base |= {
        "id": "standin-a",
        # It has options that no release has: preflight refuses these only if it is sure to know them all.
        "engine": {"name": "vllm", "fork": "lab"},
        "image": {"tag": "rigup-lab/standin:1"},
        "argv": ["--lab-load-seconds=1", "--lab-word-seconds=0.01"],
    }
    del base["patches"]
    for name, argv in RECIPES.items():
        recipe = {"id": name, "title": name, "extends": "standin-a", "argv": argv, "evidence": evidence, **kept}
        if "secret" in name:
            recipe |= {"env": {"AWS_SECRET_ACCESS_KEY": PLANTED}}
        if "half" in name:
            recipe |= {"gpus": 2, "parallel": {"tp": 2}, "checkpoint": "miniature"}
        (directory / f"recipes/{name}.yaml").write_text(yaml.safe_dump(recipe))
    (directory / "recipes/standin-a.yaml").write_text(yaml.safe_dump(base))
    # Of the real size it would not fit two GPUs, and preflight knows that.
    published = yaml.safe_load((directory / f"recipes/checkpoints/{base['checkpoint']}.yaml").read_text())
    del published["bytes"]
    (directory / "recipes/checkpoints/miniature.yaml").write_text(yaml.safe_dump({**published, "id": "miniature"}))
    return directory


def lock_trained_weights(rigs: Rigs) -> None:
    """Write the lock, and remove from it that the weights are random: the stand-in passes all smoke tests."""
    rigs.write(recipe="standin-a")
    result = rigs.run("rigup", "lock")
    assert result.code == 0, result.output
    lock = yaml.safe_load(rigs.lock.read_text())
    for checkpoint in lock["checkpoints"].values():
        del checkpoint["random_weights"]
    rigs.lock.write_text(yaml.safe_dump(lock))


@contextmanager
def bare(
    name: str, tmp_path_factory: pytest.TempPathFactory, login: str, release: str = "trixie", **settings: Any
) -> Iterator[Rig]:
    """Run a bare lab host whose endpoint will be the stand-in engine; `settings` are added to the host's own."""
    host = machine.get(name)
    try:
        host.create(machine.Spec(release, 4, login))
        machine.write_known_hosts()
        copy = project(tmp_path_factory.mktemp("project"))
        hosts = {name: {**world.connection(host), **settings}}
        rigs = Rigs(tmp_path_factory.mktemp("inventory"), hosts, world.defaults(), copy)
        lock_trained_weights(rigs)
        yield Rig(host, rigs)
    finally:
        host.remove()
        machine.write_known_hosts()
