"""The settings, for reading: the table of all, and what one of them means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rigup.config.endpoint import Endpoint
from rigup.config.load_balancer import ClientKey, LoadBalancer
from rigup.config.mistakes import example_of, fields_of, replacement_of, yaml_of
from rigup.config.need import Need
from rigup.config.settings import Connection, Settings
from rigup.config.waiver import Waiver
from rigup.errors import RigupError, suggestion


class Group(NamedTuple):
    """Settings that belong in one place. `parent` is the key above them, `name` stands for a name in between."""

    model: type[BaseModel]
    where: str
    parent: str = ""
    name: str = ""

    @property
    def prefix(self) -> str:
        """What stands before the name of a setting, such as `endpoints.NAME.`."""
        return "".join(f"{part}." for part in (self.parent, self.name) if part)


GROUPS = (
    Group(Connection, "under a host, or under `defaults` for all hosts; only in the inventory"),
    Group(Settings, "under `defaults`, under a host, or for one run with `--data {key}=VALUE`"),
    Group(Endpoint, "under an endpoint: `endpoints: {{main: {{{key}: ...}}}}`", "endpoints", "NAME"),
    Group(LoadBalancer, "at the top of the inventory: `load_balancer: {{{key}: ...}}`", "load_balancer"),
    Group(
        ClientKey,
        "under a key of the load balancer: `load_balancer: {{keys: {{default: {{{key}: ...}}}}}}`",
        "load_balancer.keys",
        "NAME",
    ),
    Group(Waiver, "under a waiver: `waivers: {{disk-space: {{{key}: ...}}}}`", "waivers", "CHECK"),
)
REQUIRED = "(required)"
NEED = Group(Need, "in a need, in place of a recipe's name: `recipe: {{{key}: ...}}`", "recipe")


def settings_rows() -> Iterator[tuple[str, str, str]]:
    """Yield every key with its default, as the inventory would have it, and what it is."""
    for group in GROUPS:
        for name, info in fields_of(group.model).items():
            yield f"{group.prefix}{name}", _default(info) or REQUIRED, info.description or ""


def settings_table() -> str:
    """Return the table of all keys as Markdown."""
    lines = ["| key | default | what it is |", "|---|---|---|"]
    for key, default, what in settings_rows():
        text = what.replace("|", "\\|")
        lines.append(f"| `{key}` | {default if default == REQUIRED else f'`{default}`'} | {text} |")
    return "\n".join(lines) + "\n"


def explained(key: str, steps_of: Callable[[str], Sequence[str]]) -> str:
    """Return what a setting is; `key` may have the keys above it: `listen`, or `endpoints.main.listen`.

    `steps_of` returns the steps of a deploy that a setting of a host or endpoint affects, as far as that is known.
    Raises RigupError, with similar names, for an unknown setting, and with the new name for an old one.
    """
    found = [
        _explanation(group, name, info, steps_of(name) if group.model in (Settings, Endpoint) else ())
        for group in (*GROUPS, NEED)
        for name, info in fields_of(group.model).items()
        if key == name or (group.prefix and fnmatchcase(key, f"{group.parent}.{'*.' if group.name else ''}{name}"))
    ]
    if found:
        return "\n".join(found)
    if new := replacement_of(Settings, key) or _replacement_of_last(key):
        raise RigupError(f"{key} was renamed", f"use {new}")
    names = {name: None for group in (*GROUPS, NEED) for name in fields_of(group.model)}
    meant = Settings.SYNONYMS.get(key)
    raise RigupError(
        f"there is no setting {key!r}",
        f"did you mean {meant}?" if meant else suggestion(key.rpartition(".")[2], names, Settings.LISTED_BY),
    )


def _replacement_of_last(key: str) -> str | None:
    return next((new for old, new in Settings.RENAMED.items() if old.rpartition(".")[2] == key), None)


def _explanation(group: Group, name: str, info: FieldInfo, steps: Sequence[str]) -> str:
    schema = group.model.model_json_schema()
    default, example = _default(info), example_of(group.model, (name,))
    where = "under a host; only in the inventory" if name == "address" else group.where.format(key=name)
    rows = {
        "type": type_in_words(schema["properties"][name], schema.get("$defs", {})),
        "default": "none: it is required" if default is None else default if default != "null" else "not set",
        "where": where,
        "example": f"{name}: {example}" if example else "",
        "steps": ", ".join(steps),
    }
    lines = [f"{group.prefix}{name}", f"  {info.description}"]
    return "\n".join([*lines, *(f"  {title + ':':9}{text}" for title, text in rows.items() if text)]) + "\n"


def _default(info: FieldInfo) -> str | None:
    return None if info.is_required() else yaml_of(info.get_default(call_default_factory=True))


def type_in_words(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return the type of a JSON schema as plain words."""
    if "$ref" in schema:
        return type_in_words(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if several := schema.get("anyOf") or schema.get("oneOf"):
        words = [type_in_words(each, definitions) for each in several if each.get("type") != "null"]
        return ", or ".join(dict.fromkeys(words))
    if "enum" in schema or "const" in schema:
        return " or ".join(yaml_of(each) for each in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "object":
        if "properties" in schema:
            return f"keys with values: {', '.join(schema['properties'])}"
        inner = next(iter(schema.get("patternProperties", {}).values()), schema.get("additionalProperties"))
        return f"names, each with {type_in_words(inner, definitions)}" if isinstance(inner, Mapping) else "keys"
    if kind == "array":
        return f"list; each entry {type_in_words(schema['items'], definitions)}"
    if kind == "integer":
        least, most = schema.get("minimum"), schema.get("maximum")
        limits = [f"from {least}"] * (least is not None) + [f"to {most}"] * (most is not None)
        return " ".join(["whole number", *limits])
    if schema.get("format") == "date":
        return "day, as year-month-day"
    return {"boolean": "true or false", "string": "text", "number": "number"}.get(str(kind), str(kind))
