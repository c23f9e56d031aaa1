"""YAML files that people write, read so that every error names file, line and key.

PyYAML's node tree has the lines, pydantic's errors have the keys; this module joins the two. Inventory, catalog and
lock use it.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from rigup.errors import Finding, InputError, suggestion

__all__ = ["Document", "Loc", "complaint", "describe_error", "dotted", "findings_of", "read_document"]

Loc = tuple[str | int, ...]

# Ten times faster, if PyYAML was built with libyaml; every run reads the whole catalog.
_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def complaint(message: str, remedy: str = "") -> PydanticCustomError:
    """Return an error for a pydantic validator to raise; `describe_error` returns its message and remedy."""
    return PydanticCustomError("rigup", "{message}", {"message": message, "remedy": remedy})


@dataclass(frozen=True)
class Document:
    """The content of a YAML file (`data`) and the line of each of its keys."""

    path: Path
    data: Any
    lines: Mapping[Loc, int] = field(repr=False)

    def line(self, loc: Loc) -> int | None:
        """Return the line of `loc`, or of its nearest parent that is in the file."""
        for length in range(len(loc), -1, -1):
            if (found := self.lines.get(loc[:length])) is not None:
                return found
        return None

    def finding(self, loc: Loc, message: str, remedy: str = "") -> Finding:
        """Return a finding about a key of this file."""
        return Finding(str(self.path), self.line(loc), dotted(loc), message, remedy)


def dotted(loc: Loc) -> str:
    """Return `("hosts", "rig1", "gpus", 0)` as `hosts.rig1.gpus[0]`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def read_document(path: Path) -> Document:
    """Read one YAML file.

    Raises InputError if the file is missing, is not YAML, or sets a key twice (which YAML parsers accept).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError([Finding(str(path), None, "", f"cannot be read: {reason}")]) from error
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[Loc, int] = {}
        findings: list[Finding] = []
        if node is not None:
            _walk(node, (), path, lines, findings)
        if findings:
            raise InputError(findings)
        data = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        message = getattr(error, "problem", None) or str(error)
        line = mark.line + 1 if mark else None
        raise InputError([Finding(str(path), line, "", f"is not valid YAML: {message}")]) from error
    finally:
        loader.dispose()
    return Document(path, data, lines)


def _walk(node: yaml.Node, loc: Loc, path: Path, lines: dict[Loc, int], findings: list[Finding]) -> None:
    lines.setdefault(loc, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*loc, index), path, lines, findings)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = (*loc, str(key.value))
            line = key.start_mark.line + 1
            if name in lines:
                first = lines[name]
                findings.append(Finding(str(path), line, dotted(name), f"is already set in line {first}", "keep one"))
                continue
            lines[name] = line
            _walk(value, name, path, lines, findings)


def findings_of(
    error: ValidationError,
    model: type[BaseModel],
    document: Document,
    relocate: typing.Callable[[Loc], Loc] = lambda loc: loc,
) -> list[Finding]:
    """Return one finding for each of pydantic's errors; `relocate` maps a key of the model to its key in the file."""
    findings = []
    for details in error.errors():
        loc = relocate(details["loc"])
        message, remedy = describe_error(details, model)
        findings.append(document.finding(loc, message, remedy))
    return findings


def describe_error(details: ErrorDetails, model: type[BaseModel]) -> tuple[str, str]:
    """Return the message and remedy for one of pydantic's errors. `model` is the one that was validated."""
    kind, loc, context = details["type"], details["loc"], details.get("ctx", {})
    if kind == "rigup":
        return str(context["message"]), str(context["remedy"])
    if kind == "extra_forbidden":
        if replacement := _replacement(model, loc):
            return "was renamed", f"use {replacement}"
        known = _keys_at(model, loc[:-1])
        return "unknown key", suggestion(str(loc[-1]), known, f"known keys: {', '.join(sorted(known))}")
    if kind == "missing":
        return "is missing", ""
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        key, tags = str(context["discriminator"]).strip("'"), str(context.get("expected_tags", ""))
        return f"has no known {key}", f"{key}: one of {tags}" if tags else f"add a {key}"
    value = details["input"]
    if kind == "string_type" and isinstance(value, int | float) and not isinstance(value, bool):
        return f"must be text, and YAML reads {value!r} as a number", "put it in quotes"
    if kind == "int_type" and isinstance(value, str) and value.strip().lstrip("-").isdigit():
        return f"must be a number, got the text {value!r}", "remove the quotes"
    message = details["msg"].replace("Input should be", "must be")
    got = "" if isinstance(value, Mapping | list | tuple) else f", got {value!r}"
    if kind == "literal_error" and isinstance(value, str):
        allowed = str(context.get("expected", "")).replace("'", "").replace(" or ", ", ").split(", ")
        return message + got, suggestion(value, allowed)
    return message + got, ""


def _replacement(model: type[BaseModel], loc: Loc) -> str | None:
    """Return the new name of a renamed key, from the model's `RENAMED` table; its keys may hold `*` for any name."""
    table: Mapping[str, str] = getattr(model, "RENAMED", {})
    return next((new for old, new in table.items() if fnmatchcase(dotted(loc), old)), None)


def _keys_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """Return the keys that the schema has at `loc`, inside dictionaries, lists and optional models too."""
    current: Any = model
    for part in loc:
        if chosen := _tagged_model(current, part):
            current = chosen
        elif isinstance(current, type) and issubclass(current, BaseModel):
            found = current.model_fields.get(str(part))
            current = found.annotation if found else None
            current = _unwrapped(current)
        else:
            current = _unwrapped(typing.get_args(current)[-1] if typing.get_args(current) else None)
    if isinstance(current, type) and issubclass(current, BaseModel):
        return [info.alias or name for name, info in current.model_fields.items()]
    return []


def _all_models(options: Sequence[Any]) -> bool:
    return all(isinstance(option, type) and issubclass(option, BaseModel) for option in options)


def _tagged_model(annotation: Any, tag: str | int) -> Any:
    """Return the model of a union that has `tag` among the values of a field.

    pydantic puts that value, the union's tag, into an error's location.
    """
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return None
    for option in typing.get_args(annotation):
        if any(tag in typing.get_args(found.annotation) for found in option.model_fields.values()):
            return option
    return None


def _unwrapped(annotation: Any) -> Any:
    """Return the model or container in an annotation, without `| None` and `Annotated`."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(annotation) if option is not type(None)]
        return annotation if len(options) > 1 and _all_models(options) else _unwrapped(options[0])
    if origin is typing.Annotated:
        return _unwrapped(typing.get_args(annotation)[0])
    if origin is tuple:
        return tuple[typing.get_args(annotation)[0]]  # type: ignore[misc]
    return annotation
