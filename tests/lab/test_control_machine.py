"""A fresh Debian 12 and a fresh Debian 13 as control machine, with `uv` alone: from the wheel to a chat.

The commands are those of docs/guides/first-hour.md, in its order. The first machine finds the host bare, the second one
finds it served. RIGUP_TRANSCRIPT=FILE appends each section there as it went, with what its commands printed.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from lab import machine, world
from lab.machine import Host
from lab.mirror.distributions import RELEASES
from lab.settings import MIRROR_URL
from rigup.paths import PLAN
from rigup.text import printable
from tests.lab.rigs import ROOT
from tests.lab.transcript import Printed, section, typed

PAGE = (ROOT / "docs/guides/first-hour.md").read_text()
HOST, CONTROL = "rig11", {"bookworm": "rig12", "trixie": "rig13"}
# What stands for the lab's addresses on the page.
ADDRESS, MIRROR = "192.0.2.11", "http://mirror.lan"
# On a control machine these are ssh's usual ones.
NOT_NEEDED = ("key", "known_hosts")
HOME = "home/ops"


class Control:
    """A control machine: what Debian installs, uv where its installer puts it, and the wheel in the home directory.

    uv asks the lab's index, as it would ask PyPI.
    """

    def __init__(self, host: Host, target: Host, wheel: Path) -> None:
        self.host, self.target = host, target
        self._place(Path(sys.executable).with_name("uv"), f"{HOME}/.local/bin/uv")
        self._place(wheel, f"{HOME}/{wheel.name}")
        index = f'[[index]]\nurl = "{MIRROR_URL}/pypi/simple"\ndefault = true\n'
        host.shell("mkdir /etc/uv && cat > /etc/uv/uv.toml", stdin=index)

    def _place(self, file: Path, where: str) -> None:
        path = self.host.root / where
        made = [each for each in reversed(path.parents) if not each.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.read_bytes())
        path.chmod(file.stat().st_mode)
        owner = (self.host.root / HOME).stat()
        for each in (*made, path):
            os.chown(each, owner.st_uid, owner.st_gid)

    def types(self, command: str) -> Printed:
        """Run a line in a login shell, in the directory in which the last one ended; answer questions with Enter."""
        line = shlex.quote(command.replace(ADDRESS, self.target.address))
        script = f'cd "$(cat .directory 2>/dev/null || pwd)"; eval {line}; code=$?; pwd > ~/.directory; exit "$code"\n'
        self.host.shell("cat > /tmp/typed", stdin=script)
        # To a file: a program that goes into the background would hold a pipe open.
        done = self.host.ssh("echo | bash -l /tmp/typed > .printed 2>&1", check=False, timeout=900)
        output = printable((self.host.root / HOME / ".printed").read_text(errors="replace"))
        for ours, shown in ((self.target.address, ADDRESS), (MIRROR_URL, MIRROR)):
            output = output.replace(ours, shown)
        if command.startswith("ssh-keygen "):
            self._give_key()
        if command.startswith("rigup init "):
            self._add_mirrors()
        return Printed(done.returncode, output)

    def _give_key(self) -> None:
        """As `ssh-copy-id` does."""
        key = (self.host.root / HOME / ".ssh/id_ed25519.pub").read_text()
        self.target.shell(f"cat >> /{HOME}/.ssh/authorized_keys", stdin=key)

    def _add_mirrors(self) -> None:
        inventory = self.host.root / HOME / "lab/inventory/lab.yaml"
        mirrors = {name: value for name, value in world.defaults().items() if name not in NOT_NEEDED}
        lines = [f"  {line}\n" for line in yaml.safe_dump(mirrors).splitlines()]
        before, heading, after = inventory.read_text().partition("defaults:\n")
        inventory.write_text("".join([before, heading, *lines, after]))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory]
    subprocess.run(argv, cwd=ROOT, check=True, capture_output=True)
    (file,) = directory.iterdir()
    return file


@pytest.fixture(scope="module")
def target(services: None) -> Iterator[Host]:
    """A bare host for both control machines."""
    with ExitStack() as stack:
        yield _booted(stack, HOST, machine.Spec())


@pytest.fixture(params=CONTROL)
def control(request: pytest.FixtureRequest, target: Host, wheel: Path) -> Iterator[Control]:
    with ExitStack() as stack:
        yield Control(_booted(stack, CONTROL[request.param], machine.Spec(request.param, gpus=0)), target, wheel)


def _booted(stack: ExitStack, name: str, spec: machine.Spec) -> Host:
    host = machine.get(name)
    stack.callback(machine.write_known_hosts)
    stack.callback(host.remove)
    host.create(spec)
    machine.write_known_hosts()
    return host


def test_the_first_hour(control: Control) -> None:
    release = control.host.spec.release
    bare = bool(control.target.shell(f"test -e {PLAN}", check=False).returncode)
    title = f"On Debian {RELEASES[release].version}"
    text, printed = typed(section(PAGE, title), control.types)
    if file := os.environ.get("RIGUP_TRANSCRIPT"):
        with Path(file).open("a") as transcript:
            transcript.write(f"## {title}\n{text}\n")
    # A plan with changes exits with 2.
    codes = {command: done.code for command, done in printed.items() if done.code}
    assert codes == ({"rigup plan": 2} if bare else {}), printed
    said = {command: done.output for command, done in printed.items()}
    assert "login: sudo without a password" in said[f"rigup init lab --host rig1=ops@{ADDRESS}"]
    changes = "operations would change something" if bare else "rig1: nothing to change"
    assert changes in said["rigup plan"]
    assert (": 0 changed" in said["rigup deploy"]) is not bare, said["rigup deploy"]
    assert "endpoint main: http://127.0.0.1:8000 (on rig1)\n      recipe      vllm-nvfp4-cu130" in said["rigup deploy"]
    assert " serving " in said["rigup status"]
    *_, chat = said
    if bare:
        assert "failed" not in said["rigup audit"]
        chat = next(command for command in said if command.startswith("curl ") and "chat/completions" in command)
        assert chat in said["rigup connect rig1 --to curl"].splitlines()
        assert json.loads(said[chat])["usage"]["completion_tokens"] > 0
    else:
        assert said[chat].strip()
