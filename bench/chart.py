"""Draw the benchmark's results: `chart.py RESULTS.json CHART.png`, in the benchmark's own virtual environment."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DEPLOYS = (
    ("ansible", "Ansible, pipelining", "#c44e52"),
    ("ssh", "pyinfra, its own ssh connector", "#dd8452"),
    ("rig", "pyinfra, @rig", "#4c72b0"),
)
AUDITS = (
    ("testinfra-ssh", "testinfra, ssh", "#c44e52"),
    ("paramiko", "testinfra, paramiko", "#dd8452"),
    ("rig", "rigup's audit", "#4c72b0"),
)


def main(source: str, target: str) -> None:
    with open(source) as file:
        result = json.load(file)
    measured = {
        (case["job"], case["tool"], case["hosts"], case["round_trip_ms"]): case["median"] for case in result["cases"]
    }
    distances = sorted({key[3] for key in measured if key[0] == "deploy"})
    hosts = sorted({key[2] for key in measured if key[0] == "deploy"})
    panels = [("deploy", count, DEPLOYS) for count in hosts] + [("audit", 1, AUDITS)]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.8), squeeze=False)
    for axis, (job, count, tools) in zip(axes[0], panels, strict=True):
        draw(
            axis,
            [(name, color, [measured.get((job, tool, count, d)) for d in distances]) for tool, name, color in tools],
        )
        what = "A deploy that finds nothing to do" if job == "deploy" else "The audit"
        axis.set_title(f"{what}, {count} host{'s' if count > 1 else ''}", fontsize=10)
        axis.set_xticks(range(len(distances)), [f"{distance} ms" for distance in distances])
        axis.set_xlabel("distance (round trip)", fontsize=9)
        axis.legend(fontsize=8, frameon=False, loc="upper left")
    axes[0][0].set_ylabel("seconds, logarithmic", fontsize=9)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    note = "The eight share one lab host and its processor; a real fleet is faster."
    figure.text(0.01, 0.01, note, fontsize=7, color="#555555")
    figure.savefig(target, dpi=110)


def draw(axis: Any, series: Sequence[tuple[str, str, list[float | None]]]) -> None:
    width = 0.8 / len(series)
    top = 1.0
    for number, (name, color, values) in enumerate(series):
        label: str | None = name
        for place, value in enumerate(values):
            if value is None:
                continue
            at = place + (number - (len(series) - 1) / 2) * width
            axis.bar(at, value, width, color=color, label=label)
            label = None
            axis.text(at, value * 1.06, f"{value:.3g}", ha="center", va="bottom", fontsize=7)
            top = max(top, value)
    axis.set_yscale("log")
    # Space for the legend.
    axis.set_ylim(0.5, top * 8)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main(*sys.argv[1:])
