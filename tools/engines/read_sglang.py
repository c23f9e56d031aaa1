"""Read an SGLang wheel: options, variables, architectures, quantization methods."""

from __future__ import annotations

import ast
import re
from typing import Any

from tools.engines.kinds import PARSERS, kind, typed
from tools.engines.quantization import methods
from tools.engines.source import Wheel, added, assigned, classes, fields, head, keyword, option, words

# They moved after 0.5.9.
PARSER_NAMES = {
    "--tool-call-parser": (
        "sglang/srt/function_call/parser_names.py",
        "sglang/srt/function_call/function_call_parser.py",
    ),
    "--reasoning-parser": ("sglang/srt/parser/reasoning_parser_names.py", "sglang/srt/parser/reasoning_parser.py"),
}


def names_in(tree: ast.Module) -> list[str]:
    """Return the first list of names in a file, or the keys of its first table of classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            if found := words(node.value):
                return sorted(found)
            if isinstance(node.value, ast.Dict) and all(isinstance(each, ast.Name) for each in node.value.values):
                return sorted(str(key.value) for key in node.value.keys if isinstance(key, ast.Constant))
    raise ValueError("no names of parsers")


def sglang(wheel: Wheel) -> dict[str, Any]:
    """Return what `recipes/engines/` keeps of an SGLang release."""
    prefix = "sglang/srt/arg_groups/"
    known = assigned(wheel.trees(prefix)) | assigned(wheel.trees("sglang/srt/server_args.py"))
    options: dict[str, Any] = {}
    for owner in classes(wheel.trees(prefix + "fields/")).values():
        for name, annotation in fields(owner).items():
            if not (isinstance(annotation, ast.Subscript) and head(annotation) == "A"):
                continue
            parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
            details = next(
                (part for part in parts[1:] if isinstance(part, ast.Call) and head(part.func) == "Arg"), None
            )
            names, found = [option(name)], kind(parts[0], known)
            if details:
                if isinstance(off := keyword(details, "no_cli"), ast.Constant) and off.value:
                    continue
                if isinstance(other := keyword(details, "cli_name"), ast.Constant):
                    names = [str(other.value)]
                names += words(keyword(details, "aliases")) or []
                choices = keyword(details, "choices")
                if isinstance(choices, ast.Name):
                    choices = known.get(choices.id)
                # A list with computed parts is not a complete list of choices.
                found = words(choices) or found
                parser = keyword(details, "type_parser")
                if parser is not None and not isinstance(found, list):
                    found = PARSERS.get(head(parser), "value")
            options |= dict.fromkeys(names, found)
    for names, call in added(wheel.tree("sglang/srt/server_args.py")):
        action = keyword(call, "action")
        flag = (isinstance(action, ast.Constant) and "store_" in str(action.value)) or "True" in head(action or call)
        choices = keyword(call, "choices")
        choices = known.get(choices.id) if isinstance(choices, ast.Name) else choices
        options |= dict.fromkeys(names, "flag" if flag else words(choices) or typed(call))
    for name, files in PARSER_NAMES.items():
        options[name] = names_in(wheel.tree(next(file for file in files if file in wheel.files)))
    environment = {
        node.targets[0].id
        for node in classes(wheel.trees("sglang/srt/environ.py"))["Envs"].body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for tree in wheel.trees("sglang/"):
        for node in ast.walk(tree):
            given = node.args[:1] if isinstance(node, ast.Call) else [getattr(node, "slice", None)]
            for each in given:
                if isinstance(each, ast.Constant) and isinstance(each.value, str):
                    environment |= set(re.findall(r"^SGL(?:ANG)?_[A-Z0-9_]+$", each.value))
    return {
        "options": options,
        "keys": {},
        "environment": sorted(environment),
        "architectures": served_by_sglang(wheel),
        "quantization": methods(wheel, "sglang/srt/layers/quantization/"),
        "attention": {},
    }


def served_by_sglang(wheel: Wheel) -> list[str]:
    """Return the architectures (config.json) that it serves: every module of a model names its classes."""
    found = set()
    for tree in wheel.trees("sglang/srt/models/"):
        entry = assigned(iter([tree])).get("EntryClass")
        for each in entry.elts if isinstance(entry, ast.List | ast.Tuple) else [entry]:
            if isinstance(each, ast.Name):
                found.add(each.id)
    return sorted(found)
