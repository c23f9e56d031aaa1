"""`host.py ROOT OUT`: run the trial on the GPU host. Standard library only; ROOT is where the parts were unpacked."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from pathlib import Path

# The project travels as files, not as an installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.gpu_host.engines import as_data, served
from tools.gpu_host.outcome import Outcome, elapsed, environment
from tools.gpu_host.report import page

QUERY = "name,driver_version,memory.total,power.limit"


def main(argv: list[str]) -> int:
    """Try everything, and write the report; return 0 if all came out as expected."""
    root, out = (Path(name).resolve() for name in argv)
    out.mkdir(parents=True, exist_ok=True)
    cards = asked("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader").splitlines()
    engine = json.loads((root / "manifest.json").read_text())["engine"]
    host = {"cards": "; ".join(cards), "kernel": platform.release(), "python": platform.python_version()}
    outcomes = [*read(root), verified(root, out, len(cards)), *served(root, out, len(cards))]
    (out / "report.json").write_text(json.dumps({"host": {**host, "engine": engine}, "outcomes": as_data(outcomes)}))
    text = page({**host, "engine": engine}, outcomes)
    (out / "report.md").write_text(text)
    print(text)
    return 0 if all(outcome.ok is not False for outcome in outcomes) else 1


def read(root: Path) -> list[Outcome]:
    """Read the facts and run preflight, with the project's own packages."""
    argv = [sys.executable, "-m", "tools.gpu_host.reading", str(root / "checkpoint")]
    project = root / "project"
    result = subprocess.run(argv, capture_output=True, text=True, cwd=project, env=environment(root / "tool", project))
    if result.returncode:
        return [Outcome("facts and preflight", "rigup's facts and preflight", False, result.stderr[-2000:])]
    return [Outcome(**found) for found in json.loads(result.stdout.splitlines()[-1])]


def verified(root: Path, out: Path, cards: int) -> Outcome:
    """Verify the cards as a deploy does before anything serves."""
    began, files = time.monotonic(), root / "project/files"
    argv = [sys.executable, str(files / "rigup-host"), "cards", f"--out={out / 'cards.json'}", "--unit=none"]
    argv += ["--digest=none", f"--gpus={cards}", "--", sys.executable, str(files / "check_cards.py")]
    result = subprocess.run(argv, capture_output=True, text=True, env=environment(root / "engine", stub=out))
    detail = "; ".join([*result.stdout.splitlines(), *result.stderr.splitlines()[-3:]])
    return Outcome("cards", "the verification of the cards", result.returncode == 0, detail, elapsed(began))


def asked(*argv: str) -> str:
    """Return what a command prints, empty if it fails."""
    return subprocess.run(argv, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
