"""rigup-host cards and check_cards.py: faults that nvidia-smi does not show, on the lab's simulated cards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab import cuda
from tests.unit.host_world import FILES, program, run_program

CHECK = (sys.executable, str(FILES / "check_cards.py"))
SUMMARIES = [
    "all products equal the CPU's",
    "0.0 GB written and read back",
    "12 copies compared, ",
    "4 GPUs add with NCCL, ",
]


class Cards:
    """Four simulated cards, and the verification on them."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.tools = directory, directory / "bin"
        self.record = directory / "state" / "cards-main.json"
        program(self.tools, "systemctl", "echo InvocationID=6a0ab0a2b1a04ea2a7d8f4d1e4a7b1c9")
        program(self.tools, "nvidia-smi", "\n".join(f"echo 'GPU {at}: NVIDIA (UUID: GPU-{at})'" for at in range(4)))
        program(self.tools, "docker", "exit 0")
        self.broken({})

    def broken(self, faults: dict[int, str]) -> Cards:
        hardware = self.directory / "usr/lib/lab-hardware/lab.json"
        hardware.parent.mkdir(parents=True, exist_ok=True)
        gpus = [{"uuid": f"GPU-{at}", "fault": faults.get(at, "")} for at in range(4)]
        hardware.write_text(json.dumps({"gpus": gpus}))
        return self

    def verify(self, *arguments: str, command: tuple[str, ...] = CHECK) -> subprocess.CompletedProcess[str]:
        return run_program(
            "cards",
            *("--out", str(self.record), "--unit", "nvidia-persistenced.service", "--digest", "d1", *arguments),
            "--",
            *command,
            tools=self.tools,
            LAB_ROOT=str(self.directory),
            PYTHONPATH=str(cuda.TORCH.parent),
        )

    def results(self) -> list[dict[str, Any]]:
        return list(json.loads(self.record.read_text())["checks"])


@pytest.fixture
def cards(tmp_path: Path) -> Cards:
    return Cards(tmp_path)


def test_good_cards_pass_and_the_bandwidth_of_each_pair_is_kept(cards: Cards) -> None:
    result = cards.verify("--gpus=4")
    assert (result.returncode, result.stderr) == (0, "")
    assert all(check["detail"].startswith(text) for check, text in zip(cards.results(), SUMMARIES, strict=True))
    record = json.loads(cards.record.read_text())
    pairs = {f"copy {source} to {target}" for source in range(4) for target in range(4) if source != target}
    assert set(record["figures"]) == {*pairs, "all-reduce"}
    assert (record["passed"], record["digest"]) == (True, "d1")


@pytest.mark.parametrize(
    ("fault", "name", "says", "remedy"),
    [
        ("computes-wrongly", "GPUs compute correctly", "GPU 2 multiplies float32 matrices wrongly", "power supply"),
        ("forgets", "GPU memory keeps its content", "GPU 2 returned other bytes than were written", "power supply"),
        ("garbles-copies", "GPUs copy data to each other unchanged", "GPU 2 received other bytes than", "iommu=pt"),
    ],
)
def test_a_bad_card_is_named_with_what_to_do(cards: Cards, fault: str, name: str, says: str, remedy: str) -> None:
    result = cards.broken({2: fault}).verify()
    assert result.returncode == 1
    # Bytes that a card forgets cannot be copied either.
    failed = next(check for check in cards.results() if not check["ok"])
    assert failed["name"] == name
    assert says in failed["detail"] and remedy in failed["detail"]
    assert f"{name}: {says}" in result.stderr


def test_wrong_copies_do_not_matter_to_an_engine_that_makes_none(cards: Cards) -> None:
    assert cards.broken({2: "garbles-copies"}).verify("--no-p2p").returncode == 0
    assert "The recipe sets NCCL_P2P_DISABLE=1" in cards.results()[2]["detail"]
    assert cards.broken({2: "forgets"}).verify("--no-p2p").returncode == 1


def test_a_check_that_hangs_is_ended_with_its_container(cards: Cards) -> None:
    result = cards.broken({1: "hangs"}).verify("--limit=3", "--container=rigup-cards-main")
    assert result.returncode == 1
    last = cards.results()[-1]
    assert (last["name"], last["ok"]) == ("GPUs add data with NCCL", False)
    assert last["detail"].startswith("no result after 3 s. The usual cause is an IOMMU")
    assert "reboot" not in last["detail"]
    assert "rm --force rigup-cards-main" in (cards.tools / "docker.calls").read_text()


def test_a_process_that_cannot_be_ended_means_a_reboot(cards: Cards) -> None:
    program(cards.tools, "docker", "exit 1")
    cards.broken({1: "hangs"}).verify("--limit=3", "--container=rigup-cards-main")
    assert cards.results()[-1]["detail"].endswith("so the GPU is stuck: reboot the host.")


def test_a_missing_card_and_a_broken_image_fail(cards: Cards) -> None:
    assert cards.verify("--gpus=5").returncode == 1
    assert cards.results()[0]["detail"] == "CUDA sees 4 of 5 GPUs"
    result = cards.verify(command=("sh", "-c", "echo 'No module named torch' >&2; exit 1"))
    assert result.returncode == 1
    assert cards.results()[0]["detail"] == "could not check: No module named torch"


def test_a_container_that_docker_refuses_says_why(cards: Cards) -> None:
    refused = (
        "docker: Error response from daemon: cannot share the host's IPC namespace when user namespaces are enabled"
    )
    said = f"{refused}\n\nRun 'docker run --help' for more information"
    assert cards.verify(command=("sh", "-c", f'echo "{said}" >&2; exit 125')).returncode == 1
    assert cards.results()[0]["detail"] == f"could not check: {refused}"


def test_what_became_slower_is_noted_and_does_not_fail(cards: Cards) -> None:
    printed = {"cards": 2, "wrong": [], "summary": "2 copies"}

    def measured(rate: float) -> tuple[str, ...]:
        text = json.dumps({**printed, "figures": {"copy 0 to 1": rate}})
        return ("sh", "-c", f"echo '{text}'")

    assert cards.verify(command=measured(50.0)).returncode == 0
    assert cards.verify(command=measured(41.0)).returncode == 0
    assert cards.results()[2]["detail"] == "2 copies"
    result = cards.verify(command=measured(20.5))
    assert result.returncode == 0
    assert "slower than in an earlier run: copy 0 to 1: 20.5 GB/s, 41.0 before" in result.stdout


def test_a_damaged_record_is_no_earlier_run(cards: Cards) -> None:
    cards.record.parent.mkdir()
    for text in ("[]", "{", '{"figures": {"copy 0 to 1": "fast"}}', '{"figures": 7}'):
        cards.record.write_text(text)
        assert cards.verify("--gpus=4").returncode == 0
