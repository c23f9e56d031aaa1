"""What all facts here have in common: how a reading that makes no sense is reported.

A fact is one shell command and one pure function that parses what it prints. The command ends truthy on a bare host
(no Python, no curl, no driver): pyinfra drops a host whose fact command fails, even in a dry run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from pyinfra.api.exceptions import FactProcessError

__all__ = ["Value", "read_object", "reading"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Value:
    """What a fact returns; `pyinfra INVENTORY fact rigup.facts.MODULE.FACT` prints it as JSON."""

    def to_json(self) -> dict[str, Any]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in found.items()}


def reading(process: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let only `FactProcessError` out of a fact's `process`: pyinfra ends the run of all hosts at anything else."""

    @wraps(process)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return process(*args, **kwargs)
        except FactProcessError:
            raise
        except Exception as error:
            raise FactProcessError(f"unexpected output: {error}") from error

    return wrapper


def read_object(text: str) -> dict[str, Any]:
    """A JSON object; an empty one where the file is missing or damaged: it says nothing, and is made again."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
