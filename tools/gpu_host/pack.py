"""Pack this project, an engine and the lab's checkpoint for a GPU host without network."""

from __future__ import annotations

import fnmatch
import gzip
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import Any

from lab import checkpoint
from rigup.catalog.apply_patches import patch_files, reads
from rigup.catalog.engine_args import arguments
from rigup.catalog.loader import default_catalog
from rigup.catalog.patch import IgnorePatch
from rigup.errors import RigupError
from tools.gpu_host.cases import CASES, QUICK, REVERTS, WITHOUT_FLASHINFER, Case

ROOT = Path(__file__).parents[2]
PROJECT = ("deploy.py", "files", "lab", "recipes", "rigup", "tasks", "templates", "tools")
PLAIN, SPECULATING = "vllm-nvfp4-cu130", "vllm-nvfp4-cu130-mtp1"
TENSOR_PARALLEL = "--tensor-parallel-size"

# Kernels for cards that the cases do without, and what only the host's CUDA can bring.
LEFT_OUT = (
    "cuda-*",
    "fastapi-cloud*",
    "fastsafetensors",
    "flashinfer-*",
    "humming-*",
    "nvidia-*",
    "nvtx",
    "pynvvideocodec",
    "quack-*",
    "tilelang",
    "tokenspeed-*",
    "torch-c-dlpack-ext",
    "torchcodec",
    "z3-solver",
)


@dataclass(frozen=True)
class Target:
    """The GPU host's Python, and the packages that it has already, by their normalized names."""

    python: str = "3.12"
    platform: str = "x86_64-manylinux_2_35"
    has: Collection[str] = field(default_factory=tuple)


class Parts(RawIOBase):
    """A stream that is written to `part.00`, `part.01` and so on of a folder, `part_bytes` each."""

    def __init__(self, folder: Path, part_bytes: int) -> None:
        self._folder, self._part_bytes = folder, part_bytes
        self._number, self._left = -1, 0
        self._file: Any = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):
            if not self._left:
                self._next()
            piece = view[written : written + self._left]
            self._file.write(piece)
            self._left -= len(piece)
            written += len(piece)
        return written

    def _next(self) -> None:
        self.finish()
        self._number += 1
        self._left = self._part_bytes
        self._file = (self._folder / f"part.{self._number:02}").open("wb")

    def finish(self) -> None:
        """Close the last part."""
        if self._file is not None:
            self._file.close()


def pack(folder: Path, engine: str, target: Target, omit: Sequence[str], part_bytes: int) -> list[Path]:
    """Write the parts into `folder` and return their paths.

    `engine` is a version of vLLM; files of its packages that match a pattern of `omit` are left out. Raises RigupError
    if the folder has parts already, uv fails, or the engine's source is not the one whose fixes can be taken back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if next(folder.glob("part.*"), None):
        raise RigupError(f"{folder} has parts already", "choose an empty directory")
    staging = folder / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        _install(staging / "engine", _resolved([f"vllm=={engine}"], target, staging), target)
        _take_back(staging / "engine")
        project = [str(ROOT / "pyproject.toml"), "--constraint", str(ROOT / "requirements.lock")]
        _install(staging / "tool", _resolved([], target, staging, project), target)
        _copy_project(staging / "project")
        shutil.copytree(checkpoint.build(), staging / "checkpoint")
        cases = [_prepared(case, staging) for case in CASES]
        (staging / "manifest.json").write_text(
            json.dumps({"engine": f"vLLM {engine}", "cases": cases}, indent=1) + "\n"
        )
        return _archive(staging, folder, omit, part_bytes)
    finally:
        shutil.rmtree(staging)


def _resolved(packages: Sequence[str], target: Target, staging: Path, more: Sequence[str] = ()) -> list[str]:
    """Return the packages with all that they need, pinned, less what the GPU host has or can do without."""
    wanted = staging / "wanted.in"
    wanted.write_text("".join(f"{package}\n" for package in packages))
    options = ["--python-version", target.python, "--python-platform", target.platform, "--no-header", "--no-annotate"]
    pinned = _uv("pip", "compile", "--quiet", *options, *(more or [str(wanted)]))
    wanted.unlink()
    lines = [line for line in pinned.splitlines() if re.match(r"[A-Za-z0-9]", line)]
    return [line for line in lines if not _is_left_out(re.split(r"[=;@ \[]", line)[0], target.has)]


def _is_left_out(name: str, has: Collection[str]) -> bool:
    normal = normalized(name)
    return normal in has or any(fnmatch.fnmatchcase(normal, pattern) for pattern in LEFT_OUT)


def normalized(name: str) -> str:
    """Return a package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _install(into: Path, pinned: Sequence[str], target: Target) -> None:
    listed = into.with_suffix(".txt")
    listed.write_text("".join(f"{line}\n" for line in pinned))
    options = ["--python-version", target.python, "--python-platform", target.platform, "--target", str(into)]
    _uv("pip", "install", "--quiet", "--no-deps", *options, "--requirement", str(listed))


def _uv(*arguments: str) -> str:
    result = subprocess.run(["uv", *arguments], capture_output=True, text=True)
    if result.returncode:
        raise RigupError(f"uv {arguments[0]} {arguments[1]} failed: {result.stderr.strip()}", "see its message")
    return result.stdout


def _take_back(engine: Path) -> None:
    """Make the two fixes of the engine depend on environment variables."""
    for name, (fixed, conditional) in REVERTS.items():
        path = engine / name
        text = path.read_text()
        if text.count(fixed) != 1:
            raise RigupError(
                f"{name} of this vLLM is not as expected", "choose a vLLM from 0.20 to 0.25, or adapt cases.REVERTS"
            )
        # uv's files are hard links into its cache.
        path.unlink()
        path.write_text(text.replace(fixed, conditional))


def _copy_project(into: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PROJECT],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, path)


def _prepared(case: Case, staging: Path) -> dict[str, object]:
    """Write a case's patched files, and return what the GPU host needs to run it: `argv`, `env` and `files`."""
    recipe = default_catalog().recipe(SPECULATING if case.speculation else PLAIN)
    patches = [each for each in recipe.patches if not isinstance(each, IgnorePatch) or {*each.add} & {*case.patched}]
    paths = [staging / "checkpoint" / name for name in reads(patches)]
    published = {path.name: path.read_text() for path in paths if path.exists()}
    patched = patch_files(published, patches, recipe.engine.name)
    into = staging / "patched" / case.name
    into.mkdir(parents=True)
    for name, text in patched.items():
        (into / name).write_text(text)
    own = [word for word, _ in arguments(recipe) if not word.startswith(f"{TENSOR_PARALLEL}=")]
    argv = [*own, f"--served-model-name={recipe.served_name}", f"{TENSOR_PARALLEL}={case.cards}"]
    argv += [*QUICK, *WITHOUT_FLASHINFER]
    env = {**recipe.env, **dict.fromkeys(case.unfixed, "1")}
    return {"name": case.name, "model": recipe.served_name, "argv": argv, "env": env, "files": sorted(patched)}


def _archive(staging: Path, folder: Path, omit: Sequence[str], part_bytes: int) -> list[Path]:
    def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        skip = "__pycache__" in member.name or any(fnmatch.fnmatchcase(member.name, each) for each in omit)
        return None if skip else member

    parts = Parts(folder, part_bytes)
    zipped = gzip.GzipFile(fileobj=parts, mode="wb", compresslevel=5, mtime=0)
    with zipped, tarfile.open(fileobj=zipped, mode="w|") as archive:
        for path in sorted(staging.iterdir()):
            archive.add(path, path.name, filter=kept)
    parts.finish()
    return sorted(folder.glob("part.*"))
