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

Loc = tuple[str | int, ...]

MAX_BYTES = 2 << 20
"""Bytes of a file; a lock with a hundred checkpoints has half as many."""

MAX_DEPTH = 64
"""Mappings and lists inside each other; settings need six."""

MAX_ALIASED = 10_000
"""Values that the aliases of a file may repeat: ten lines of aliases of aliases can stand for billions."""

_MERGE = "tag:yaml.org,2002:merge"

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

    Raises InputError if the file is missing, too long or not YAML, for an alias that contains itself or repeats too
    much, for an impossible value such as 2027-02-30, and for a key that is set twice (which YAML parsers accept).
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content[:MAX_BYTES].decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError([Finding(str(path), None, "", f"cannot be read: {reason}")]) from error
    if len(content) > MAX_BYTES:
        raise InputError([Finding(str(path), None, "", f"has more than {MAX_BYTES} bytes", "is it the right file?")])
    loader = _Loader(text)
    try:
        _check_depth(text, path)
        node = loader.get_single_node()
        walk = _Walk(path, loader)
        if node is not None:
            walk.visit(node, ())
        if walk.findings:
            raise InputError(walk.findings)
        data = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        message = getattr(error, "problem", None) or str(error)
        line = mark.line + 1 if mark else None
        raise InputError([Finding(str(path), line, "", f"is not valid YAML: {message}")]) from error
    finally:
        loader.dispose()
    return Document(path, data, walk.lines)


def _check_depth(text: str, path: Path) -> None:
    """Raise InputError for nesting under which libyaml, which is recursive, would crash."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            mark = event.start_mark
            line = mark.line + 1 if mark else None
            raise InputError([Finding(str(path), line, "", f"is nested more than {MAX_DEPTH} deep", "simplify it")])


class _Walk:
    """Collects the lines of all keys, and what is wrong with the nodes of a file."""

    def __init__(self, path: Path, loader: yaml.SafeLoader) -> None:
        self.lines: dict[Loc, int] = {}
        self.findings: list[Finding] = []
        self._path, self._loader = path, loader
        self._seen: set[int] = set()
        self._open: set[int] = set()
        self._aliased = 0

    def visit(self, node: yaml.Node, loc: Loc) -> None:
        """Visit a node and everything below it. Raises InputError for aliases that have no end, or nearly none."""
        self.lines.setdefault(loc, node.start_mark.line + 1)
        if id(node) in self._open:
            raise InputError([self._finding(node, loc, "is an alias that contains itself", "write out what it means")])
        self._aliased += id(node) in self._seen
        if self._aliased > MAX_ALIASED:
            message = f"aliases repeat more than {MAX_ALIASED} values"
            raise InputError([self._finding(node, loc, message, "write out what they mean")])
        self._seen.add(id(node))
        self._open.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.visit(item, (*loc, index))
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                self._visit_entry(key, value, loc)
        else:
            self._construct(node, loc)
        self._open.discard(id(node))

    def _visit_entry(self, key: yaml.Node, value: yaml.Node, loc: Loc) -> None:
        if not isinstance(key, yaml.ScalarNode):
            self.findings.append(self._finding(key, loc, "has a key that is not text", "write a name"))
            return
        name = (*loc, str(key.value))
        if name in self.lines:
            message = f"is already set in line {self.lines[name]}"
            self.findings.append(self._finding(key, name, message, "keep one"))
            return
        self.lines[name] = key.start_mark.line + 1
        if key.tag != _MERGE:
            self._construct(key, name)
        self.visit(value, name)

    def _construct(self, node: yaml.Node, loc: Loc) -> None:
        """Construct a single value: PyYAML would raise its errors later, without a line."""
        try:
            self._loader.construct_object(node)
        except (ValueError, OverflowError) as error:
            kind = node.tag.rpartition(":")[2]
            self.findings.append(
                self._finding(node, loc, f"{node.value!r:.40} is not a valid {kind}: {error}", "correct or quote it")
            )

    def _finding(self, node: yaml.Node, loc: Loc, message: str, remedy: str) -> Finding:
        return Finding(str(self._path), node.start_mark.line + 1, dotted(loc), message, remedy)


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
    got = "" if isinstance(value, Mapping | list | tuple) else f", got {value!r:.200}"
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
