"""rigup-host verify: what it checks, what it reports about a failure, and its record."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.unit.host_world import Page, program, run_program, site_with_headers

GPUS = "\n".join(f"echo 'GPU {at}: NVIDIA RTX PRO 6000 (UUID: GPU-{at})'" for at in range(4))
IMAGE = f"vllm/vllm-openai@sha256:{'a' * 64}"


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    program(tmp_path / "bin", "docker", GPUS)
    program(tmp_path / "bin", "systemctl", "echo InvocationID=6a0ab0a2b1a04ea2a7d8f4d1e4a7b1c9")
    return tmp_path / "bin"


def calls(tools: Path, name: str) -> list[str]:
    return (tools / f"{name}.calls").read_text().splitlines()


def verify(
    what: str, *arguments: str, tools: Path, digest: str = "d1"
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    out = tools.parent / "run" / "verify.json"
    common = ["--out", str(out), "--unit", "docker.service", "--digest", digest]
    result = run_program("verify", what, *arguments, *common, tools=tools)
    return result, json.loads(out.read_text())


def gpus(tools: Path, count: int = 4) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    return verify("gpus", "--image", IMAGE, "--count", str(count), tools=tools)


def test_gpus_that_are_seen_in_all_three_ways_pass(tools: Path) -> None:
    result, record = gpus(tools)

    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ok", "ok", "ok"]
    assert (record["passed"], record["digest"]) == (True, "d1")
    assert record["invocation"] == "6a0ab0a2b1a04ea2a7d8f4d1e4a7b1c9"
    assert stat.S_IMODE((tools.parent / "run" / "verify.json").stat().st_mode) == 0o644


def test_nothing_is_pulled_and_the_container_that_stayed_is_removed_by_its_own_name(tools: Path) -> None:
    gpus(tools)

    asked = calls(tools, "docker")
    started = [call for call in asked if call.startswith("run")]
    assert all("--pull=never" in call and IMAGE in call for call in started)
    # By which a rebuild knows them.
    assert all("--label=rigup.plan=" in call for call in started)
    # The log driver of the host's owner may need a server that is not there.
    assert all("--log-driver=none" in call for call in started)
    assert "--gpus all" in started[0]
    assert "--device nvidia.com/gpu=all" in started[1]
    name = next(word for word in started[2].split() if word.startswith("--name=")).removeprefix("--name=")
    assert asked[-2:] == [f"exec {name} nvidia-smi -L", f"rm --force {name}"]
    assert calls(tools, "systemctl").count("daemon-reload") == 1


def test_a_gpu_too_few_fails_and_says_what_was_listed(tools: Path) -> None:
    result, record = gpus(tools, count=5)

    assert result.returncode == 1
    assert "lists 4 of 5 GPUs" in result.stderr
    assert not record["passed"]


def test_gpus_lost_at_a_daemon_reload_fail_that_check_alone(tools: Path) -> None:
    lost = 'case "$1" in exec) echo "Failed to initialize NVML: Unknown Error"; exit 255;; esac'
    program(tools, "docker", f"{lost}\n{GPUS}")

    result, record = gpus(tools)

    assert [check["ok"] for check in record["checks"]] == [True, True, False]
    assert "Failed to initialize NVML: Unknown Error" in result.stderr
    assert calls(tools, "docker")[-1].startswith("rm --force rigup-verify-")


def test_a_container_that_does_not_start_says_why(tools: Path) -> None:
    said = "docker: Error response from daemon: CDI device injection failed: unresolvable CDI devices"
    program(tools, "docker", f'echo "{said}" >&2; exit 125')

    result, _ = gpus(tools)

    assert result.returncode == 1
    assert result.stderr.count(said) == 3


def test_the_checks_end_in_their_time_also_where_one_hangs_and_name_it(tools: Path) -> None:
    program(tools, "docker", "exec sleep 60")

    result, record = verify("gpus", "--image", IMAGE, "--count", "4", "--within=1", tools=tools)

    assert result.returncode == 1
    assert "gpus in a container by --gpus: timed out after 1 s; remaining checks skipped" in result.stderr
    assert [check["ok"] for check in record["checks"]] == [False]


def test_a_unit_that_is_restarted_meanwhile_does_not_pass(tools: Path) -> None:
    program(tools, "systemctl", f"echo InvocationID=$(wc -l < {tools}/systemctl.calls)")

    result, record = gpus(tools)

    assert result.returncode == 1
    assert "docker.service was restarted during the checks" in result.stderr
    assert not record["passed"]


def gateway(tools: Path, key: str, open_paths: tuple[str, ...] = ("/health",)) -> subprocess.CompletedProcess[str]:
    """Verify a gateway that knows the key `planted-key`."""
    key_file = tools.parent / "key"
    key_file.write_text(f"{key}\n")

    def answers(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Page:
        known = headers.get("Authorization") == "Bearer planted-key"
        return Page(status=200 if known or path in open_paths else 401)

    with site_with_headers(answers) as url:
        result, record = verify("gateway", "--url", url, "--key-file", str(key_file), tools=tools)
    assert "planted-key" not in json.dumps(record) + result.stdout + result.stderr
    return result


def test_a_gateway_that_asks_for_the_key_passes(tools: Path) -> None:
    result = gateway(tools, "planted-key")

    assert result.returncode == 0, result.stderr
    assert result.stdout.count("ok ") == 4


def test_a_gateway_that_protects_only_the_api_fails(tools: Path) -> None:
    result = gateway(tools, "planted-key", open_paths=("/health", "/metrics"))

    assert result.returncode == 1
    assert "expected 401, but /metrics answered 200" in result.stderr


def test_a_gateway_that_does_not_know_the_key_fails(tools: Path) -> None:
    result = gateway(tools, "planted-key-of-yesterday")

    assert result.returncode == 1
    assert "/v1/models answered 401 to the key in" in result.stderr
