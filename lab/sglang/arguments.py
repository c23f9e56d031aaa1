"""SGLang's command line: its options, their types and choices as the image's `known.json` has them."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Several names of one option.
ALIASES = {"--tensor-parallel-size": "--tp-size", "--tp": "--tp-size", "--model": "--model-path"}
ALIASES |= {"--pipeline-parallel-size": "--pp-size", "--data-parallel-size": "--dp-size", "--dp": "--dp-size"}


def number(value: str) -> int:
    """`8192`, `8k` or `8Ki`, as `human_readable_int` of SGLang reads it."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T)", value.strip())
    if match is None:
        return int(value)
    step = 1024 if match[2].endswith("i") else 1000
    return int(float(match[1]) * step ** (1 + "kmgt".index(match[2][0].lower())))


READERS = {"int": int, "float": float, "json": json.loads, "size": number}


def parser(options: Mapping[str, str | Sequence[str]]) -> argparse.ArgumentParser:
    """The parser of `python3 -m sglang.launch_server`, with argparse's own messages, as SGLang's are."""
    made = argparse.ArgumentParser(prog="sglang serve")
    for name, kind in options.items():
        # `-h` is argparse's own.
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
    """The arguments with those of a `--config FILE` before them. `--config=FILE` is not seen, as in SGLang."""
    words = list(argv)
    if "--config" not in words:
        return words
    place = words.index("--config")
    lines = Path(words[place + 1]).read_text().splitlines()
    pairs = [line.partition(":")[::2] for line in lines if line.strip()]
    found = [word for key, value in pairs for word in (f"--{key.strip()}", value.strip().strip("\"'"))]
    return [*found, *words[:place], *words[place + 2 :]]


def parse(argv: Sequence[str], options: Mapping[str, str | Sequence[str]]) -> argparse.Namespace:
    """Exits 2 with argparse's message for what SGLang would not take."""
    made = parser(options)
    found = made.parse_args(with_config(argv))
    if found.model_path is None:
        made.error("the following arguments are required: --model-path/--model")
    return found


def shown(found: argparse.Namespace) -> dict[str, Any]:
    """What was given, for the log: no secret among it."""
    given = {name: value for name, value in vars(found).items() if value not in (None, False)}
    return {name: "***" if "key" in name else value for name, value in sorted(given.items())}
