#!/usr/bin/env python3
"""Has an engine's own parser judge a command line, without loading anything.

Runs in a throwaway container of the image that shall serve, or with the Python of its virtual environment: `judge.py
vllm ARGUMENTS`. What the engine would refuse after its start is told while another endpoint still serves.

Exit status: 0 the engine takes the arguments, or its parser was not found or cannot work here, which is said; another
one: it refuses them.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, NoReturn

# Modules move between the engines' versions; the newest place comes first.
VLLM_PARSER = ("vllm.utils.argparse_utils", "vllm.utils")
VLLM_TOOLS = ("vllm.tool_parsers", "vllm.entrypoints.openai.tool_parsers")


class Unknown(Exception):
    """What is needed is not where it is in the versions known here."""


def main(argv: list[str]) -> int:
    engine, arguments = argv[0], argv[1:]
    # What imports make lives to the end; looking for garbage in it takes a fifth of the time.
    gc.disable()
    try:
        {"vllm": vllm, "sglang": sglang}[engine](arguments)
    except Unknown as error:
        print(f"not judged: {error}")
    except SystemExit as error:
        return 2 if error.code else 0
    except Exception as error:
        # A parser that needs what a throwaway container lacks says nothing about the arguments.
        print(f"not judged: {type(error).__name__}: {error}")
    return 0


def vllm(arguments: list[str]) -> None:
    """Parse as `vllm serve` does, then look up the two parsers by name, which it does only once it serves."""
    serve = found("ServeSubcommand", "vllm.entrypoints.cli.serve")()
    parser = found("FlexibleArgumentParser", *VLLM_PARSER)(description="vLLM CLI")
    serve.subparser_init(parser.add_subparsers(required=False, dest="subparser"))
    parsed = parser.parse_args(["serve", *arguments])
    refusing(serve.validate, parsed)
    name = getattr(parsed, "tool_call_parser", None)
    if name is not None:
        known("tool call parser", name, found("ToolParserManager", *VLLM_TOOLS))
    # Both places: it moved from the frontend's options to the engine's.
    name = getattr(parsed, "reasoning_parser", None)
    if name:
        known("reasoning parser", name, found("ReasoningParserManager", "vllm.reasoning"))


def sglang(arguments: list[str]) -> None:
    """Parse as its server does; what it works out from the machine afterwards is left out."""
    server_args = found("ServerArgs", "sglang.srt.server_args")
    parser = argparse.ArgumentParser(prog="sglang")
    server_args.add_cli_args(parser)
    parser.parse_args(arguments)


def refusing(check: Callable[[Any], object], parsed: Any) -> None:
    """Run the engine's own check of what was parsed; what it raises is a refusal."""
    try:
        check(parsed)
    except (TypeError, ValueError, KeyError) as error:
        refuse(str(error))


def known(what: str, name: str, manager: Any) -> None:
    """Refuse a name that the manager does not know."""
    listed = getattr(manager, "list_registered", None)
    if listed is None:
        raise Unknown(f"{manager.__name__} lists nothing")
    names = sorted(listed())
    if name not in names:
        refuse(f"invalid {what}: {name} (chose from {{ {','.join(names)} }})")


def found(name: str, *modules: str) -> Any:
    """The first of these modules' attribute `name`. Raises Unknown."""
    for module in modules:
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise Unknown(f"no {name} in {' or '.join(modules)}")


def refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
