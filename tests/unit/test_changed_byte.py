"""A changed byte in a wheel or in a Debian package is refused before it is used, by the real uv and the real apt.

The other three kinds: an image in test_lock_resolve (`test_an_image_that_was_tampered_with_is_refused`), a file of a
checkpoint in test_host_programs_fetch (`test_whatever_the_hub_does_the_published_bytes_arrive`), and a cached file in
test_lock_resolve (`test_other_bytes_than_the_lock_names_enter_no_plan`).
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from uv import find_uv_bin

from lab.mirror.keys import Key
from rigup.catalog.recipe_parts import Venv
from rigup.lock.pypi import venv_lock
from rigup.operations import venv
from tests.unit.deploys import Actor, Said
from tests.unit.loopback import Answer, Site
from tests.unit.private_apt import apt_for
from tests.unit.test_plan_venv import endpoint
from tests.unit.test_plan_venv import index as index


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def fill_command(requirements: Path, index: str) -> list[str]:
    """Return the command with which a deploy fills an engine's environment."""
    done = Said(["LoadState=loaded", "ActiveState=active", "SubState=exited", "Result=success", "Job=0"])
    actor = Actor().answers(
        "systemctl show", Said(["LoadState=not-found", "ActiveState=inactive", "SubState=dead"]), done
    )
    outcome = actor.does(
        venv.engine, venv=endpoint().venv, requirements=str(requirements), index=index, pythons="https://p"
    )
    (command,) = (command for command in outcome.commands if "uv pip sync" in command)
    words = shlex.split(command)
    return words[next(at for at, word in enumerate(words) if word.endswith("/uv")) :]


def test_a_wheel(index: Site, tmp_path: Path) -> None:
    url = f"{index.url}/simple"
    requirements = tmp_path / "requirements.lock"
    locked = venv_lock(Venv(python="3.12", packages=("engine==1.0",)), url).requirements
    requirements.write_text("".join(f"{each}\n" for each in locked))
    quiet = {"check": True, "capture_output": True}
    subprocess.run(
        [find_uv_bin(), "venv", "--no-config", f"--python={sys.executable}", str(tmp_path / "venv")], **quiet
    )
    _, *words = fill_command(requirements, url)
    python = [f"--python={tmp_path}/venv/bin/python" if word.startswith("--python=") else word for word in words]
    page = index.pages["/files/part-1.2-py3-none-any.whl"]
    assert isinstance(page, Answer)

    def fill() -> subprocess.CompletedProcess[str]:
        return subprocess.run([find_uv_bin(), *python, "--no-cache"], capture_output=True, text=True)

    # In a file's time, which the archive's own checksums do not cover.
    published, page.body = page.body, flipped(page.body, 10)
    refused = fill()
    assert refused.returncode != 0 and "Hash mismatch for `part==1.2`" in refused.stderr
    assert not list((tmp_path / "venv").rglob("part-1.2*"))
    page.body = published
    assert (done := fill()).returncode == 0, done.stderr
    assert list((tmp_path / "venv").rglob("part-1.2*"))


@pytest.mark.skipif(not shutil.which("apt-get"), reason="needs apt")
def test_a_debian_package(cuda: Path, key: Key, tmp_path: Path) -> None:
    repository = shutil.copytree(cuda / "debian13", tmp_path / "debian13")
    apt = apt_for(tmp_path, repository, key)
    (package,) = sorted(repository.glob("dkms_*.deb"))
    published = package.read_bytes()
    install = ("install", "--yes", "--download-only", "dkms")
    package.write_bytes(flipped(published, len(published) // 2))
    refused = apt.run(*install)
    assert refused.returncode != 0 and "Hash Sum mismatch" in refused.stderr
    package.write_bytes(published)
    assert (done := apt.run(*install)).returncode == 0, done.stderr


@pytest.mark.skipif(not shutil.which("apt-get"), reason="needs apt")
def test_an_index_of_debian_packages(cuda: Path, key: Key, tmp_path: Path) -> None:
    repository = shutil.copytree(cuda / "debian13", tmp_path / "debian13")
    apt = apt_for(tmp_path, repository, key)
    for path in repository.glob("Packages*"):
        path.write_bytes(flipped(path.read_bytes(), 30))
    shutil.rmtree(tmp_path / "apt/lists")
    (tmp_path / "apt/lists/partial").mkdir(parents=True)
    assert apt.update().returncode != 0
