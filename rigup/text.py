"""Sizes, durations and download progress as text. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["duration", "progress_line", "size"]


def size(count: float, *, binary: bool = False) -> str:
    """Format a number of bytes: `18 MB`, `239.8 GB`; with `binary`, as memory and disks are measured, `47.8 GiB`."""
    base, unit = (1024, "iB") if binary else (1000, "B")
    return f"{count / base**3:.1f} G{unit}" if abs(count) >= base**3 else f"{count / base**2:.0f} M{unit}"


def duration(seconds: float) -> str:
    """Format a length of time: `45 s`, `3 min 20 s`, `1 h 05 min`."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02} min"


def progress_line(repo: str, progress: Mapping[str, Any]) -> str:
    """Return a line with the downloaded and total bytes, the rate, the time left, and what the download is doing.

    `progress` is what the download reported last: `step`, `doing`, `bytes_done`, `bytes_total` and `rate` (bytes per
    second). It is empty before the first report.
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
