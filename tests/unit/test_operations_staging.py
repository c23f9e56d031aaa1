"""What root downloads or writes is verified where nobody else can write, and has its name only then."""

from __future__ import annotations

import ast
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from rigup.operations import files
from tests.unit.deploys import Outcome, on_this_machine
from tests.unit.loopback import Answer, Site, serving
from tests.unit.test_operations_files import ME

ROOT = Path(__file__).resolve().parents[2]
KEY = b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n"
SHA256 = hashlib.sha256(KEY).hexdigest()


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        site.pages["/gpg"] = Answer(KEY)
        yield site


def download(site: Site, dest: Path, sha256sum: str = SHA256) -> Outcome:
    return on_this_machine(files.download, src=f"{site.url}/gpg", dest=str(dest), sha256sum=sha256sum, **ME)


def test_a_download_appears_with_its_mode_and_stays(site: Site, tmp_path: Path) -> None:
    dest = tmp_path / "keyrings" / "it's.asc"
    first, second = download(site, dest), download(site, dest)
    assert (first.foreseen, first.changed, first.failed) == (True, True, False), first.told
    assert (second.foreseen, second.changed) == (False, False)
    assert dest.read_bytes() == KEY
    assert stat.S_IMODE(dest.stat().st_mode) == 0o644
    assert os.listdir(dest.parent) == ["it's.asc"]
    dest.chmod(0o666)
    assert download(site, dest).changed
    assert stat.S_IMODE(dest.stat().st_mode) == 0o644


@pytest.mark.parametrize("before", [None, b"the old key"])
@pytest.mark.parametrize("answer", [Answer(b"another key"), Answer(b""), Answer(KEY, 500), Answer(KEY + b"x")])
def test_a_download_with_another_checksum_never_gets_the_name(
    site: Site, tmp_path: Path, answer: Answer, before: bytes | None
) -> None:
    dest = tmp_path / "docker.asc"
    if before is not None:
        dest.write_bytes(before)
    site.pages["/gpg"] = answer
    outcome = download(site, dest)
    assert outcome.failed
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_file_that_a_local_user_prepared_is_neither_used_nor_changed(site: Site, tmp_path: Path) -> None:
    dest = tmp_path / "docker.asc"
    # pyinfra's `files.download` would write here, and rename the result.
    prepared = Path("/tmp") / f"pyinfra-{hashlib.sha1(str(dest).encode()).hexdigest()}"
    prepared.write_bytes(b"mine")
    try:
        if os.geteuid() == 0:
            os.chown(prepared, 65534, 65534)
        outcome = download(site, dest)
        assert not outcome.failed, outcome.told
        assert prepared.read_bytes() == b"mine"
    finally:
        prepared.unlink(missing_ok=True)
    assert dest.stat().st_uid == os.geteuid()
    assert dest.read_bytes() == KEY


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_directory_that_others_can_write_is_refused(site: Site, tmp_path: Path, mode: int) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(mode)
    for outcome in (
        download(site, shared / "key"),
        on_this_machine(files.install, dest=str(shared / "key"), content="x", **ME),
    ):
        assert outcome.failed
        assert f"others can write to {shared}" in outcome.told
    assert os.listdir(shared) == []


def test_a_staging_directory_that_someone_else_made_is_not_written_into(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / ".rigup-new.key").symlink_to(target)
    assert not download(site, tmp_path / "key").failed
    assert os.listdir(target) == []


# Every place, from the code

RUNS_AS_ROOT = [
    *(ROOT / "rigup/operations").rglob("*.py"),
    *(ROOT / "tasks").rglob("*.py"),
    ROOT / "deploy.py",
    ROOT / "rebuild.py",
]
# Operations of pyinfra that transfer no file: only `sysctl` without `persist`.
HARMLESS = {"tasks/base.py": {"server.sysctl"}}


@pytest.mark.parametrize("path", RUNS_AS_ROOT, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_staged_by_pyinfra_or_in_a_directory_of_all_users(path: Path) -> None:
    tree = ast.parse(path.read_text())
    modules = {
        name.asname or name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyinfra.operations")
        for name in node.names
    }
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import) and "pyinfra" in ast.unparse(node)]
    used = {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
    }
    assert used == HARMLESS.get(str(path.relative_to(ROOT)), set())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert not {"persist", "persist_file"} & {keyword.arg for keyword in node.keywords}
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("get_temp_filename", "put_file", "tmp_dir")
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert "/tmp" not in node.value
            # With a template in a directory of ours; never in $TMPDIR.
            assert "mktemp" not in node.value or node.value.endswith("mktemp -d")
