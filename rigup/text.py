"""Sizes, durations, progress and text of others as text to print; JSON of others. Pure."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

# Categories of Unicode that a terminal obeys instead of showing: control characters (C0, C1), formats (bidirectional
# overrides, invisible characters), surrogates, and separators of lines and paragraphs.
_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# The colors that pyinfra uses: no black, no concealed text.
_COLOR = re.compile(r"\x1b\[(?:[01]|3[1-7])?(?:;(?:[01]|3[1-7]))*m")


def printable(text: str, *, colors: bool = False) -> str:
    """Return text that may come from a host so that no terminal obeys it: `\\x1b` instead of an escape character.

    Line feeds and tabs stay; with `colors`, so do sequences that set a foreground color.
    """
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    if colors:
        kept = _COLOR.findall(text)
        plain = [printable(part) for part in _COLOR.split(text)]
        return "".join(part for pair in zip(plain, [*kept, ""], strict=True) for part in pair)
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _OBEYED and character not in "\n\t"
        else character
        for character in text
    )


def from_json(text: str | bytes) -> Any:
    """Parse JSON that may come from others. Raises json.JSONDecodeError, whatever is wrong with it.

    `json.loads` has other errors for nesting that is too deep, numbers that are too long, and bytes that are no text.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(str(error), "", 0) from error


def size(count: float, *, binary: bool = False) -> str:
    """Format a number of bytes: `18 MB`, `239.8 GB`; with `binary`, as memory and disks are measured, `47.8 GiB`."""
    # A host may claim any number, and beyond this there is no float.
    count = max(-(10**30), min(count, 10**30))
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
