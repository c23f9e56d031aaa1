"""SGLang's command line: options, types and choices from the image's `known.json`."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Aliases of an option.
ALIASES = {"--tensor-parallel-size": "--tp-size", "--tp": "--tp-size", "--model": "--model-path"}
ALIASES |= {"--pipeline-parallel-size": "--pp-size", "--data-parallel-size": "--dp-size", "--dp": "--dp-size"}


def number(value: str) -> int:
    """Parse `8192`, `8k` or `8Ki` as SGLang's `human_readable_int` does."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T)", value.strip())
    if match is None:
        return int(value)
    step = 1024 if match[2].endswith("i") else 1000
    return int(float(match[1]) * step ** (1 + "kmgt".index(match[2][0].lower())))


READERS: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "json": json.loads, "size": number}


def parser(options: Mapping[str, str | Sequence[str]]) -> argparse.ArgumentParser:
    """Return the parser of `python3 -m sglang.launch_server`, which like SGLang's prints argparse's messages."""
    made = argparse.ArgumentParser(prog="sglang serve")
    for name, kind in options.items():
        # argparse adds `-h`.
        if name in ("-h", "--help") or not name.startswith("-"):
            continue
        where = ALIASES.get(name, name).lstrip("-").replace("-", "_")
        if kind == "flag":
            made.add_argument(name, action="store_true", dest=where)
        elif isinstance(kind, str):
            made.add_argument(name, type=READERS.get(kind, str), dest=where)
        else:
            made.add_argument(name, choices=list(kind), dest=where)
    return made


def with_config(argv: Sequence[str]) -> list[str]:
    """Return the arguments with those of a `--config FILE` first. Like SGLang, ignore `--config=FILE`."""
    words = list(argv)
    if "--config" not in words:
        return words
    place = words.index("--config")
    lines = Path(words[place + 1]).read_text().splitlines()
    pairs = [line.partition(":")[::2] for line in lines if line.strip()]
    found = [word for key, value in pairs for word in (f"--{key.strip()}", value.strip().strip("\"'"))]
    return [*found, *words[:place], *words[place + 2 :]]


def parse(argv: Sequence[str], options: Mapping[str, str | Sequence[str]]) -> argparse.Namespace:
    """Parse the arguments; exit with 2 and argparse's message if SGLang would refuse them."""
    made = parser(options)
    found = made.parse_args(with_config(argv))
    if found.model_path is None:
        made.error("the following arguments are required: --model-path/--model")
    return found


def shown(found: argparse.Namespace) -> dict[str, Any]:
    """Return the given options for the log, secrets masked."""
    given = {name: value for name, value in vars(found).items() if value not in (None, False)}
    return {name: "***" if "key" in name else value for name, value in sorted(given.items())}
