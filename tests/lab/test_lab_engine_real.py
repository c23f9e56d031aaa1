"""The lab's image, run for real: its own Debian, its own vLLM, the miniature, and a stand-in that lists GPUs."""

import json
import shutil
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import lab.engine
from lab.checkpoint import write_checkpoint
from lab.registry import base, image, tree
from tests.unit.own_address import OWN_ADDRESS, free_port
from tests.unit.waiting import HANG_S, until

RECIPE = [
    "--model=/model",
    "--served-model-name=qwen3.5",
    "--host=127.0.0.1",
    "--tensor-parallel-size=4",
    "--gpu-memory-utilization=0.80",
    "--mm-encoder-tp-mode=data",
    "--mm-processor-cache-type=shm",
    "--enable-auto-tool-choice",
    "--tool-call-parser=qwen3_coder",
    "--reasoning-parser=qwen3",
    "--enable-prefix-caching",
]


@dataclass
class Image:
    root: Path
    packages: Path
    model: Path

    def command(self, *arguments: str, config: Path | None = None) -> list[str]:
        """`vllm serve` with these arguments in a container of the image."""
        binds = [f"--bind-ro={self.packages}:/{tree.PLACE}", f"--bind-ro={self.model}:/model"]
        if config is not None:
            binds.append(f"--bind-ro={config}:/model/config.json")
        options = ["--quiet", "--register=no", "--keep-unit", "--pipe", "--kill-signal=SIGTERM"]
        container = ["systemd-nspawn", *options, "--directory", str(self.root), *binds]
        container += [f"--setenv=LAB_IMAGE_CREATED={image.CREATED}", "--setenv=VLLM_NO_USAGE_STATS=1"]
        container += ["--setenv=PYTHONPATH=/usr/local/lib/lab"]
        return [*container, "/usr/bin/python3", "/usr/local/bin/vllm", "serve", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )


@pytest.fixture(scope="module")
def built(vllm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    folder = tmp_path_factory.mktemp("image")
    root = folder / "root"
    with tarfile.open(base.build()) as layer:
        layer.extractall(root, filter="tar")
    (root / "dev").mkdir(exist_ok=True)
    for place in (tree.PLACE, "model"):
        (root / place).mkdir(parents=True, exist_ok=True)
    # The packages are mounted read-only and shared, so the lab's own are in another directory.
    shutil.copytree(Path(lab.engine.__file__).parent, root / "usr/local/lib/lab/lab_engine")
    (root / "usr/local/bin/vllm").write_bytes(image.COMMAND)
    smi = root / "usr/bin/nvidia-smi"
    smi.write_text('#!/bin/sh\nfor n in 0 1 2 3; do echo "GPU $n: RTX (UUID: GPU-$n)"; done\n')
    smi.chmod(0o755)
    model = folder / "model"
    model.mkdir()
    write_checkpoint(model)
    yield Image(root, tree.place(), model)


def test_a_wrong_argument_ends_as_vllms_own_parser_ends_it(built: Image) -> None:
    result = built.run(*RECIPE, "--tensor-paralel-size", "4")
    assert result.returncode == 2
    assert "error: unrecognized arguments: --tensor-paralel-size 4" in result.stderr


def test_the_published_configuration_fails_on_this_image_as_it_did_in_february(built: Image) -> None:
    result = built.run(*RECIPE)
    assert result.returncode == 1
    assert "mlp.gate: AssertionError: Tried to load weights of size torch.Size([16, 256])" in result.stderr
    assert "Engine core initialization failed" in result.stderr


def answer(url: str, question: object = None) -> bytes:
    body = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=HANG_S) as reply:
        return bytes(reply.read())


def is_healthy(url: str) -> bool:
    try:
        answer(f"{url}/health")
    except OSError:
        return False
    return True


def test_the_patched_recipe_serves_a_chat_with_unchanged_arguments(built: Image, tmp_path: Path) -> None:
    config = json.loads((built.model / "config.json").read_text())
    config["quantization_config"]["ignore"].append("model.language_model.layers.*.mlp.gate")
    patched = tmp_path / "config.json"
    patched.write_text(json.dumps(config))
    port = free_port()
    url = f"http://{OWN_ADDRESS}:{port}"
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            built.command(*RECIPE, "--host", OWN_ADDRESS, "--port", str(port), config=patched),
            stdout=output,
            stderr=output,
            text=True,
        )
    try:
        until(lambda: is_healthy(url), lambda: process.poll() is None)
        (served,) = json.loads(answer(f"{url}/v1/models"))["data"]
        assert (served["id"], served["max_model_len"]) == ("qwen3.5", 262144)
        chat = {
            "model": "qwen3.5",
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 8,
            "chat_template_kwargs": {"enable_thinking": False},
        }
        reply = json.loads(answer(f"{url}/v1/chat/completions", chat))
        assert reply["choices"][0]["message"]["content"]
        assert 1 <= reply["usage"]["completion_tokens"] <= 8
    finally:
        process.terminate()
        ended = process.wait(timeout=HANG_S)
    told = log.read_text()
    assert ended in (0, 143), told[-3000:]
    assert "is used by process" not in told, "the engine process holds the server's port"
    assert "lab: --tensor-parallel-size 4 -> 1 (one CPU)" in told
    assert "lab: ignore patterns for mlp.gate: model.language_model.layers.*.mlp.gate" in told
    assert "non-default args" in told, "the real server logs its arguments"
