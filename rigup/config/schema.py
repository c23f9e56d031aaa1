"""The JSON Schema of the inventory, for editors. It says less than `load_inventory` checks, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rigup.config.load_balancer import LoadBalancer
from rigup.config.settings import AllKeys

DIALECT = "https://json-schema.org/draft/2020-12/schema"
IGNORED_KEYS: Mapping[str, Any] = {"^x-": {}}


def inventory_schema() -> dict[str, Any]:
    """Return the schema of an inventory file, as JSON Schema 2020-12."""
    host = closed(AllKeys.model_json_schema())
    definitions = host.pop("$defs")
    host |= {"title": "Host", "description": "A host: how to reach it, and its settings."}
    host["patternProperties"] = IGNORED_KEYS
    defaults = {**host, "title": "Defaults", "description": "Settings of all hosts.", "type": ["object", "null"]}
    defaults["properties"] = {key: value for key, value in host["properties"].items() if key != "address"}
    defaults.pop("required")
    balancer = closed(LoadBalancer.model_json_schema())
    definitions |= balancer.pop("$defs")
    return {
        "$schema": DIALECT,
        "title": "Inventory of rigup",
        "type": "object",
        "properties": {
            "defaults": {"$ref": "#/$defs/Defaults"},
            "load_balancer": {"$ref": "#/$defs/LoadBalancer"},
            "status_page": {
                "description": "The page that `rigup status --html` writes.",
                "type": "string",
                "pattern": r"\.html?$",
            },
            "hosts": {
                "description": "The hosts, by name.",
                "type": "object",
                "minProperties": 1,
                "propertyNames": {"pattern": "^[A-Za-z0-9]([A-Za-z0-9.-]{0,62})?$"},
                "additionalProperties": {"$ref": "#/$defs/Host"},
            },
        },
        "patternProperties": IGNORED_KEYS,
        "required": ["hosts"],
        "additionalProperties": False,
        "$defs": {**definitions, "Host": host, "Defaults": defaults, "LoadBalancer": balancer},
    }


def closed(schema: Any) -> Any:
    """Return a schema of pydantic's that refuses the keys of a mapping which match none of its patterns."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    return made | ({"additionalProperties": False} if "patternProperties" in made else {})
