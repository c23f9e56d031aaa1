"""Start a real engine on the GPU host, once for each case, and say what came of it. Standard library only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.gpu_host.cases import CASES, ENVIRONMENT, HEALTHY, Case, wrong
from tools.gpu_host.outcome import Outcome, elapsed, environment

SERVER = "import sys; from vllm.entrypoints.cli.main import main; sys.exit(main())"
LIMIT_S, SMOKE_S = 400, 240
FIRST_PORT = 8100
TEMPLATE = "chat_template.jinja"
SMOKE = {"tools": True, "reasoning": True, "images": True, "random_weights": True, "long_prompt": 2048}
SCHEDULE = [["chat", 1, 4], ["chat", 4, 8]]


class Started:
    """The engine of one case, which runs beside those of other cases."""

    def __init__(self, case: Case, port: int, root: Path, out: Path, packed: Mapping[str, Any]) -> None:
        self.case, self.port, self.model = case, port, str(packed["model"])
        self.log, self.began = out / f"{case.name}.log", time.monotonic()
        folder = model_folder(case, root, out, packed["files"])
        argv = [sys.executable, "-c", SERVER, "serve", str(folder), "--host=127.0.0.1", f"--port={port}"]
        argv.append(f"--chat-template={folder / TEMPLATE}")
        variables = {**environment(root / "engine"), **packed["env"], **ENVIRONMENT}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*argv, *packed["argv"]], stdout=log, stderr=subprocess.STDOUT, env=variables, start_new_session=True
            )

    def ended(self) -> str:
        """Wait until the engine serves, and return HEALTHY or how it ended."""
        while time.monotonic() - self.began < LIMIT_S:
            if self.process.poll() is not None:
                return f"it exited with {self.process.returncode}"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return HEALTHY
            except OSError:
                pass
            time.sleep(0.5)
        return f"it did not serve within {LIMIT_S} s"

    def stop(self) -> None:
        """End the engine and all its processes."""
        for sign, limit in ((signal.SIGTERM, 20), (signal.SIGKILL, None)):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self.process.pid, sign)
                self.process.wait(limit)


def model_folder(case: Case, root: Path, out: Path, patched: Sequence[str]) -> Path:
    """Return a folder with links to the checkpoint's files, and to the case's own where it has patched ones."""
    folder = out / "models" / case.name
    folder.mkdir(parents=True)
    for path in (root / "checkpoint").iterdir():
        own = root / "patched" / case.name / path.name
        (folder / path.name).symlink_to(own if path.name in patched else path)
    return folder


def served(root: Path, out: Path, cards: int) -> list[Outcome]:
    """Run the cases that fit on the host's cards, all those for one card side by side."""
    packed = {case["name"]: case for case in json.loads((root / "manifest.json").read_text())["cases"]}
    outcomes = []
    for number in sorted({case.cards for case in CASES}):
        cases = [case for case in CASES if case.cards == number]
        if number > cards:
            outcomes += [Outcome(case.name, case.means, None, f"needs {number} cards") for case in cases]
            continue
        started = [Started(case, FIRST_PORT + index, root, out, packed[case.name]) for index, case in enumerate(cases)]
        try:
            for engine in started:
                outcomes += came_of(engine, root, out)
        finally:
            for engine in started:
                engine.stop()
    return outcomes


def came_of(engine: Started, root: Path, out: Path) -> list[Outcome]:
    """Return what came of one case, and of the requests that were sent to it."""
    case, ended = engine.case, engine.ended()
    seconds = elapsed(engine.began)
    causes = [] if ended == HEALTHY else causes_of(engine.log, root)
    mistake = wrong(case, ended, causes)
    told = "serves" if ended == HEALTHY else f"{ended}: {', '.join(causes)}"
    outcomes = [Outcome(case.name, case.means, not mistake, mistake or told, seconds)]
    if ended == HEALTHY and case.smoke:
        outcomes += [smoke(engine, root, out), bench(engine, root, out)]
    return outcomes


def causes_of(log: Path, root: Path) -> list[str]:
    """Return the causes that rigup's diagnosis names for a log."""
    argv = [sys.executable, "-m", "tools.gpu_host.causes", str(log)]
    variables = environment(root / "tool", root / "project")
    result = subprocess.run(argv, capture_output=True, text=True, cwd=root / "project", env=variables)
    try:
        return list(json.loads(result.stdout))
    except ValueError:
        return [f"the diagnosis failed: {result.stderr.strip()[-500:]}"]


def smoke(engine: Started, root: Path, out: Path) -> Outcome:
    """Send the requests that a deploy sends before it calls an endpoint verified."""
    expect = {**SMOKE, "speculation": engine.case.speculation}
    record = out / f"{engine.case.name}.smoke.json"
    began = time.monotonic()
    result = subprocess.run(
        [
            *(sys.executable, str(root / "project/files/rigup-host"), "smoke", f"--out={record}", "--unit=none"),
            *("--digest=none", f"--url=http://127.0.0.1:{engine.port}", f"--model={engine.model}", "--timeout=120"),
            *(f"--within={SMOKE_S}", f"--expect={json.dumps(expect)}"),
        ],
        capture_output=True,
        text=True,
        env=environment(root / "engine", stub=out),
    )
    (out / f"{engine.case.name}.smoke.txt").write_text(result.stdout + result.stderr)
    passed = sum(line.startswith("ok ") for line in result.stdout.splitlines())
    told = [line for line in result.stdout.splitlines() if not line.startswith("ok ")]
    detail = "; ".join([f"{passed} checks passed", *told, *result.stderr.splitlines()[-3:]])
    name = f"{engine.case.name}: smoke"
    return Outcome(name, "the requests of a deploy", result.returncode == 0, detail, elapsed(began))


def bench(engine: Started, root: Path, out: Path) -> Outcome:
    """Measure the endpoint as `rigup bench` does, briefly."""
    began = time.monotonic()
    result = subprocess.run(
        [
            *(sys.executable, str(root / "project/files/rigup-host"), "bench", "--repeats=2"),
            *(f"--url=http://127.0.0.1:{engine.port}", f"--model={engine.model}", "--timeout=60"),
            f"--schedule={json.dumps(SCHEDULE)}",
        ],
        capture_output=True,
        text=True,
        env=environment(root / "engine", stub=out),
    )
    (out / f"{engine.case.name}.bench.jsonl").write_text(result.stdout)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    requests = [line for line in lines if line["kind"] == "request"]
    failed = [line for line in requests if line["error"]]
    tokens = sum(line["tokens"] or 0 for line in requests if not line["error"])
    detail = f"{len(requests) - len(failed)} of {len(requests)} requests answered, {tokens} tokens"
    ok = result.returncode == 0 and bool(requests) and not failed
    return Outcome(f"{engine.case.name}: bench", "the requests of a measurement", ok, detail, elapsed(began))


def as_data(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the outcomes as JSON has them."""
    return [asdict(outcome) for outcome in outcomes]
