"""pydantic's errors in plain words: what is wrong with a value, where it is written, and how to write it."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from datetime import date
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from rigup.config.yaml_file import Document, Loc, dotted
from rigup.errors import Finding, suggestion

LISTED = 12
"""Keys that a message lists; where there are more, it names the command that lists them."""

# What a value must be, by the kind of pydantic's error.
NOUNS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "dict_type": "keys with values",
    "model_type": "keys with values",
    "model_attributes_type": "keys with values",
    "date_type": "a day",
    "date_parsing": "a day",
    "date_from_datetime_parsing": "a day",
    "date_from_datetime_inexact": "a day",
    "datetime_type": "a time",
    "datetime_parsing": "a time",
    "datetime_from_date_parsing": "a time",
}
# What is wrong with a value of the right type; the braces are of pydantic's context.
WORDS = {
    "greater_than": "must be above {gt}, got {value}",
    "greater_than_equal": "must be at least {ge}, got {value}",
    "less_than_equal": "must be at most {le}, got {value}",
    "finite_number": "must be a number that is not infinite",
    "int_parsing_size": "must be a smaller number",
    "string_too_short": "must have at least {min_length} characters, got {value}",
    "string_unicode": "contains half of a character, which no file can",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries, got {actual_length}",
    "invalid_key": "has a key that is not text",
}
HANDLED = {*NOUNS, *WORDS, "rigup", "extra_forbidden", "missing", "union_tag_not_found", "union_tag_invalid",
           "literal_error"}  # fmt: skip
"""The kinds of errors that have words here."""


class Mistake(NamedTuple):
    """One mistake: the key in what was validated, what is wrong, and what to do."""

    loc: Loc
    message: str
    remedy: str


def findings_of(
    error: ValidationError,
    model: type[BaseModel],
    document: Document,
    data: Any,
    relocate: Callable[[Loc], Loc] = lambda loc: loc,
) -> list[Finding]:
    """Return a finding for each mistake in `data`; `relocate` maps a key of the model to its key in the file."""
    found = mistakes(error, model, data, lambda loc: document.texts.get(relocate(loc)))
    return [document.finding(relocate(mistake.loc), mistake.message, mistake.remedy) for mistake in found]


def mistakes(
    error: ValidationError,
    model: type[BaseModel],
    data: Any,
    written: Callable[[Loc], str | None] = lambda loc: None,
) -> list[Mistake]:
    """Return one mistake for each wrong value in `data`, which was validated as `model`.

    `written` returns how a value is written in the file, None if it is as Python shows it.
    """
    places: dict[Loc, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        places.setdefault(_in_data(details, data), []).append(details)
    found = []
    for loc, errors in places.items():
        # Of a value that may be one of several types, pydantic says why it is none of them.
        if any(other[: len(loc)] == loc and other != loc for other in places):
            errors = [details for details in errors if details["type"] not in NOUNS]
        if errors:
            found.append(Mistake(loc, *_described(errors, model, loc, written(loc))))
    return found


def _in_data(details: ErrorDetails, data: Any) -> Loc:
    """Return the place of an error in the data: pydantic inserts `[key]`, and the names of types of a union."""
    loc: Loc = ()
    for part in details["loc"]:
        found = isinstance(data, list | tuple) and isinstance(part, int) and part < len(data)
        if found or (isinstance(data, Mapping) and part in data):
            data, loc = data[part], (*loc, part)
    return (*loc, details["loc"][-1]) if details["type"] == "missing" else loc


def _described(errors: list[ErrorDetails], model: type[BaseModel], place: Loc, written: str | None) -> tuple[str, str]:
    """Return the message and remedy for the errors about the value at `place`."""
    details = errors[0]
    kind, loc, value, context = details["type"], details["loc"], details["input"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown(model, loc)
    if kind == "rigup" and value is not None:
        return str(context["message"]), str(context["remedy"])
    example = _example_near(model, loc, place)
    if kind == "missing":
        own = example_of(model, loc)
        return "is missing", f"for example `{loc[-1]}: {own}`" if own else ""
    if value is None:
        return "has no value", f"write one, for example {example}" if example else "write one, or remove the key"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        key, tags = str(context["discriminator"]).strip("'"), str(context.get("expected_tags", "")).replace("'", "")
        return f"has no known {key}", f"{key}: one of {tags}" if tags else f"add a {key}"
    if kind == "literal_error":
        return _not_one_of(str(context["expected"]), value, written)
    if kind == "string_too_short" and not value:
        return "is empty", f"for example {example}" if example else "write a value"
    if kind in WORDS:
        return WORDS[kind].format(value=shown(value), **context), f"for example {example}" if example else ""
    nouns = dict.fromkeys(NOUNS[each["type"]] for each in errors if each["type"] in NOUNS)
    return _wrong_type(list(nouns) or ["another value"], value, written, example)


def _wrong_type(nouns: list[str], value: Any, written: str | None, example: str) -> tuple[str, str]:
    must = f"must be {' or '.join(nouns)}"
    quotes = "text" in nouns and isinstance(value, bool | int | float | date)
    if nouns == ["a list"] and isinstance(value, str) and value.strip():
        return must, f"for example [{', '.join(value.replace(',', ' ').split())}]"
    if nouns in (["a whole number"], ["a number"]) and isinstance(value, str) and value.strip().lstrip("-").isdigit():
        return f"must be a number, got the text {shown(value)}", "remove the quotes"
    if nouns == ["true or false"] and isinstance(value, str):
        return f"{must}, got the text {shown(value)}", "write true or false, without quotes"
    remedy = "put it in quotes" if quotes else f"for example {example}" if example else ""
    if isinstance(value, bool | date) or (isinstance(value, int | float) and quotes):
        read_as = str(value).lower() if isinstance(value, bool) else "a date" if isinstance(value, date) else "a number"
        if written not in (None, read_as):
            return f"{must}, and YAML reads {written} as {read_as}", remedy
        return f"{must}, got {str(value).lower()}", remedy
    return f"{must}, got {shown(value)}", remedy


def _not_one_of(expected: str, value: Any, written: str | None) -> tuple[str, str]:
    allowed = expected.replace("'", "").replace(" or ", ", ").split(", ")
    must = f"must be {' or '.join(filter(None, (', '.join(allowed[:-1]), allowed[-1])))}"
    if isinstance(value, bool):
        reads = f", and YAML reads {written} as {str(value).lower()}" if written else f", got {str(value).lower()}"
        return must + reads, f'write "{written}", in quotes' if written in allowed else ""
    return f"{must}, got {shown(value)}", suggestion(str(value), allowed) if isinstance(value, str) else ""


def shown(value: Any) -> str:
    """Return a value of any type as a message shows it."""
    if value is None:
        return "nothing"
    if isinstance(value, date):
        return str(value)
    if isinstance(value, Mapping):
        return "keys with values"
    if isinstance(value, list | tuple):
        return "a list"
    return str(value).lower() if isinstance(value, bool) else f"{value!r:.200}"


def yaml_of(value: Any) -> str:
    """Return a value of the settings as it is written in one line of YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(yaml_of(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {yaml_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, BaseModel):
        return yaml_of(value.model_dump(exclude_unset=True))
    return str(value)


def example_of(model: type[BaseModel], loc: Loc) -> str:
    """Return an example of the value at `loc` as YAML, "" if the schema has none: its own, or else the default."""
    field = field_at(model, loc)
    if field is None:
        return ""
    if field.examples:
        return yaml_of(field.examples[0])
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    return "" if default in (None, (), {}, "") else yaml_of(default)


def _example_near(model: type[BaseModel], loc: Loc, place: Loc) -> str:
    """Return an example of the value at `place`, which pydantic calls `loc`, or of the key that it is inside."""
    for length in range(len(loc), 0, -1):
        if example := example_of(model, loc[:length]):
            return example if loc[length - 1] == place[-1] else f"`{loc[length - 1]}: {example}`"
    return ""


# The schema


def field_at(model: type[BaseModel], loc: Loc) -> FieldInfo | None:
    """Return the field of the schema for the value at a place of pydantic's; None for one inside another value."""
    owner = _schema_at(model, loc[:-1])
    return fields_of(owner).get(str(loc[-1])) if loc and owner else None


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a model by their names in files."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _schema_at(model: type[BaseModel], loc: Loc) -> type[BaseModel] | None:
    """Return the model of the value at a place of pydantic's, in which a union's type has a part of its own."""
    current: Any = model
    for part in loc:
        options = _options(current)
        owner = _model_in(current)
        container = next((option for option in options if typing.get_origin(option) in (dict, tuple)), None)
        if len(options) > 1 and (chosen := next((each for each in options if _is_tagged(each, part)), None)):
            current = chosen
        elif owner is not None and str(part) in (fields := fields_of(owner)):
            current = fields[str(part)].annotation
        elif container is not None:
            current = [argument for argument in typing.get_args(container) if argument is not Ellipsis][-1]
    return _model_in(current)


def _options(annotation: Any) -> list[Any]:
    """Return the types that an annotation permits, without `None` and `Annotated`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _options(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return [option for argument in arguments for option in _options(argument)]
    return [] if annotation is type(None) else [annotation]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    return next((each for each in _options(annotation) if isinstance(each, type) and issubclass(each, BaseModel)), None)


def _is_tagged(option: Any, tag: str | int) -> bool:
    """Return whether `tag` is what pydantic calls this type of a union: the value of a field of it."""
    return (
        isinstance(option, type)
        and issubclass(option, BaseModel)
        and any(tag in typing.get_args(info.annotation) for info in option.model_fields.values())
    )


def _unknown(model: type[BaseModel], loc: Loc) -> tuple[str, str]:
    """Return what to say about a key that the schema does not have."""
    key, owner = str(loc[-1]), _schema_at(model, loc[:-1])
    if replacement := replacement_of(model, dotted(loc)):
        return "was renamed", f"use {replacement}"
    known = fields_of(owner) if owner else {}
    if place := getattr(model, "PLACES", {}).get(key):
        return "does not belong here", place
    if (meant := getattr(model, "SYNONYMS", {}).get(key)) in known:
        return "unknown key", f"did you mean {meant}?"
    if ":" in key:
        name, _, value = key.partition(":")
        return "unknown key", f"write a space after the colon: `{name}: {value}`"
    where = getattr(model, "LISTED_BY", "") if len(known) > LISTED else ""
    return "unknown key", suggestion(key, known, where or f"known keys: {', '.join(sorted(known))}")


def replacement_of(model: type[BaseModel], key: str) -> str | None:
    """Return the new name of a renamed key, from the model's `RENAMED` table; its keys may hold `*` for any name."""
    table: Mapping[str, str] = getattr(model, "RENAMED", {})
    return next((new for old, new in table.items() if fnmatchcase(key, old)), None)
