"""What a host is doing right now: downloads under way, how full its GPUs are, whether an address answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.facts._reading import Value, reading

__all__ = ["Downloads", "GpuUse", "GpuUseValue", "HttpStatus", "parse_downloads", "parse_gpu_use"]

UNIT = "model-fetch@"
PATIENCE_S = 5


@dataclass(frozen=True)
class GpuUseValue(Value):
    """Memory of one GPU in MiB, and how busy it is in percent; None where the card does not say."""

    index: int
    used: int
    total: int
    busy: int | None


def parse_gpu_use(lines: list[str]) -> list[GpuUseValue]:
    """From `nvidia-smi --query-gpu`; its error messages are no GPUs."""
    rows = [[cell.strip() for cell in line.split(",")] for line in lines]
    numbers = [row for row in rows if len(row) == 4 and all(cell.isdigit() for cell in row[:3])]
    return [
        GpuUseValue(int(index), int(used), int(total), int(busy) if busy.isdigit() else None)
        for index, used, total, busy in numbers
    ]


def parse_downloads(lines: list[str]) -> list[dict[str, Any]]:
    """From units, lines `PATH:JSON` of how far each checkpoint is, and `last UNIT LINE` of those units that failed.

    One object for each unit, with `checkpoint` and, once it has said something, `step`, `bytes_done` and `bytes_total`.
    The step of a failed one is `given up`, and its last line what it is `doing`.
    """
    said: dict[str, dict[str, Any]] = {}
    last: dict[str, str] = {}
    units: dict[str, bool] = {}
    for line in lines:
        if line.startswith(UNIT):
            name, _, active, *_ = line.split()
            units[_instance(name)] = active == "failed"
        elif line.startswith(f"last {UNIT}"):
            name, _, text = line.removeprefix("last ").partition(" ")
            last[_instance(name)] = text
        elif line.startswith("/"):
            path, _, text = line.partition(":")
            said[path.split("/")[-2]] = json.loads(text)
    found = []
    for checkpoint, failed in sorted(units.items()):
        end = {"step": "given up", "doing": last.get(checkpoint, ""), "rate": 0} if failed else {}
        found.append({"checkpoint": checkpoint, **said.get(checkpoint, {}), **end})
    return found


def _instance(unit: str) -> str:
    return unit.removeprefix(UNIT).removesuffix(".service")


class GpuUse(FactBase[list[GpuUseValue]]):
    """How full the GPUs are."""

    @staticmethod
    def default() -> list[GpuUseValue]:
        return []

    def command(self) -> str:
        fields = "index,memory.used,memory.total,utilization.gpu"
        return f"nvidia-smi --query-gpu={fields} --format=csv,noheader,nounits 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> list[GpuUseValue]:
        return parse_gpu_use(output)


class Downloads(FactBase[list[dict[str, Any]]]):
    """The checkpoints that are being fetched, and how far they are; also those that were given up, and why."""

    @staticmethod
    def default() -> list[dict[str, Any]]:
        return []

    def command(self) -> str:
        units = f"systemctl list-units --plain --no-legend --no-pager '{UNIT}*' 2>/dev/null --state"
        return (
            f"{units}=active,activating,failed; {units}=failed | while read -r unit rest; do "
            "printf 'last %s %s\\n' \"$unit\" "
            '"$(journalctl --no-pager --quiet --output=cat --lines=1 "_SYSTEMD_UNIT=$unit")"; done; '
            "grep -H . /run/rigup-fetch/*/progress.json 2>/dev/null || true"
        )

    @reading
    def process(self, output: list[str]) -> list[dict[str, Any]]:
        return parse_downloads(output)


class HttpStatus(FactBase[int]):
    """The status with which `url` answers the host itself; 0 where nothing does."""

    @staticmethod
    def default() -> int:
        return 0

    def command(self, url: str) -> StringCommand:
        return StringCommand(
            f"curl -s --noproxy '*' -m {PATIENCE_S} -o /dev/null -w '%{{http_code}}'",
            QuoteString(url),
            "2>/dev/null || true",
        )

    @reading
    def process(self, output: list[str]) -> int:
        return int("".join(output).strip() or 0)
