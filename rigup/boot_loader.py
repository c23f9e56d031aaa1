"""What a host's boot loader is told, and what the kernel was told by it: parsers without side effects."""

from __future__ import annotations


def kernel_arguments(line: str) -> tuple[str, ...]:
    """Return the kernel's arguments in a command line; what follows the word `--` is for init (bootparam(7))."""
    words = line.split()
    return tuple(words[: words.index("--")] if "--" in words else words)
