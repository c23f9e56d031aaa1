"""The lab's image and registry: deterministic layers, and pushes to a real docker-registry on loopback."""

import json
import os
import py_compile
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.errors import LabError
from lab.registry import base, configuration, image, storage, tree
from lab.registry.client import INDEX_TYPE, MANIFEST_TYPE, Registry
from lab.registry.layers import of_bytes, of_file, write_files, write_tree
from tests.unit.own_address import OWN_ADDRESS, free_port
from tests.unit.waiting import HANG_S, until

PROGRAM = shutil.which("docker-registry")


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    (folder / "vllm").mkdir(parents=True)
    (folder / "vllm" / "__init__.py").write_text("version = 1\n")
    (folder / "vllm" / "run").write_text("#!/bin/sh\n")
    (folder / "vllm" / "run").chmod(0o700)
    (folder / "link").symlink_to("vllm")
    return folder


def test_a_layer_depends_on_the_files_alone(packages: Path, tmp_path: Path) -> None:
    write_tree(packages, "opt/x", tmp_path / "one.tar")
    copy = tmp_path / "copy"
    shutil.copytree(packages, copy, symlinks=True)
    os.utime(copy / "vllm" / "__init__.py", (1, 1))
    (copy / "vllm" / "__init__.py").chmod(0o600)
    write_tree(copy, "opt/x", tmp_path / "two.tar")
    assert of_file(tmp_path / "one.tar") == of_file(tmp_path / "two.tar")
    (copy / "vllm" / "__init__.py").write_text("version = 2\n")
    write_tree(copy, "opt/x", tmp_path / "three.tar")
    assert of_file(tmp_path / "one.tar") != of_file(tmp_path / "three.tar")


def test_a_layer_puts_files_where_they_belong_for_root(packages: Path, tmp_path: Path) -> None:
    write_tree(packages, "opt/x", tmp_path / "layer.tar")
    with tarfile.open(tmp_path / "layer.tar") as layer:
        members = {member.name: member for member in layer}
    assert {name: oct(member.mode) for name, member in members.items() if member.isreg()} == {
        "opt/x/vllm/__init__.py": "0o644",
        "opt/x/vllm/run": "0o755",
    }
    assert members["opt/x/link"].linkname == "vllm"
    assert {(member.uid, member.gid, member.mtime) for member in members.values()} == {(0, 0, 1771545600)}


def test_a_compiled_module_is_not_recompiled_in_the_image(tmp_path: Path) -> None:
    made, into = tmp_path / "made", tmp_path / "into"
    made.mkdir()
    (made / "module.py").write_text("print('here')\n")
    compiled = Path(py_compile.compile(str(made / "module.py"), doraise=True))
    with tarfile.open(tmp_path / "raw.tar", "w") as raw:
        raw.add(made, ".")
    base.rewrite(tmp_path / "raw.tar", tmp_path / "layer.tar")
    with tarfile.open(tmp_path / "layer.tar") as layer:
        layer.extractall(into, filter="tar")
    found = into / compiled.relative_to(made)
    done = subprocess.run([sys.executable, "-v", "-c", "import module"], cwd=into, capture_output=True, text=True)
    assert f"{found} matches {into / 'module.py'}" in done.stderr


def test_the_image_has_a_creation_date_and_starts_like_vllms_own() -> None:
    layers = [of_bytes(b"a"), of_bytes(b"b"), of_bytes(b"c")]
    config = image.config(layers)
    assert config["created"] == "2026-02-20T00:00:00Z"
    assert config["config"]["Entrypoint"] == ["vllm", "serve"]
    assert "CUDA_VERSION=13.0.1" in config["config"]["Env"]
    assert config["rootfs"]["diff_ids"] == [layer.digest for layer in layers]
    assert len(config["history"]) == len(layers)


def test_the_large_layers_version_follows_its_sources() -> None:
    assert tree.key() == tree.key()
    assert storage().name == tree.key()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    if PROGRAM is None:
        pytest.skip("docker-registry is not installed (apt-get install docker-registry)")
    address = f"{OWN_ADDRESS}:{free_port()}"
    settings = tmp_path / "config.yml"
    settings.write_text(configuration(address).replace(str(storage()), str(tmp_path / "storage")))
    (tmp_path / "storage").mkdir()
    with subprocess.Popen(
        [PROGRAM, "serve", settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        client = Registry(f"http://{address}")
        try:
            until(lambda: answers(client), lambda: process.poll() is None)
            yield client
        finally:
            process.terminate()


def answers(registry: Registry) -> bool:
    try:
        return registry.answers()
    except OSError:
        return False


@pytest.fixture
def small_parts(tmp_path: Path, packages: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Debian and a vLLM of a few bytes instead of the real ones; the rest of the build is real."""
    debian = tmp_path / "debian.tar"
    write_files({"etc/debian_version": (b"12\n", 0o644)}, debian)
    monkeypatch.setattr(image, "CACHE", tmp_path / "cache")
    monkeypatch.setattr("lab.registry.base.build", lambda: debian)
    monkeypatch.setattr("lab.registry.tree.build", lambda: packages)
    return tmp_path / "cache" / "image"


def get(registry: Registry, path: str, accept: str) -> tuple[bytes, str]:
    address = registry._address
    request = urllib.request.Request(f"http://{address}/v2/{image.NAME}/{path}", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=HANG_S) as answer:
        return answer.read(), answer.headers["Content-Type"]


def test_what_was_pushed_can_be_pulled_piece_by_piece_by_digest(registry: Registry, small_parts: Path) -> None:
    digest = image.push(registry)
    assert registry.manifest_digest(image.NAME, image.TAG) == digest
    index, kind = get(registry, f"manifests/{digest}", INDEX_TYPE)
    assert kind == INDEX_TYPE
    assert of_bytes(index).digest == digest
    (entry,) = json.loads(index)["manifests"]
    assert entry["platform"] == {"architecture": "amd64", "os": "linux"}
    manifest = json.loads(get(registry, f"manifests/{entry['digest']}", MANIFEST_TYPE)[0])
    blobs = [manifest["config"], *manifest["layers"]]
    for blob in blobs:
        content, _ = get(registry, f"blobs/{blob['digest']}", "*/*")
        assert (of_bytes(content).digest, len(content)) == (blob["digest"], blob["size"])
    config = json.loads(get(registry, f"blobs/{manifest['config']['digest']}", "*/*")[0])
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]


def test_the_same_parts_give_the_same_digest_from_an_empty_cache(registry: Registry, small_parts: Path) -> None:
    first = image.push(registry)
    shutil.rmtree(small_parts)
    assert image.push(registry) == first


def test_what_the_registry_holds_is_not_built_again(
    registry: Registry, small_parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = image.push(registry)

    def fail() -> Path:
        raise AssertionError("built again")

    monkeypatch.setattr("lab.registry.base.build", fail)
    monkeypatch.setattr("lab.registry.tree.build", fail)
    assert image.push(registry) == first
    assert not list(small_parts.glob("tmp*"))


def test_a_registry_that_lost_its_storage_gets_everything_again(
    registry: Registry, small_parts: Path, tmp_path: Path
) -> None:
    first = image.push(registry)
    for folder in (tmp_path / "storage").iterdir():
        shutil.rmtree(folder)
    assert registry.manifest_digest(image.NAME, image.TAG) is None
    assert image.push(registry) == first
    assert registry.manifest_digest(image.NAME, image.TAG) == first


def test_a_refused_push_reports_the_registrys_message(registry: Registry) -> None:
    with pytest.raises(LabError, match="manifest"):
        registry.push_manifest(image.NAME, "broken", MANIFEST_TYPE, b"{}")


def test_leftovers_of_killed_and_outdated_builds_go_and_the_rest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "CACHE", tmp_path)
    for name in ("tmpabc", "tree-0000", f"tree-{tree.key()}"):
        (tmp_path / "image" / name).mkdir(parents=True)
    (tmp_path / "image" / "base-1.tar").touch()
    with image.exclusive():
        assert {path.name for path in (tmp_path / "image").iterdir()} == {f"tree-{tree.key()}", "base-1.tar", "lock"}
