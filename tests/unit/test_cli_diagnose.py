"""rigup diagnose HOST[/ENDPOINT]: what the host says is read over ssh in one round trip, and taken into account."""

# ruff: noqa: E501 - log lines are as long as they are.

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rigup.cli import main
from tests.unit.loopback_sshd import programs_first, running_sshd

JOURNAL = """\
1764590000.100000 rig1 systemd[1]: Starting llm@main.service - vllm-nvfp4-cu130 as main...
1764590001.200000 rig1 docker[4711]: (APIServer pid=1) INFO 11-23 20:56:02 [api_server.py:1351] vLLM API server version 0.33.0
"""
DIED = "1764590100.3 rig1 docker[4711]: (APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.\n"
READY = "1764590100.3 rig1 docker[4711]: (APIServer pid=1) INFO:     Application startup complete.\n"
LOST = "1764590099.5 rig1 kernel: NVRM: Xid (PCI:0000:41:00): 79, pid=4711, name=VLLM, GPU has fallen off the bus.\n"
OLD = LOST.replace("1764590099.5", "1764500000.5")
KILLED = "1764590099.5 rig1 kernel: Out of memory: Killed process 4711 (cicc) total-vm:9000000kB, anon-rss:8000000kB\n"
DISKS = """\
Filesystem     1024-blocks      Used Available Capacity Mounted on
/dev/nvme0n1p2   959786032 123456789 787511104      14% /
/dev/loop3           65536     65536         0     100% /snap/core/1
"""
FULL = DISKS + "/dev/nvme1n1   3750738264 3750738264         0     100% /srv/models\n"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Sets what the host's programs print; returns the options that name its inventory."""
    programs = tmp_path / "programs"
    programs.mkdir()

    def says(journal: str = "", kernel: str = "", disks: str = DISKS, smi: str = "") -> list[str]:
        for name, text in (("journal", journal), ("kernel", kernel), ("disks", disks), ("smi", smi)):
            (tmp_path / name).write_text(text)
        scripts = {
            "journalctl": f'case "$*" in *--dmesg*) cat {tmp_path}/kernel;; *llm@main.service*) cat {tmp_path}/journal;; esac',
            "df": f"cat {tmp_path}/disks",
            "nvidia-smi": f"cat {tmp_path}/smi",
        }
        for name, script in scripts.items():
            (programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name).chmod(0o755)
        return [f"--inventory={inventory}"]

    count = f"ForceCommand echo session >>{tmp_path}/sessions;"
    with running_sshd(tmp_path, programs_first(programs).replace("ForceCommand", count)) as server:
        server.lab(endpoints={"main": {"gpus": [0, 1, 2, 3]}, "small": {"gpus": [4, 5, 6, 7], "port": 8001}})
        inventory = server.environment["RIGUP_INVENTORY"]
        yield says


def test_the_hosts_word_is_the_root_of_what_the_engine_says(
    host: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = host(JOURNAL + DIED, LOST)
    assert main.main(["diagnose", "box/main", *options]) == 0
    told = capsys.readouterr().out
    assert told.startswith("Known cause: A GPU has stopped responding. (gpu-off-the-bus)")
    assert "It led to: " in told
    # What shows that the login runs commands, and one for everything else.
    assert (tmp_path / "sessions").read_text().count("session") == 2


def test_a_host_that_says_nothing_leaves_the_symptom(
    host: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["diagnose", "box/main", *host(JOURNAL + DIED)]) == 2
    assert capsys.readouterr().out.startswith("Symptom, not a cause: ")


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ({"kernel": KILLED}, "jit-out-of-memory"),
        ({"disks": FULL}, "disk-full"),
        ({"smi": "Failed to initialize NVML: Driver/library version mismatch\n"}, "driver-mismatch"),
        ({"smi": "Unable to determine the device handle for GPU0000:41:00.0: Unknown Error\n"}, "gpu-off-the-bus"),
    ],
)
def test_memory_disk_and_driver_count(
    host: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], state: dict[str, str], cause: str
) -> None:
    assert main.main(["diagnose", "box/main", *host(JOURNAL + DIED, **state)]) == 0
    assert f"({cause})" in capsys.readouterr().out.splitlines()[0]


def test_what_the_kernel_said_before_the_start_or_before_it_became_ready_is_no_cause(
    host: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["diagnose", "box/main", *host(JOURNAL + DIED, OLD)]) == 2
    assert main.main(["diagnose", "box/main", *host(JOURNAL + READY, LOST)]) == 2
    assert "No known failure in this log." in capsys.readouterr().out


def test_a_host_has_all_its_endpoints(host: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    failed = (
        JOURNAL
        + "1764590002.3 rig1 docker[4711]: ERROR:    [Errno 98] error while attempting to bind: address already in use\n"
    )
    assert main.main(["diagnose", "box", *host(failed)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "box/main:"
    assert "(port-taken)" in told[1]
    assert told[-2:] == ["box/small:", "No known failure in this log."]


def test_an_unknown_host_or_endpoint_is_named(
    host: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    options = host()
    assert main.main(["diagnose", "bax", *options]) == 1
    assert "bax: No such file, and as a host: " in capsys.readouterr().err
    assert main.main(["diagnose", "box/mian", *options]) == 1
    assert "box has no endpoint 'mian'" in capsys.readouterr().err
