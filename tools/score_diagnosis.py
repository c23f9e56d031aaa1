"""Score the diagnosis against the excerpts of public logs in `tests/data/logs`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

from rigup.diagnosis.explain import diagnose

LOGS = Path(__file__).parent.parent / "tests/data/logs"
SETS = {
    "working": LOGS,
    **{name: LOGS / name for name in ("reserved", "later", "blind", "fresh", "wide", "unseen", "unseen-2")},
}
VERDICTS = ("right", "wrong", "none", "symptom only", "healthy, no cause", "healthy, with a cause")


@dataclass(frozen=True)
class Excerpt:
    """A log, what should be said about it, and what is: a cause, `symptom` or `none`."""

    file: str
    expect: str
    said: str

    @property
    def verdict(self) -> str:
        """How well the diagnosis did."""
        if self.file.startswith("healthy/"):
            return "healthy, no cause" if self.said in ("none", "symptom") else "healthy, with a cause"
        if self.said == self.expect:
            return "right"
        return {"none": "none", "symptom": "symptom only"}.get(self.said, "wrong")


def score(directory: Path) -> list[Excerpt]:
    """Return what the diagnosis says about the excerpts of one set."""
    return [
        Excerpt(entry["file"], entry["expect"], said((directory / entry["file"]).read_text().splitlines()))
        for entry in yaml.safe_load((directory / "index.yaml").read_text())
    ]


def said(log: list[str]) -> str:
    """Return the first cause that the diagnosis names, or `symptom` or `none`."""
    diagnosis = diagnose(log)
    if diagnosis.causes:
        return diagnosis.causes[0].fingerprint.id
    return "symptom" if diagnosis.symptoms else "none"


def main() -> None:
    """Print the score of all sets, and of all but the reserved one what went wrong."""
    for name, directory in SETS.items():
        excerpts = score(directory)
        counted = Counter(each.verdict for each in excerpts)
        print(f"{name + ':':10}" + ", ".join(f"{counted[verdict]} {verdict}" for verdict in VERDICTS))
        for each in excerpts:
            if name != "reserved" and each.verdict not in ("right", "healthy, no cause"):
                print(f"    {each.file}: {each.said} instead of {each.expect}")


if __name__ == "__main__":
    main()
