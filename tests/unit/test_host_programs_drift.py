"""The daily audit on the host: what it finds, what it writes, and how that is read back."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rigup.facts.drift import DailyAuditValue, parse_daily_audit
from rigup_host import drift


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_file_that_is_gone_or_changed_is_found_and_an_untouched_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/same").write_text("second")
    (tmp_path / "etc/changed").write_text("by hand")
    lines = [
        json.dumps({"added": "file", "path": "/etc/same", "sha256": digest("first")}),
        json.dumps({"added": "file", "path": "/etc/same", "sha256": digest("second")}),
        json.dumps({"added": "file", "path": "/etc/changed", "sha256": digest("ours")}),
        json.dumps({"added": "file", "path": "/etc/gone", "sha256": digest("ours")}),
        json.dumps({"added": "file", "path": "/etc/made-way", "sha256": ""}),
        json.dumps({"added": "packages", "names": ["curl"]}),
        '{"added": "fi',
    ]
    found = list(drift.changed_files(drift.last_written(lines), tmp_path))
    assert found == ["/etc/changed was changed", "/etc/gone is gone"]


def test_a_damaged_ledger_cannot_be_compared_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, ledger = tmp_path / "plan.json", tmp_path / "ledger"
    plan.write_text("{}")
    ledger.write_text('{"added": "fi{"added": "file"}\n{"added": "packages", "names": []}\n')
    assert drift.main(["--plan", str(plan), "--ledger", str(ledger), "--out", str(tmp_path / "out")]) == 1
    assert "line 1 of the ledger is damaged" in capsys.readouterr().err


def test_a_switch_that_went_back_or_took_an_endpoint_away_is_no_finding_and_an_edited_unit_is(tmp_path: Path) -> None:
    plan = {"endpoints": [{"name": "main"}, {"name": "edited"}, {"name": "gone"}]}
    units = tmp_path / "usr/local/lib/systemd/system"
    units.mkdir(parents=True)
    for name in ("main", "edited", "gone"):
        for generation in ("old", "new"):
            made = tmp_path / f"etc/rigup/endpoints/{name}/{generation}/llm.service"
            made.parent.mkdir(parents=True)
            made.write_text(f"{name} {generation}")
    (units / "llm@main.service").write_text("main old")
    (units / "llm@edited.service").write_text("edited old by hand")
    # Written down before the switch, which went back; and an endpoint that is no more.
    tried = [
        (f"/usr/local/lib/systemd/system/llm@{name}.service", digest(f"{name} new")) for name in ("main", "former")
    ]
    lines = [json.dumps({"added": "file", "path": path, "sha256": sums}) for path, sums in tried]
    assert list(drift.changed_files(drift.last_written(lines), tmp_path)) == []
    assert list(drift.changed_units(plan, tmp_path)) == [
        "/usr/local/lib/systemd/system/llm@edited.service was changed",
        "/usr/local/lib/systemd/system/llm@gone.service is gone",
    ]


def test_a_store_with_a_byte_less_is_found(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(b"12345")
    plan = {"endpoints": [{"checkpoint": {"path": str(tmp_path), "files": 1, "bytes": 5}}]}
    assert list(drift.store_sizes(plan)) == []
    (tmp_path / "shard").write_bytes(b"1234")
    assert list(drift.store_sizes(plan)) == [f"{tmp_path} has 1 files with 4 bytes, expected 1 files with 5 bytes"]


def test_an_endpoint_that_does_not_answer_is_found() -> None:
    endpoint = {"name": "main", "address": "127.0.0.1", "port": 9, "ready_path": "/health"}
    [found] = drift.silent_endpoints({"endpoints": [endpoint]})
    assert found.startswith("http://127.0.0.1:9/health: ")


def test_versions_of_the_driver_that_differ_are_found(tmp_path: Path) -> None:
    (tmp_path / "sys/module/nvidia").mkdir(parents=True)
    (tmp_path / "sys/module/nvidia/version").write_text("595.1.1\n")
    [found] = drift.driver_versions(tmp_path)
    assert found.startswith("loaded 595.1.1, on disk ")


def test_the_result_is_written_and_read_back(tmp_path: Path) -> None:
    plan, ledger, out = tmp_path / "plan.json", tmp_path / "ledger", tmp_path / "result.json"
    plan.write_text(json.dumps({"digest": "abc", "endpoints": []}))
    ledger.write_text(json.dumps({"added": "file", "path": "/etc/gone", "sha256": digest("x")}) + "\n")
    code = drift.main(["--plan", str(plan), "--ledger", str(ledger), "--root", str(tmp_path), "--out", str(out)])
    assert code == 2
    value = parse_daily_audit(out.read_text().splitlines())
    assert value.plan == "abc"
    assert "files: /etc/gone is gone" in value.findings
    assert value.words(datetime.fromisoformat(value.at)).endswith("0 h ago")
    assert out.stat().st_mode & 0o077 == 0


def test_a_host_that_was_never_deployed_cannot_be_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert drift.main(["--plan", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 1
    assert "the plan or the ledger cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lines", [[], ["{"], ['{"findings": 1}'], ["[]"]])
def test_no_result_or_a_damaged_one_is_never(lines: list[str]) -> None:
    value = parse_daily_audit(lines)
    assert value == DailyAuditValue()
    assert value.words(datetime.now(UTC)) == "never"


def test_a_missed_day_is_said() -> None:
    value = DailyAuditValue("2026-11-20T00:00:00+00:00", "abc", ("store: x",))
    assert value.words(datetime(2026, 11, 20, 3, tzinfo=UTC)) == "1 finding 3 h ago"
    assert value.words(datetime(2026, 11, 23, 0, tzinfo=UTC)) == "1 finding 72 h ago, late"
