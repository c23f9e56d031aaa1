"""The trial on a GPU host: what must come out of an engine's start, and a whole pack without one."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

import lab.checkpoint
from rigup.diagnosis.explain import diagnose
from tests.captures import capture
from tools.gpu_host import engines, pack
from tools.gpu_host.cases import CASES, DRAFTER, HEALTHY, ROUTER, wrong
from tools.gpu_host.outcome import Outcome
from tools.gpu_host.report import page

BY_NAME = {case.name: case for case in CASES}
EXITED = "it exited with 1"
TEMPLATE = Path(lab.checkpoint.__file__).parent / "text" / "chat_template.jinja"


def test_a_start_must_fail_for_its_own_reason() -> None:
    router, drafter = BY_NAME["router-unpatched"], BY_NAME["drafter-unpatched"]
    assert wrong(router, EXITED, ["weights-do-not-fit"]) == wrong(drafter, EXITED, ["drafter-read-as-fp4"]) == ""
    assert "weights-do-not-fit" in wrong(drafter, EXITED, ["weights-do-not-fit"])
    assert "no cause is known" in wrong(router, EXITED, [])


@pytest.mark.parametrize(
    "case, log",
    [
        ("router-unpatched", "0.20.2-router-miniature.txt"),
        ("drafter-unpatched", "0.20.2-mtp-fc-miniature.txt"),
        ("drafter-unpatched", "0.25.1-mtp-fc-real-sizes.txt"),
    ],
)
def test_the_logs_of_such_starts_have_that_cause(case: str, log: str) -> None:
    causes = [cause.fingerprint.id for cause in diagnose(capture(f"vllm-h200/{log}").splitlines()).causes]
    assert BY_NAME[case].fails in causes


def test_what_must_fail_may_not_serve_and_what_must_serve_may_not_fail() -> None:
    assert "it serves" in wrong(BY_NAME["router-unpatched"], HEALTHY, [])
    assert wrong(BY_NAME["router-patched"], HEALTHY, []) == ""
    assert EXITED in wrong(BY_NAME["router-patched"], EXITED, ["out-of-memory"])


def test_parts_are_together_what_was_written(tmp_path: Path) -> None:
    content = os.urandom(250_000)
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / "file").write_bytes(content)
    (tmp_path / "staging" / "left-out.so").write_bytes(content)
    parts = pack._archive(tmp_path / "staging", tmp_path, ["*.so"], 100_000)
    assert [part.name for part in parts] == ["part.00", "part.01", "part.02"]
    assert [part.stat().st_size for part in parts][:2] == [100_000, 100_000]
    with tarfile.open(fileobj=BytesIO(b"".join(part.read_bytes() for part in parts))) as archive:
        assert archive.getnames() == ["file"]
        member = archive.extractfile("file")
        assert member and member.read() == content


def test_each_case_gets_the_patched_files_that_its_patches_change(tmp_path: Path) -> None:
    lists = {"quantization_config": {"ignore": ["lm_head"]}}
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(lists))
    shutil.copy(TEMPLATE, tmp_path / "checkpoint" / "chat_template.jinja")
    added = {}
    for case in CASES:
        prepared = pack._prepared(case, tmp_path)
        patched = tmp_path / "patched" / case.name / "config.json"
        assert prepared["files"] == ["chat_template.jinja", *(["config.json"] if patched.exists() else [])]
        text = patched.read_text() if patched.exists() else json.dumps(lists)
        added[case.name] = set(json.loads(text)["quantization_config"]["ignore"]) - {"lm_head"}
        assert f"--tensor-parallel-size={case.cards}" in prepared["argv"]
        assert any("speculative" in word for word in prepared["argv"]) is case.speculation
        assert {ROUTER, DRAFTER} & set(prepared["env"]) == set(case.unfixed)
    assert {name: set(BY_NAME[name].patched) for name in added} == added


ENGINE = """
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

def main():
    if os.environ.get("WITHOUT_PR_35156"):
        sizes = "Tried to load weights of size torch.Size([16, 256])to a parameter of size torch.Size([16, 128])"
        print("(EngineCore pid=1) ERROR 12-01 19:32:11 [core.py:1231] AssertionError: " + sizes)
        return 1
    port = next(int(word.partition("=")[2]) for word in sys.argv if word.startswith("--port="))
    HTTPServer(("127.0.0.1", port), Server).serve_forever()
"""


def test_engines_that_serve_and_that_fail_are_told_apart_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = tmp_path / "engine" / "vllm" / "entrypoints" / "cli"
    cli.mkdir(parents=True)
    (cli / "main.py").write_text(ENGINE)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    shutil.copy(TEMPLATE, tmp_path / "checkpoint" / "chat_template.jinja")
    (tmp_path / "tool").mkdir()
    (tmp_path / "project").symlink_to(pack.ROOT)
    cases = [pack._prepared(replace(case, patched=()), tmp_path) for case in CASES]
    (tmp_path / "manifest.json").write_text(json.dumps({"engine": "a stand-in", "cases": cases}))
    monkeypatch.setattr(engines, "CASES", [BY_NAME[n] for n in ("router-unpatched", "as-released", "two-cards")])
    out = tmp_path / "out"
    out.mkdir()

    outcomes = engines.served(tmp_path, out, cards=1)

    assert [(each.name, each.ok) for each in outcomes] == [
        ("router-unpatched", True),
        ("as-released", True),
        ("two-cards", None),
    ]
    assert (out / "models" / "as-released" / "config.json").read_text() == "{}"
    running = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in os.listdir("/proc") if pid.isdecimal()]
    assert not any(str(tmp_path).encode() in command for command in running)


def test_the_report_counts_what_was_tried() -> None:
    outcomes = [
        Outcome("facts", "all", True, "40 of 40", 4.1),
        Outcome("cards", "computing", False, "wrong | data"),
        Outcome("two-cards", "copies", None, "needs 2 cards"),
    ]
    text = page({"cards": "one"}, outcomes)
    assert "1 of 2 as expected" in text and "| cards | computing | **not as expected** |  |" in text
    assert "wrong \\| data" in text and sys.version_info >= (3, 11)
