"""The JSON Schema of recipe files, for editors. It says less than `rigup check` does, and nothing else."""

from __future__ import annotations

from typing import Any

from rigup.catalog.extends import OWN, SECTIONS
from rigup.catalog.recipe import Recipe
from rigup.config.schema import DIALECT, closed

NULL = {"type": "null"}


def recipe_schema() -> dict[str, Any]:
    """Return the schema of a recipe's file, as JSON Schema 2020-12: of a whole one, or of one that extends another."""
    recipe = closed(Recipe.model_json_schema())
    definitions = recipe.pop("$defs")
    variant = {
        **recipe,
        "title": "Variant",
        "required": [*(key for key in recipe["required"] if key in OWN), "extends"],
        "properties": {
            key: value if key in OWN else _changes(value, removable=True) for key, value in recipe["properties"].items()
        },
    }
    strings = {"type": "array", "items": {"type": "string"}}
    sections = {"type": "object", "properties": dict.fromkeys(SECTIONS, strings), "additionalProperties": False}
    variant["properties"]["argv"] = {"anyOf": [recipe["properties"]["argv"], sections]}
    changes = {f"{name}Changes": _changes(definition) for name, definition in definitions.items()}
    return {
        "$schema": DIALECT,
        "title": "Recipe of rigup",
        "if": {"required": ["extends"], "properties": {"extends": {"type": "string"}}},
        "then": {"$ref": "#/$defs/Variant"},
        "else": {"$ref": "#/$defs/Recipe"},
        "$defs": {**definitions, **changes, "Recipe": recipe, "Variant": variant},
    }


def _changes(schema: dict[str, Any], removable: bool = False) -> dict[str, Any]:
    """Return the schema of changes to a value: keys may be left out, and `null` removes one. Lists are replaced."""
    made = dict(schema)
    if "$ref" in made:
        made["$ref"] += "Changes"
    for several in ("anyOf", "oneOf"):
        if several in made:
            made[several] = [_changes(each) for each in made[several]]
    if made.get("type") == "object":
        made.pop("required", None)
        for places in ("properties", "patternProperties"):
            if places in made:
                made[places] = {key: _changes(value, removable=True) for key, value in made[places].items()}
        if isinstance(values := made.get("additionalProperties"), dict):
            made["additionalProperties"] = _changes(values, removable=True)
    return {"anyOf": [made, NULL]} if removable else made
