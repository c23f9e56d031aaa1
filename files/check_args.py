"""Check a command line with an engine's own parser, without loading anything.

Runs in a throwaway container of the image that is to serve, or with the Python of its virtual environment:
`check_args.py vllm ARGUMENT...`. Arguments that the engine would refuse at its start are reported while another
endpoint still serves. This file is mounted into images on its own: it imports only the standard library and the engine.

Exit status: 0 the engine accepts the arguments, or its parser was not found or cannot work here, which is reported;
another status: it refuses them.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, NoReturn

# Modules move between versions of the engines; the newest place is first.
VLLM_PARSER = ("vllm.utils.argparse_utils", "vllm.utils")
VLLM_TOOLS = ("vllm.tool_parsers", "vllm.entrypoints.openai.tool_parsers")


class Unknown(Exception):
    """The engine is not built like the versions known here."""


def main(argv: list[str]) -> int:
    """Check the arguments; return the exit status."""
    engine, arguments = argv[0], argv[1:]
    # Imported objects live to the end; collecting garbage among them takes a fifth of the time.
    gc.disable()
    try:
        {"vllm": vllm, "sglang": sglang}[engine](arguments)
    except Unknown as error:
        print(f"not checked: {error}")
    except SystemExit as error:
        return 2 if error.code else 0
    except Exception as error:
        # The parser needs something that a throwaway container lacks: that says nothing about the arguments.
        print(f"not checked: {type(error).__name__}: {error}")
    return 0


def vllm(arguments: list[str]) -> None:
    """Parse as `vllm serve` does, then look up the names of its two parsers, which it does only when it serves."""
    serve = found("ServeSubcommand", "vllm.entrypoints.cli.serve")()
    parser = found("FlexibleArgumentParser", *VLLM_PARSER)(description="vLLM CLI")
    serve.subparser_init(parser.add_subparsers(required=False, dest="subparser"))
    parsed = parser.parse_args(["serve", *arguments])
    refusing(serve.validate, parsed)
    name = getattr(parsed, "tool_call_parser", None)
    if name is not None:
        registered("tool call parser", name, found("ToolParserManager", *VLLM_TOOLS))
    # It moved from the options of the frontend to those of the engine: both names are parsed.
    name = getattr(parsed, "reasoning_parser", None)
    if name:
        registered("reasoning parser", name, found("ReasoningParserManager", "vllm.reasoning"))


def sglang(arguments: list[str]) -> None:
    """Parse as its server does, without what it derives from the machine afterwards."""
    server_args = found("ServerArgs", "sglang.srt.server_args")
    parser = argparse.ArgumentParser(prog="sglang")
    server_args.add_cli_args(parser)
    parser.parse_args(arguments)


def refusing(check: Callable[[Any], object], parsed: Any) -> None:
    """Run the engine's own check of the parsed arguments; refuse them if it raises an error."""
    try:
        check(parsed)
    except (TypeError, ValueError, KeyError) as error:
        refuse(str(error))


def registered(what: str, name: str, manager: Any) -> None:
    """Refuse a name that the manager does not list."""
    listed = getattr(manager, "list_registered", None)
    if listed is None:
        raise Unknown(f"{manager.__name__} lists nothing")
    names = sorted(listed())
    if name not in names:
        refuse(f"invalid {what}: {name} (chose from {{ {','.join(names)} }})")


def found(name: str, *modules: str) -> Any:
    """Return the attribute `name` of the first of these modules that has it. Raise Unknown if none has."""
    for module in modules:
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise Unknown(f"no {name} in {' or '.join(modules)}")


def refuse(message: str) -> NoReturn:
    """Report that the arguments are refused, and exit."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
