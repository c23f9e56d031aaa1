"""What the smoke test sends to an endpoint, and how it recognizes a nonsensical answer."""

from __future__ import annotations

import re
import struct
import zlib
from typing import Any

PARAGRAPH = "Write one paragraph of about one hundred words about the sea, in plain English."
MAGIC = "7319-cobalt"
FILLER = "The quick brown fox jumps over the lazy dog while the gray cat sleeps in the warm sun. "
STOCK = {"A1": 7, "B2": 11, "C3": 13, "D4": 17, "E5": 19}

# Every English paragraph has some of these words; tokens drawn at random hardly ever form one.
COMMON = frozenset(("the", "a", "an", "and", "of", "to", "in", "is", "it", "that", "with", "as", "on", "for", "are"))

# So many words in a row hardly ever occur twice in a paragraph.
PHRASE = 6

TOOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "get_weather": ("The weather in a city now.", {"city": {"type": "string", "enum": ["Paris", "Oslo", "Lima"]}}),
    "get_stock": ("How many of an article are in stock.", {"article": {"type": "string", "enum": sorted(STOCK)}}),
    "get_time": ("The time in a city.", {"city": {"type": "string"}}),
    "read_file": ("The text of a file.", {"path": {"type": "string"}}),
    "list_files": ("The files in a folder.", {"path": {"type": "string"}}),
    "send_mail": ("Send a mail.", {"to": {"type": "string"}, "text": {"type": "string"}}),
}


def tool(name: str) -> dict[str, Any]:
    """Return a tool as the API describes it; every argument is required."""
    text, properties = TOOLS[name]
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": text, "parameters": parameters}}


def why_nonsense(text: str) -> str:
    """Return why a text cannot be an English paragraph; empty for one that may be."""
    words = re.findall(r"[a-z']+", text.lower())
    if not words:
        return "no words"
    if found := re.search(r"<\|[a-z_]+\|>", text):
        return f"it contains the special token {found[0]}"
    if found := re.search(r"(\S)\1{9,}", text):
        return f"{found[0][:3]} repeated"
    odd = sum(char == "\N{REPLACEMENT CHARACTER}" or (ord(char) < 32 and not char.isspace()) for char in text)
    if odd > 2:
        return f"{odd} characters that do not occur in text"
    common = sum(word in COMMON for word in words) / len(words)
    if len(words) >= 10 and common < 0.12:
        return f"only {common:.0%} common words"
    if len(words) >= 30 and len(set(words)) / len(words) < 0.2:
        return "the same words repeated"
    phrases = [tuple(words[at : at + PHRASE]) for at in range(len(words) - PHRASE + 1)]
    if len(phrases) > PHRASE and len(set(phrases)) / len(phrases) < 0.7:
        return "the same phrases repeated"
    return ""


def red_square(side: int = 64) -> bytes:
    """Return a red square as a PNG; `side` in pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + b"\xff\0\0" * side
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * side)) + chunk(b"IEND", b"")
    )
