"""What a type annotation of an engine allows as the value of an option, or of a key of a JSON option."""

from __future__ import annotations

import ast
from typing import Any

from tools.engines.source import head, is_none, keyword

# SGLang's functions that parse a value.
PARSERS = {"human_readable_int": "size", "loads": "json", "json_list_type": "json", "nullable_str": "text"}
SCALARS = {"bool": "flag", "int": "int", "float": "float", "str": "text"}


def kind(node: ast.AST | None, known: dict[str, ast.AST], depth: int = 0) -> Any:
    """Return what a type annotation allows: `flag`, `int`, `float`, `text`, `json`, a list, or any `value`."""
    if node is None or depth > 6:
        return "value"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return either([kind(side, known, depth + 1) for side in (node.left, node.right) if not is_none(side)])
    if isinstance(node, ast.Subscript):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if head(node) == "Literal":
            values = [part.value for part in parts if isinstance(part, ast.Constant) and part.value is not None]
            return [str(value) for value in values] if len(values) else "value"
        if head(node) == "Union":
            return either([kind(part, known, depth + 1) for part in parts if not is_none(part)])
        # The engines take several values as several words, a recipe one at a time.
        if head(node) in ("Optional", "SkipValidation", "Annotated", "list", "List", "tuple", "set"):
            return kind(parts[0], known, depth + 1)
        return "json" if head(node) in ("dict", "Dict") else "value"
    name = head(node)
    if name in SCALARS:
        return SCALARS[name]
    return kind(known[name], known, depth + 1) if name in known else "value"


def either(kinds: list[Any]) -> Any:
    """Return what a union allows."""
    if all(isinstance(each, list) for each in kinds):
        return list(dict.fromkeys(item for each in kinds for item in each))
    if all(each == kinds[0] for each in kinds):
        return kinds[0]
    return "float" if set(map(str, kinds)) == {"int", "float"} else "value"


def typed(call: ast.Call) -> str:
    """Return the kind of an `add_argument` with a `type` of its own."""
    return SCALARS.get(head(keyword(call, "type") or call), "value") if keyword(call, "type") else "text"


def shape(node: ast.AST, known: dict[str, ast.AST], depth: int = 0) -> Any:
    """Return the shape of JSON values that an annotation allows.

    `int`, `float`, `bool`, `text`, a list of texts to choose from, `{list: SHAPE}`, `{tuple: [SHAPE, ...]}`, or `any`.
    """
    if depth > 6:
        return "any"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        sides = [shape(side, known, depth + 1) for side in (node.left, node.right) if not is_none(side)]
        return sides[0] if len(sides) == 1 else "any"
    parts = []
    if isinstance(node, ast.Subscript):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    inner = [shape(part, known, depth + 1) for part in parts]
    match head(node), inner:
        case "Literal", _:
            # Choices may contain another list.
            given = [
                [each.value] if isinstance(each, ast.Constant) else of for each, of in zip(parts, inner, strict=True)
            ]
            choices = [choice for each in given if isinstance(each, list) for choice in each]
            texts = all(isinstance(each, list) for each in given) and all(isinstance(choice, str) for choice in choices)
            return choices if texts else "any"
        case "list", [of]:
            return {"list": of}
        case "tuple", [_, *_] if not any(isinstance(part, ast.Constant) for part in parts):
            return {"tuple": inner}
        case ("int" | "float" | "bool") as name, []:
            return name
        case "str", []:
            return "text"
        case name, [] if name in known:
            return shape(known[name], known, depth + 1)
    return "any"
