"""What all facts have in common.

A fact is one shell command and one pure function that parses its output. The command succeeds on a bare host too (no
Python, no curl, no driver): pyinfra drops a host whose fact command fails, even in a dry run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import cache, wraps
from typing import Any, ParamSpec, Protocol, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pyinfra.api.exceptions import FactProcessError

from rigup.text import from_json

ONE_LINE_EACH = r"2>/dev/null | tr '\n\0' '?\n'"
"""Ends a command that prints names, each followed by NUL: puts each on one line, whatever characters it has."""

_P = ParamSpec("_P")
_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


class Fact(Protocol[_T_co]):
    """A fact. Unlike pyinfra's `FactBase` it is covariant: a fact that returns a list also returns a sequence."""

    def process(self, output: list[str]) -> _T_co: ...


@dataclass(frozen=True)
class Value:
    """The value of a fact; `pyinfra INVENTORY fact rigup.facts.MODULE.FACT` prints it as JSON."""

    def to_json(self) -> dict[str, Any]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in found.items()}


def reading(process: Callable[_P, _T]) -> Callable[_P, _T]:
    """Raise only `FactProcessError` from a fact's `process`: any other error would end the run on all hosts.

    So would a value that is not of the type that `process` declares, wherever it is used: it is refused here.
    """

    @cache
    def declared() -> TypeAdapter[Any]:
        kept = ConfigDict(strict=True, revalidate_instances="always")
        return TypeAdapter(get_type_hints(process)["return"] | None, config=kept)

    @wraps(process)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            value = process(*args, **kwargs)
            declared().validate_python(value)
            return value
        except FactProcessError:
            raise
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise FactProcessError(f"unexpected output: {where}: {first['msg']}, got {first['input']!r:.80}") from error
        except Exception as error:
            raise FactProcessError(f"unexpected output: {error}") from error

    return wrapper


def texts_by_path(lines: Iterable[str]) -> dict[str, str]:
    """Return the texts of files by path, from the output of `grep -H ''`."""
    texts: dict[str, str] = {}
    for line in lines:
        path, _, text = line.partition(":")
        texts[path] = f"{texts.get(path, '')}{text}\n"
    return texts


def read_object(text: str) -> dict[str, Any]:
    """Parse a JSON object; an empty one if the file is missing or damaged, so that it is written again."""
    try:
        found = from_json(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
