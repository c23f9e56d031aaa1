"""The statistics of measurements, on literal records: percentiles, figures, intervals, comparison, time left."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rigup.errors import RigupError
from rigup.measure import compare, evidence, records, schedule
from rigup.measure.evidence import Evidence
from rigup.measure.figures import LevelFigures, Targets, ToolCalls, level_figures, tool_calls
from rigup.measure.programs import bench_argv, tool_calls_argv
from rigup.measure.records import Loop, Reader, Record, Repeat, Request, Sample
from rigup.measure.schedule import Level, levels, most_users, seconds_left
from rigup.measure.statistics import Spread, percentile, spread, wilson
from rigup_host.bench import workloads
from tests.unit.sample import plan

TARGETS = Targets(ttft=0.5, tpot=0.05)


@pytest.mark.parametrize(
    ("values", "percent", "found"),
    [
        ([], 50, None),
        ([7.0], 1, 7.0),
        ([7.0], 99, 7.0),
        # The example of the nearest rank in Wikipedia's article about percentiles.
        ([15, 20, 35, 40, 50], 5, 15),
        ([15, 20, 35, 40, 50], 30, 20),
        ([15, 20, 35, 40, 50], 40, 20),
        ([50, 15, 40, 20, 35], 50, 35),
        ([15, 20, 35, 40, 50], 100, 50),
        (list(range(1, 101)), 7, 7),
        (list(range(1, 101)), 95, 95),
        (list(range(1, 101)), 99, 99),
        (list(range(1, 25)), 99, 24),
    ],
)
def test_a_percentile_is_the_nearest_rank(values: list[float], percent: float, found: float | None) -> None:
    assert percentile(values, percent) == found


def test_a_spread_is_the_extremes_and_the_middle() -> None:
    assert spread([]) is None
    assert spread([3.0, 1.0, 2.0]) == Spread(min=1, median=2, max=3)
    assert spread([4.0, 1.0, 2.0, 3.0]) == Spread(min=1, median=2.5, max=4)


@pytest.mark.parametrize(
    ("successes", "tries", "low", "high"),
    [
        (0, 0, 0.0, 1.0),
        # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilsons_interval(successes: int, tries: int, low: float, high: float) -> None:
    assert wilson(successes, tries) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def request(began: float, first: float, last: float, tokens: int, repeat: int = 1, **more: Any) -> Request:
    return Request(workload="chat", concurrency=2, repeat=repeat, began=began, first=first, last=last,
                   ended=last, prompt_tokens=20, tokens=tokens, **more)  # fmt: skip


def failure(error: str, repeat: int = 1) -> Request:
    return Request(workload="chat", concurrency=2, repeat=repeat, began=10.0, first=None, last=None, ended=11.0,
                   prompt_tokens=None, tokens=None, error=error)  # fmt: skip


def repeat(number: int, began: float, ended: float, **more: Any) -> Repeat:
    return Repeat(workload="chat", concurrency=2, repeat=number, began=began, ended=ended, **more)


MEASURED: list[Record] = [
    failure("status 500", repeat=0),
    request(0.0, 1.0, 9.0, 900, repeat=0),
    repeat(0, 0.0, 10.0, drafted=999.0, accepted=0.0),
    Sample(at=9.0, watts=9000.0, kv_cache=0.99),
    # 0.25 s to the first token, then 100 tokens in 2 s: 20 ms each.
    request(10.0, 10.25, 12.25, 101),
    # 0.75 s, too late; 40 ms each.
    request(10.0, 10.75, 14.75, 101),
    # One token: it has no time for a further one.
    request(12.25, 12.5, 12.5, 1),
    failure("timeout"),
    Sample(at=11.0, watts=500.0, kv_cache=0.10),
    Sample(at=12.0, watts=None, kv_cache=None),
    Sample(at=13.0, watts=700.0, kv_cache=0.30),
    Sample(at=14.0, watts=600.0, kv_cache=0.20),
    repeat(1, 10.0, 15.0, drafted=200.0, accepted=150.0),
    Sample(at=15.5, watts=9000.0, kv_cache=0.99),
    # Was not repeated to its end.
    request(16.0, 16.5, 17.0, 50, repeat=2),
]


def test_the_figures_of_a_level() -> None:
    (level,) = level_figures(MEASURED, TARGETS)
    assert (level.workload, level.concurrency, level.repeats, level.requests) == ("chat", 2, 1, 4)
    assert level.failed == {"status 500": 1, "timeout": 1}
    found = {name: each.median if each else None for name, each in level.figures.items()}
    assert found == {
        "tok_s": pytest.approx(203 / 5),
        "user_tok_s": pytest.approx(50),
        # Two of four met both targets, within 5 s.
        "goodput": pytest.approx(0.4),
        "met": 0.5,
        "ttft_p50": 0.25,
        "ttft_p95": 0.75,
        "ttft_p99": 0.75,
        "tpot_p50": pytest.approx(0.02),
        "tpot_p95": pytest.approx(0.04),
        "tpot_p99": pytest.approx(0.04),
        "e2e_p50": 2.25,
        "e2e_p95": 4.75,
        "e2e_p99": 4.75,
        "accepted": 0.75,
        "kv_cache": 0.30,
        "watts": pytest.approx(600),
        # 600 W for 5 s, 203 tokens.
        "joules_per_token": pytest.approx(600 * 5 / 203),
    }


def test_a_figure_spreads_over_the_repeats_and_what_is_not_known_is_not_there() -> None:
    found = [
        each
        for number, tokens in ((1, 100), (2, 300), (3, 200))
        for each in (
            request(10.0 * number, 10.0 * number + 1, 10.0 * number + 2, tokens, number),
            repeat(number, 10.0 * number, 10.0 * number + 5),
        )
    ]
    (level,) = level_figures(found, TARGETS)
    assert (level.repeats, level.requests) == (3, 3)
    assert level.figures["tok_s"] == Spread(min=20, median=40, max=60)
    assert level.figures["goodput"] == Spread(min=0, median=0, max=0)
    assert [level.figures[name] for name in ("watts", "joules_per_token", "accepted", "kv_cache")] == [None] * 4


def test_a_level_without_any_answer_has_failures_and_no_figures() -> None:
    (level,) = level_figures([failure("no connection", 0), failure("no connection", 0), repeat(0, 0, 1)], TARGETS)
    assert (level.repeats, level.requests, level.failed) == (0, 0, {"no connection": 2})
    assert set(level.figures.values()) == {None}


def test_tool_calls_are_shares_of_plain_and_of_streamed_tries() -> None:
    plain = [Loop(number=number, stream=False) for number in range(10)]
    streamed = [
        Loop(number=number, stream=True, error="broken arguments" if number % 2 else "") for number in range(10)
    ]
    first, second = tool_calls([*plain, *streamed])
    assert (first.stream, first.tries, first.right, round(first.low, 3), round(first.high, 3)) == (
        False,
        10,
        10,
        0.722,
        1,
    )
    assert (second.stream, second.right, second.wrong) == (True, 5, {"broken arguments": 5})
    assert tool_calls(plain[:0]) == []


# Records of a host


def read(*lines: bytes) -> list[Record]:
    return list(Reader("rig1").read(b"".join(lines)))


LINE = b'{"kind": "sample", "at": 1, "watts": null, "kv_cache": 0.5}\n'


def test_records_may_arrive_in_pieces() -> None:
    reader = Reader("rig1")
    assert [list(reader.read(bytes([each]))) for each in LINE][-1] == [Sample(at=1, watts=None, kv_cache=0.5)]
    assert read(LINE, LINE[:-1]) == [Sample(at=1, kv_cache=0.5)]


OK = json.loads(request(1.0, 2.0, 3.0, 7).model_dump_json())


@pytest.mark.parametrize(
    "line",
    [
        b"Traceback (most recent call last):",
        b"",
        b"\xff\xfe",
        b"[" * 5000,
        b'{"kind": "sample", "at": NaN}',
        b'{"kind": "sample", "at": 1e400}',
        b'{"kind": "sample", "at": -1}',
        b'{"kind": "other"}',
        b'{"kind": "sample", "at": 1, "more": 2}',
        json.dumps({**OK, "tokens": "7"}).encode(),
        json.dumps({**OK, "tokens": None}).encode(),
        json.dumps({**OK, "tokens": 0}).encode(),
        json.dumps({**OK, "first": 3.5}).encode(),
        json.dumps({**OK, "began": 2.5}).encode(),
        json.dumps({**OK, "workload": "x" * 3000}).encode(),
    ],
)
def test_what_is_not_a_record_is_refused(line: bytes) -> None:
    with pytest.raises(RigupError, match=r"^rig1: the measurement printed what is not a record"):
        read(line + b"\n")


def test_a_host_that_prints_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RigupError, match="more than 65536 bytes in a line"):
        read(b"x" * 65537)
    monkeypatch.setattr(records, "MAX_BYTES", 1000)
    with pytest.raises(RigupError, match="more than 1000 bytes"):
        read(LINE * 20)


# Comparison


def result(figures: Sequence[dict[str, Spread | None]], **changes: Any) -> Evidence:
    made = [
        LevelFigures(workload="chat", concurrency=2**number, repeats=3, requests=24, failed={}, figures=each)
        for number, each in enumerate(figures)
    ]
    values: dict[str, Any] = {
        "method": schedule.METHOD, "rigup": "0.2.0", "at": "2026-11-23T20:56:02+00:00", "command": "rigup bench",
        "complete": True, "host": "rig1", "endpoint": "main", "engine": "vllm", "recipe": "r", "generation": "d",
        "image": None, "image_tag": None, "packages": [], "repo": "o/n", "revision": "c", "driver": None, "cards": [],
        "lock": None, "targets": TARGETS, "levels": made, "tool_calls": [], "records": [],
    }  # fmt: skip
    return Evidence(**{**values, **changes})


def noisy(chosen: random.Random, speed: float = 1.0) -> dict[str, Spread | None]:
    """Three repeats of an engine: 1 % of noise, and 3 % in the latencies."""

    def three(middle: float, noise: float) -> Spread | None:
        return spread([middle * chosen.gauss(1, noise) for _ in range(3)])

    return {
        "tok_s": three(500 * speed, 0.01),
        "user_tok_s": three(60 * speed, 0.01),
        "ttft_p50": three(0.3 / speed, 0.03),
        "tpot_p50": three(0.016 / speed, 0.01),
        "e2e_p50": three(3.5 / speed, 0.01),
        "e2e_p95": three(4.0 / speed, 0.03),
        "joules_per_token": three(1.2 / speed, 0.01),
    }


def test_equal_engines_show_no_difference_in_twenty_pairs() -> None:
    chosen = random.Random(20)
    for _ in range(20):
        assert compare.compare(result([noisy(chosen)]), result([noisy(chosen)])) == []


def test_ten_percent_slower_is_found_each_time_and_so_is_ten_percent_faster() -> None:
    chosen = random.Random(20)
    for _ in range(20):
        fast, slow = result([noisy(chosen)]), result([noisy(chosen, 0.9)])
        worse = {each.figure: each for each in compare.compare(fast, slow)}
        assert {"tok_s", "user_tok_s", "tpot_p50", "e2e_p50"} <= set(worse)
        assert all(each.worse for each in worse.values())
        assert -0.13 < worse["tok_s"].change < -0.07
        better = compare.compare(slow, fast)
        assert {each.figure for each in better} == set(worse) and not any(each.worse for each in better)


SAME = Spread(min=100, median=100, max=100)


@pytest.mark.parametrize(
    ("after", "found"),
    [
        (Spread(min=94, median=94, max=94), True),
        # Below the smallest difference that is claimed.
        (Spread(min=96, median=96, max=96), False),
        # Within the spread.
        (Spread(min=82, median=90, max=98), False),
        (Spread(min=89, median=90, max=98), True),
    ],
)
def test_a_difference_is_beyond_the_spread_and_not_too_small(after: Spread, found: bool) -> None:
    assert compare.differs(SAME, after) == compare.differs(after, SAME) == found


def test_levels_that_only_one_has_or_that_were_interrupted_are_not_compared() -> None:
    low, high = Spread(min=50, median=50, max=50), SAME
    before = result([{"tok_s": high}, {"tok_s": high}, {"tok_s": None}])
    after = result([{"tok_s": low}, {"tok_s": low}, {"tok_s": low}, {"tok_s": low}])
    short = after.levels[1].model_copy(update={"repeats": 2})
    after = after.model_copy(update={"levels": [after.levels[0], short, *after.levels[2:]]})
    assert [each.what for each in compare.compare(before, after)] == ["chat, 1 at a time"]


def test_tool_calls_differ_if_their_intervals_do_not_overlap() -> None:
    def calls(right: int) -> list[ToolCalls]:
        low, high = wilson(right, 20)
        return [ToolCalls(stream=True, tries=20, right=right, low=low, high=high, wrong={})]

    good, fair, bad = (result([], tool_calls=calls(right)) for right in (20, 17, 8))
    assert compare.compare(good, fair) == []
    (change,) = compare.compare(good, bad)
    assert (change.what, change.before, change.after, change.worse) == ("tool calls, streamed", 1.0, 0.4, True)
    assert not compare.compare(bad, good)[0].worse


def test_results_of_different_methods_are_not_compared() -> None:
    with pytest.raises(RigupError, match="was measured by method 99"):
        compare.compare(result([], method=99), result([]))


# What is measured, and how long it takes


def test_the_levels_double_up_to_what_the_engine_works_on_at_a_time() -> None:
    assert levels(["chat", "long"], 24) == [
        Level("chat", 1, 8), Level("chat", 2, 8), Level("chat", 4, 16), Level("chat", 8, 32), Level("chat", 16, 64),
        Level("chat", 24, 96), Level("long", 1, 8), Level("long", 2, 8), Level("long", 4, 16),
    ]  # fmt: skip
    assert levels(["chat"], 1) == [Level("chat", 1, 8)]
    endpoint = plan().endpoint("main")
    for options, most in (
        ((), 64), (("--max-num-seqs=16",), 16), (("--max-num-seqs", "8"), 8), (("--max-num-seqs=512",), 64),
        (("--max-num-seqs=4", "--max-num-seqs=2"), 2), (("--max-num-seqs=auto",), 64),
    ):  # fmt: skip
        assert most_users(endpoint.model_copy(update={"options": options}), 64) == most


def test_the_host_knows_the_workloads() -> None:
    assert list(schedule.WORKLOADS) == list(workloads.WORKLOADS)
    endpoint = plan().endpoint("main").model_copy(update={"gpus": (2, 3)})
    assert "--gpus=2,3" in bench_argv(endpoint, [])
    assert '--schedule=[["chat", 4, 16]]' in bench_argv(endpoint, [Level("chat", 4, 16)])
    python, *_, program = tool_calls_argv(endpoint, 20)[:4]
    assert (python, program) == ("/usr/local/lib/rigup/client/bin/python", "tool-calls")


def test_the_time_left_is_that_of_the_requests_left() -> None:
    todo = [Level("chat", 2, 8), Level("chat", 4, 16), Level("long", 1, 8)]
    assert seconds_left(todo, [failure("timeout")]) is None
    # 2 to warm up and 24; 4 and 48; 1 and 24. Each takes 3 s, and one is done.
    assert seconds_left(todo, [request(0, 1, 3, 9)]) == pytest.approx((26 - 1) * 3 / 2 + 52 * 3 / 4 + 25 * 3)
    # A failed one is done as well. Long prompts are taken to be like the last request.
    seen = [request(0, 1, 3, 9), failure("timeout"), request(0, 1, 5, 9)]
    assert seconds_left(todo, seen) == pytest.approx((26 - 3) * 4 / 2 + 52 * 4 / 4 + 25 * 5)


# Evidence


def test_evidence_is_written_and_read_again_and_anything_else_is_refused(tmp_path: Path) -> None:
    made = result([noisy(random.Random(1))], records=[request(1.0, 2.0, 3.0, 7), repeat(1, 0.5, 4.0)])
    path = evidence.path_of(made, tmp_path / "lab.yaml")
    assert path == tmp_path / "evidence/rig1-main-2026-11-23T20-56-02.json"
    evidence.write(made, path)
    assert evidence.read(path) == made
    for text in ("", "[]", "{}", json.dumps({**json.loads(path.read_text()), "more": 1})):
        path.write_text(text)
        with pytest.raises(RigupError, match="is not a result of this rigup"):
            evidence.read(path)
    with pytest.raises(RigupError, match="cannot be read: No such file"):
        evidence.read(tmp_path / "none.json")
    with pytest.raises(RigupError, match="cannot be written"):
        evidence.write(made, tmp_path / "lab.yaml/evidence/x.json")
