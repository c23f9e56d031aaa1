"""rigup-host load: what engines say of themselves, and what is told of those that say nothing or too much."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import pytest

from rigup.facts.serving import LoadValue, parse_loads
from rigup_host import load, paths, starts
from tests.unit.deploys import ActorsTime
from tests.unit.host_world import Page, program, site
from tests.unit.test_lab_sglang import place, serving
from tests.unit.test_smoke import engine
from tests.unit.waiting import HANG_S

# Lines of vLLM 0.32.0 and of SGLang 0.5.23 as their prometheus_client writes them.
VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="qwen"} 5.0
vllm:num_requests_running{engine="1",model_name="qwen"} 2.0
vllm:num_requests_waiting{engine="0",model_name="qwen"} 3.0
vllm:num_requests_waiting{engine="1",model_name="qwen"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="qwen",reason="capacity"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="qwen"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="qwen"} 0.5
vllm:prompt_tokens_total{engine="0",model_name="qwen"} 900000.0
"""
SGLANG = """# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="glm",pp_rank="0",priority="",tp_rank="0"} 4.0
sglang:num_running_reqs{model_name="glm",pp_rank="0",priority="1",tp_rank="0"} 4.0
sglang:num_running_reqs{model_name="glm",pp_rank="1",priority="",tp_rank="0"} 4.0
sglang:num_queue_reqs{model_name="glm",pp_rank="0",priority="",tp_rank="0"} 1.0
sglang:token_usage{model_name="glm",pp_rank="0",tp_rank="0"} 0.75
sglang:gen_throughput{model_name="glm",pp_rank="0",tp_rank="0"} 321.5
"""
UNKNOWN = {"tokens_per_s": None, "running": None, "waiting": None, "kv_cache": None, "last_start_s": None}


class World:
    """A host with endpoints; `tell` is what its program says."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.capsys = root, capsys

    def serve(self, url: str, name: str = "main", trial: bool = False) -> None:
        generation = "b2" if trial else "a1"
        files = self.root / f"etc/rigup/endpoints/{name}/{generation}"
        files.mkdir(parents=True)
        place = urlsplit(url)
        record = {"name": name, "address": place.hostname, "port": place.port, "ready_path": "/health"}
        (files / "endpoint.json").write_text(json.dumps(record))
        units = self.root / ("run/systemd/system" if trial else "usr/local/lib/systemd/system")
        units.mkdir(parents=True, exist_ok=True)
        (units / f"llm@{name}.service").write_text(f"[X-Rigup]\nGeneration={generation}\n")

    def tell(self) -> dict[str, Any]:
        assert load.main([]) == 0
        found: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return found


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> World:
    """One on which nobody is too slow."""
    for name in ("ENDPOINTS", "UNITS", "TRIAL_UNITS"):
        monkeypatch.setattr(paths, name, tmp_path / str(getattr(paths, name)).lstrip("/"))
    for module, name in ((load, "ANSWER_S"), (load, "WITHIN_S"), (starts, "LOOK_S")):
        monkeypatch.setattr(module, name, HANG_S)
    program(tmp_path / "tools", "journalctl", "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}/tools", prepend=os.pathsep)
    return World(tmp_path, capsys)


def metrics(text: str, health: int = 200) -> Any:
    def answer(method: str, path: str, body: bytes) -> Page:
        return Page(text.encode()) if path == "/metrics" else Page(status=health if path == "/health" else 404)

    return answer


def test_sglang_is_asked_once_and_neither_priorities_nor_stages_count_twice(world: World) -> None:
    with site(metrics(SGLANG)) as url:
        world.serve(url)
        assert world.tell() == {
            "main": {
                "health": 200,
                "tokens_per_s": 321.5,
                "running": 4,
                "waiting": 1,
                "kv_cache": 0.75,
                "last_start_s": None,
            }
        }


class Second(ActorsTime):
    """A second passes where one is waited for, and no other time."""


@pytest.fixture
def counted() -> Iterator[Any]:
    """vLLM's counter of tokens: 700 more each time."""
    asked = 0

    def answer(method: str, path: str, body: bytes) -> Page:
        nonlocal asked
        asked += path == "/metrics"
        tokens = [f'vllm:generation_tokens_total{{engine="{n}",model_name="qwen"}} {350.0 * asked}\n' for n in (0, 1)]
        return Page((VLLM + "".join(tokens)).encode())

    with patch.object(load, "time", Second()):
        yield answer


def test_a_busy_vllm_is_asked_twice_a_second_apart_and_its_replicas_are_added(counted: Any) -> None:
    with site(counted) as url:
        assert load.of_engine(url) == {"running": 7, "waiting": 3, "kv_cache": 0.5, "tokens_per_s": 700.0}


def test_a_counter_that_began_anew_has_no_rate() -> None:
    left = ["9000.0", "5.0"]

    def answer(method: str, path: str, body: bytes) -> Page:
        return Page(f"vllm:num_requests_running 1.0\nvllm:generation_tokens_total {left.pop(0)}\n".encode())

    with site(answer) as url, patch.object(load, "time", Second()):
        assert load.of_engine(url)["tokens_per_s"] is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vllm:num_requests_running 0.0\nvllm:generation_tokens_total 9.0\n", {"running": 0, "tokens_per_s": 0.0}),
        # Its last rate, which it keeps.
        ("sglang:num_running_reqs 0.0\nsglang:gen_throughput 88.0\n", {"running": 0, "tokens_per_s": 0.0}),
        ("vllm:gpu_cache_usage_perc 0.5\n", {"kv_cache": 0.5}),
        ("sglang:token_usage NaN\nsglang:num_queue_reqs +Inf\n", {}),
        ("vllm:num_requests_running many\n{}\n\xff\n", {}),
    ],
)
def test_what_an_engine_does_not_say_is_unknown(world: World, text: str, said: dict[str, Any]) -> None:
    with site(metrics(text)) as url:
        world.serve(url)
        assert world.tell() == {"main": {"health": 200, **UNKNOWN, **said}}


def test_an_engine_that_does_not_serve_yet_has_the_length_of_its_last_start(world: World) -> None:
    program(world.root / "tools", "journalctl", "echo 'ready after 312 s: qwen at http://127.0.0.1:8000'")
    with site(metrics(VLLM, health=503)) as url:
        world.serve(url)
        world.serve("http://127.0.0.1:1", "side")
        assert world.tell() == {
            "main": {"health": 503, **UNKNOWN, "last_start_s": 312},
            "side": {"health": 0, **UNKNOWN, "last_start_s": 312},
        }
    calls = sorted(line.partition(" _")[2] for line in (world.root / "tools/journalctl.calls").read_text().splitlines())
    assert calls == [
        "SYSTEMD_UNIT=llm@main.service SYSLOG_IDENTIFIER=rigup-host",
        "SYSTEMD_UNIT=llm@side.service SYSLOG_IDENTIFIER=rigup-host",
    ]


def test_what_is_on_trial_is_asked_and_not_what_it_replaces(world: World) -> None:
    with site(metrics(SGLANG)) as url:
        world.serve("http://127.0.0.1:1")
        world.serve(url, trial=True)
        assert world.tell()["main"]["running"] == 4


def test_the_stand_ins_have_the_metrics_that_are_read(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    image = place(tmp_path_factory.mktemp("image"), None)
    with engine("none") as vllm, serving(image, "--enable-metrics") as sglang, serving(image) as silent:
        for name, url in (("vllm", vllm), ("sglang", sglang), ("silent", silent)):
            world.serve(url, name)
        idle = {"health": 200, "tokens_per_s": 0.0, "running": 0, "waiting": 0, "kv_cache": 0.0, "last_start_s": None}
        assert world.tell() == {"vllm": idle, "sglang": idle, "silent": {"health": 200, **UNKNOWN}}


def test_an_engine_that_answers_without_end_keeps_nobody_waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def answer(method: str, path: str, body: bytes) -> Page:
        ended.wait()
        return Page()

    with site(answer) as url:
        world.serve(url)
        monkeypatch.setattr(load, "WITHIN_S", 0)
        assert world.tell() == {"main": {"health": 0, **UNKNOWN}}
        ended.set()


def test_what_it_prints_is_read_and_anything_else_is_refused() -> None:
    text = '{"main": {"health": 200, "tokens_per_s": 12, "running": 1, "waiting": 0, "kv_cache": 0.5}}'
    assert parse_loads([text]) == {"main": LoadValue(200, 12, 1, 0, 0.5)}
    assert parse_loads(["usage: rigup-host [-h]"]) == {}
    with pytest.raises(TypeError):
        parse_loads(['{"main": {"healthy": true}}'])
