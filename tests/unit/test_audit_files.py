"""The audit verifies content, owner and mode of every file that a deploy writes. The list comes from the steps."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from rigup.audit.expect import Deviation
from rigup.audit.subject import Subject
from rigup.config.settings import Settings
from rigup.distros.apt_sources import repositories
from rigup.distros.driver import PIN, driver_packages
from rigup.lock.lockfile import KeyLock, Lock
from rigup.operations import files
from rigup.operations.files import Rewrite
from rigup.plan.peers import Peer
from rigup.render.systemd import env_file_text
from tasks.context import Context
from tests.unit.deploys import Actor
from tests.unit.sample import lock, plan
from tests.unit.test_audit_serving import AUDIT, FETCH_VENV, OPEN, Audited, checks_of, sha256

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("base", "model", "kernel", "driver", "cuda", "docker", "config", "serve", "gateway", "watch")
DATA: dict[str, Any] = {"endpoints": OPEN, "daily_audit": True, "model_disk": "models"}
KEY = "a key\n"
# The audit knows the peers from the inventory, of which there is none here; `test_audit_serving` breaks these files.
PEERS = (
    "/etc/rigup/rsyncd.conf",
    "/etc/systemd/system/rigup-peers.service",
    "/etc/systemd/system/rigup-peers.service.d/allow.conf",
)


@dataclass
class World:
    """An audited host with every file that the steps write, and the checks that read each of them."""

    host: Audited
    checks: dict[str, Callable[[Subject], None]]
    read: dict[str, set[str]]

    def outcomes(self, names: set[str]) -> dict[str, str]:
        """What these checks say: nothing, a finding, or that the fake host could not answer."""
        found = {}
        for name in names:
            try:
                self.checks[name](self.host.rig)
                found[name] = ""
            except Deviation as deviation:
                found[name] = str(deviation)
            except Exception as error:
                found[name] = repr(error)
        return found


def contents(distro: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Context, dict[str, str], dict[str, str]]:
    """What the steps write on a host of this distribution: texts and modes by path."""
    settings = Settings.from_data(DATA)
    locked = KeyLock(sha256=sha256(KEY.encode()), fingerprints=("A" * 40,))
    sources = repositories(distro, settings).values()
    driver = driver_packages(distro, settings.driver_branch)
    group = {"driver-595": dict.fromkeys((f"{PIN}595.71.05", *driver.packages), "595.71.05-1")}
    packages = {distro: {**lock().packages["debian13"], **group}}
    known = lock().merged(Lock(keys={each.key_url: locked for each in sources}, packages=packages))
    due = plan(**DATA)
    context = Context(due, settings, known, distro, gpus=4, peers=(Peer("rig2", "192.0.2.2"),))
    written: dict[str, Rewrite] = {}
    monkeypatch.setattr(files, "_show", lambda host, rewrite: written.update({rewrite.dest: rewrite}))
    kernel = "6.8.0-51-generic" if distro == "ubuntu2404" else "6.12.57+deb13-amd64"
    for step in STEPS:
        Actor().answers("uname -r", [kernel, "quiet"]).walks(getattr(import_module(f"tasks.{step}"), step), context)
    (endpoint,) = due.endpoints
    secret = {endpoint.env_file: env_file_text(endpoint), "/etc/rigup/plan.json": due.text()}
    texts = {path: secret[path] if each.after is None else each.after.decode() for path, each in written.items()}
    texts |= {each.key_path: KEY for each in sources}
    return context, texts, {path: each.mode for path, each in written.items()}


@pytest.fixture(params=["debian13", "ubuntu2404"])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    context, texts, modes = contents(request.param, monkeypatch)
    host = Audited(tmp_path, context.plan)
    host.told.files |= texts
    host.told.owners = {path: f"{mode} root" for path, mode in modes.items()}
    system, version = ("ubuntu", "24.04") if request.param == "ubuntu2404" else ("debian", "13")
    host.told.files["/etc/os-release"] = f'ID={system}\nVERSION_ID="{version}"\n'
    host.told.commands["systemd-escape"] = "srv-models.mount"
    host.told.commands["apt-config dump --format '%v%n'"] = "600"
    host.told.units["rigup-audit.timer"] = "ActiveState=active\nUnitFileState=enabled\n"
    host.told.commands["apt-get indextargets"] = "".join(
        f"{uri}/ {each.source_path}:1\n"
        for each in repositories(request.param, context.settings).values()
        for uri in each.uris
    )
    host.rig.settings, host.rig.lock = context.settings, context.lock
    found = World(host, {}, {})
    for path in sorted(AUDIT.glob("test_*.py")):
        step = path.stem.removeprefix("test_")
        for name, check in inspect.getmembers(checks_of(step), inspect.isfunction):
            if name.startswith("test_") and not check.about.deep:
                found.checks[name] = check
                host.told.asked.clear()
                found.outcomes({name})
                for each in host.told.asked & host.told.files.keys():
                    found.read.setdefault(each, set()).add(name)
    return found


def test_a_change_of_any_file_that_a_deploy_writes_is_a_finding(world: World) -> None:
    told = world.host.told
    ours = sorted({*told.owners, *(each.key_path for each in repositories(world.host.rig.distro, Settings()).values())})
    assert len(ours) > 25
    for path in (path for path in ours if path not in PEERS):
        names = world.read.get(path, set())
        before = world.outcomes(names)
        text, owner = told.files[path], told.owners.get(path, "644 root")
        changes: list[Callable[[], None]] = [
            lambda: told.files.update({path: f"{text}evil 1\n"}),  # noqa: B023
            lambda: told.files.pop(path) and None,  # noqa: B023
            lambda: told.owners.update({path: "666 root"}),  # noqa: B023
            lambda: told.owners.update({path: owner.replace("root", "ops")}),  # noqa: B023
        ]
        for number, change in enumerate(changes):
            change()
            after = world.outcomes(names)
            told.files[path], told.owners[path] = text, owner
            found = [
                name for name in names if after[name] != before[name] and (not before[name] or path in after[name])
            ]
            assert found, (path, number, before, after)


def test_every_download_of_a_step_is_a_key_that_the_audit_compares_with_the_lock() -> None:
    calls = [
        node
        for path in (ROOT / "tasks").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "files.download"
    ]
    assert calls
    for call in calls:
        (dest,) = [keyword.value for keyword in call.keywords if keyword.arg == "dest"]
        assert ast.unparse(dest).endswith(".key_path")


def test_what_others_could_write_is_a_finding(world: World) -> None:
    told = world.host.told
    look = "{ find /"
    told.commands[look] = "searched\n"
    assert world.outcomes({"test_base_owners"}) == {"test_base_owners": ""}
    told.commands[look] = "/etc/sudoers.d/a\nsearched\0/usr/local/bin\0searched\n"
    found = world.outcomes({"test_base_owners"})["test_base_owners"]
    assert "/etc/sudoers.d/a\nsearched, /usr/local/bin" in found
    # A search that did not end finds nothing, and is no proof.
    told.commands[look] = ""
    assert world.outcomes({"test_base_owners"})["test_base_owners"]


def test_the_audit_reads_every_unit_that_a_deploy_installs(world: World) -> None:
    installed = {path for path in world.host.told.owners if path.endswith((".service", ".timer", ".mount"))}
    assert installed - {*PEERS} <= world.read.keys()
    assert f"{FETCH_VENV}/requirements.lock" in world.read
