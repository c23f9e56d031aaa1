"""Write what came of a trial as a page. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tools.gpu_host.outcome import Outcome

MARKS = {True: "as expected", False: "**not as expected**", None: "not tried"}


def page(host: Mapping[str, str], outcomes: Sequence[Outcome]) -> str:
    """Return the report in Markdown: what the host is, a row for each thing tried, then the details."""
    tried = [outcome for outcome in outcomes if outcome.ok is not None]
    right = sum(outcome.ok is True for outcome in tried)
    lines = ["# A trial on a GPU host", "", f"{right} of {len(tried)} as expected.", ""]
    lines += [f"- {name}: {value}" for name, value in host.items()]
    lines += ["", "| what | | result | s |", "|---|---|---|---|"]
    for each in outcomes:
        seconds = "" if each.seconds is None else f"{each.seconds:g}"
        lines.append(f"| {each.name} | {each.means} | {MARKS[each.ok]} | {seconds} |")
    lines += ["", "## Details", ""]
    lines += [f"- {each.name}: {_one_line(each.detail)}" for each in outcomes]
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
