"""Facts by name and arguments: what may be remembered of a run, since a remembered shell command would be executed.

Only facts of rigup and pyinfra are named. rigup's quote their arguments; pyinfra's do not always, so each is
checked.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from inspect import getcallargs
from typing import Any

from pyinfra.api.command import StringCommand
from pyinfra.api.facts import _MISSING_COMMAND_MARKER, FactBase
from pyinfra.facts import server

NOT_READ_AHEAD = (server.Command,)
"""Facts that run whatever they are given: reading them ahead could change the host."""

_MODULE = re.compile(r"(rigup|pyinfra)\.facts\.[a-z_.]+")
# No character that means something to a shell.
_PLAIN = re.compile(r"[\w./:@%+=,-]+", re.ASCII)


def call_of(fact: type[FactBase[Any]], arguments: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a fact's name and arguments as JSON can hold them; None for a fact that is not remembered."""
    named = {name: value for name, value in named.items() if not name.startswith("_")}
    try:
        bound = getcallargs(fact().command, *arguments, **named) if callable(fact.command) else {}
        bound.pop("self", None)
        call = {"fact": f"{fact.__module__}.{fact.__qualname__}", "arguments": bound}
        return dict(json.loads(json.dumps(call, default=_listed)))
    except (TypeError, ValueError):
        return None


def _listed(value: Any) -> list[Any]:
    # Not a generator, which the fact could then not read.
    if isinstance(value, Collection):
        return list(value)
    raise TypeError(type(value))


def command_of(call: Mapping[str, Any]) -> str:
    """Return the command of a fact. Raises ValueError for what `call_of` of a run of rigup does not return."""
    try:
        return _command(call)
    except Exception as error:
        raise ValueError(f"{call!r:.100} names no fact") from error


def _command(call: Mapping[str, Any]) -> str:
    module, _, name = call["fact"].rpartition(".")
    if not _MODULE.fullmatch(module):
        raise ValueError(module)
    fact, arguments = getattr(import_module(module), name), call["arguments"]
    if not (isinstance(fact, type) and issubclass(fact, FactBase)) or issubclass(fact, NOT_READ_AHEAD):
        raise ValueError(name)
    if any(word.startswith("-") for word in _words(arguments)):
        # An option: `find -delete` needs no shell.
        raise ValueError("option")
    if not module.startswith("rigup.") and not _is_quoted(fact, arguments):
        raise ValueError("arguments")
    return _text(fact, arguments)


def _text(fact: type[FactBase[Any]], arguments: Mapping[str, Any]) -> str:
    def made(attribute: Any) -> Any:
        return attribute(**arguments) if callable(attribute) else attribute

    command = made(fact().command)
    if needs := made(fact().requires_command):
        # As pyinfra 3.10 makes it; a difference would cost a round trip.
        missing = f"'{_MISSING_COMMAND_MARKER}';"
        guard = ("if", "command", "-v", needs, ">/dev/null", "2>&1;", "then", "(")
        command = StringCommand(*guard, command, ");", "else", "echo", missing, "fi")
    return str(command.get_raw_value() if isinstance(command, StringCommand) else command)


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _words([*value, *value.values()])
    elif isinstance(value, list):
        for each in value:
            yield from _words(each)


def _is_quoted(fact: type[FactBase[Any]], arguments: Mapping[str, Any]) -> bool:
    """Return whether every argument that could mean something to a shell is quoted wherever the command has it."""
    words: dict[str, str] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, str) and not _PLAIN.fullmatch(value):
            words[token := f"word{len(words)}of{len(arguments)}"] = value
            return token
        if isinstance(value, Mapping):
            return {plain(key): plain(each) for key, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, list) else value

    text = _text(fact, plain(arguments))
    for token, value in words.items():
        text = text.replace(token, shlex.quote(value))
    return text == _text(fact, arguments)
