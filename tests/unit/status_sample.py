"""Hosts as `rigup status` knows them, one field other than usual where a test says so."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from rigup.cli._status_data import Endpoint, HostStatus
from rigup.facts.nvidia import GpuUseValue


@contextmanager
def in_zone(name: str) -> Iterator[None]:
    """Be in a time zone."""
    with patch.dict(os.environ, TZ=name):
        time.tzset()
        yield
    time.tzset()


AT = "2026-11-24T08:00:00+00:00"


def endpoint(**other: Any) -> Endpoint:
    """An endpoint that serves and is busy."""
    usual: dict[str, Any] = {
        "name": "main",
        "recipe": "vllm-nvfp4-cu130",
        "model": "Qwen3.5",
        "gpus": "all",
        "url": "http://127.0.0.1:8000",
        "public_url": "http://192.0.2.11:8000",
        "state": "serving",
        "on_trial": False,
        "health": 200,
        "since": "2026-11-23T20:56:03+00:00",
        "restarts": 0,
        "verified": "2026-11-23T20:57:00+00:00",
        "tokens_per_s": 412.6,
        "running": 7,
        "waiting": 0,
        "kv_cache": 0.31,
    }
    return Endpoint(**usual | other)


def gpu(index: int, **other: Any) -> GpuUseValue:
    """A card that works."""
    usual: dict[str, Any] = {
        "used": 92160,
        "total": 97887,
        "busy": 97,
        "temperature": 71,
        "watts": 487.2,
        "watt_limit": 600.0,
        "address": f"0000:{1 + 32 * index:02x}:00.0",
        "name": "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
    }
    return GpuUseValue(index, **usual | other)


def host(*endpoints: Endpoint, **other: Any) -> HostStatus:
    return HostStatus(AT, endpoints=endpoints, **other)
