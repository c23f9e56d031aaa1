"""Verify that the GPUs compute, keep and copy data correctly, before an engine starts on them.

COMMAND starts `check_cards.py` in the engine's image or virtual environment, once for each check. A check that hangs is
ended. The record holds the measured bandwidths; a later run notes what became slower.

Exit status: 0 all checks passed, 1 a check failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rigup_host import checks, files
from rigup_host.checks import Check, Failed, Noted

CHECKS = {
    "compute": "GPUs compute correctly",
    "memory": "GPU memory keeps its content",
    "copies": "GPUs copy data to each other unchanged",
    "all-reduce": "GPUs add data with NCCL",
}
SLOWER = 0.8
"""Below this share of the bandwidth of an earlier run, a path became slower."""

REMOVAL_S = 30

_FAULTY = (
    "The card, its power supply or its memory is faulty. Look for Xid messages with `dmesg | grep -i xid`, reset power "
    "limits and clocks, and try the card in another slot."
)
_PATH = (
    "The usual cause is an IOMMU that translates addresses, or PCIe access control (ACS), between the cards: boot with "
    "`kernel_args: [iommu=pt]`, or turn the IOMMU and ACS off in the firmware. Until then `NCCL_P2P_DISABLE=1` in the "
    "recipe's `env` keeps engines from direct copies."
)
REMEDIES = {"compute": _FAULTY, "memory": _FAULTY, "copies": _PATH, "all-reduce": _PATH}


def main(argv: list[str]) -> int:
    """Run all checks; return the exit status."""
    parser = argparse.ArgumentParser(prog="rigup-host cards", description="Verify the GPUs before an engine uses them.")
    checks.add_arguments(parser)
    parser.add_argument("--gpus", type=int, help="how many GPUs must be there; any number if left out")
    parser.add_argument("--container", help="the name of the container that the command starts")
    parser.add_argument("--no-p2p", action="store_true", help="the engine does not copy directly")
    parser.add_argument("--limit", type=float, default=180, help="seconds for one check")
    parser.add_argument("command", nargs="+", help="what runs `check_cards.py`; the name of the check is added")
    options = parser.parse_args(argv)
    earlier = figures_of(options.out)
    figures: dict[str, float] = {}

    def check(what: str) -> Check:
        return CHECKS[what], lambda: verified(what, options, earlier, figures)

    return checks.record("cards", [check(what) for what in CHECKS], options, figures=figures)


def figures_of(record: Path) -> dict[str, float]:
    """Return the bandwidths in an earlier record; none if there is no such record."""
    try:
        figures = files.from_json(record.read_bytes())["figures"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: rate for name, rate in figures if isinstance(rate, int | float)}


def verified(what: str, options: argparse.Namespace, earlier: Mapping[str, float], figures: dict[str, float]) -> str:
    """Run one check and return its summary; add what it measured to `figures`.

    Raise Failed if the cards do not work, Noted if they became slower.
    """
    found = answer(what, options)
    if options.gpus is not None and found["cards"] != options.gpus:
        raise Failed(f"CUDA sees {found['cards']} of {options.gpus} GPUs")
    figures.update(found["figures"])
    if found["wrong"]:
        wrong = "; ".join(found["wrong"])
        if options.no_p2p and REMEDIES[what] is _PATH:
            raise Noted(f"{wrong}. The recipe sets NCCL_P2P_DISABLE=1, so engines do not copy directly.")
        raise Failed(f"{wrong}. {REMEDIES[what]}")
    slower = [
        f"{name}: {rate} GB/s, {earlier[name]} before"
        for name, rate in found["figures"].items()
        if rate < SLOWER * earlier.get(name, 0)
    ]
    if slower:
        raise Noted(f"slower than in an earlier run: {'; '.join(slower)}. Check the link width with `lspci -vv`.")
    return str(found["summary"])


def answer(what: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what `check_cards.py` printed. Raise Failed if it could not check or did not end in time."""
    # A session of its own, so that all of its processes can be ended.
    process = subprocess.Popen(
        [*options.command, what], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, said = process.communicate(timeout=options.limit)
    except subprocess.TimeoutExpired:
        raise Failed(hung(what, options, process)) from None
    except BaseException:
        end(options, process)
        raise
    lines = out.strip().splitlines()
    if process.returncode or not lines:
        # Docker's last line only names its help.
        words = [line for line in said.splitlines() if line.strip() and "docker run --help" not in line]
        raise Failed(f"could not check: {words[-1] if words else 'no output'}")
    found: dict[str, Any] = files.from_json(lines[-1])
    return found


def hung(what: str, options: argparse.Namespace, process: subprocess.Popen[str]) -> str:
    """End a check that hangs; return what that means."""
    meaning = f"no result after {options.limit:.0f} s. {REMEDIES[what]}"
    if not end(options, process):
        meaning += " The process cannot be ended, so the GPU is stuck: reboot the host."
    return meaning


def end(options: argparse.Namespace, process: subprocess.Popen[str]) -> bool:
    """End the check with all of its processes; return whether that worked."""
    os.killpg(process.pid, signal.SIGKILL)
    try:
        if options.container:
            argv = ["docker", "rm", "--force", options.container]
            subprocess.run(argv, capture_output=True, timeout=REMOVAL_S, check=True)
        process.wait(REMOVAL_S)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError, OSError):
        return False
    return True
