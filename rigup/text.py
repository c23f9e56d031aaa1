"""Sizes, durations and the progress of a download as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["duration", "progress_line", "size"]

GB = 1_000_000_000
MB = 1_000_000


def size(count: int) -> str:
    """Return a number of bytes as text: `18 MB`, `239.8 GB`."""
    return f"{count / GB:.1f} GB" if count >= GB else f"{count / MB:.0f} MB"


def duration(seconds: float) -> str:
    """Return a duration as text: `45 s`, `3 min 20 s`, `1 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def progress_line(repo: str, progress: Mapping[str, Any]) -> str:
    """Return one line about a download: its step, bytes done and in total, rate, time left, and current file.

    `progress` is what the downloader last reported: `step`, `doing`, `bytes_done`, `bytes_total` and `rate` (bytes per
    second). It is empty if the downloader has not reported yet.
    """
    done, total = int(progress.get("bytes_done", 0)), int(progress.get("bytes_total", 0))
    parts = [f"{repo}: {progress.get('step') or 'starting'}"]
    if total:
        parts.append(f"{size(done)} of {size(total)}")
    rate = int(progress.get("rate", 0))
    if rate > 0 and done < total:
        parts += [f"{size(rate)}/s", f"about {duration((total - done) / rate)} left"]
    if progress.get("doing"):
        parts.append(str(progress["doing"]))
    return ", ".join(parts)
