"""Write `recipes/engines/ENGINE-VERSION.yaml` from a released wheel: its options, variables and model architectures.

    pip download --no-deps --dest /tmp/wheels vllm==0.33.0 sglang==0.5.23
    python tools/engine_options.py /tmp/wheels/*.whl

Maintainers run this when a recipe's version range reaches a new release of vLLM or SGLang; recipes are checked against
its output. The wheel's sources are parsed, never imported, so neither a GPU nor the engine's dependencies are needed.
"""

from __future__ import annotations

import ast
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ENGINES = Path(__file__).resolve().parent.parent / "recipes" / "engines"
HEADER = "# Written by tools/engine_options.py from the released wheel; do not edit.\n"


class Wheel:
    """The Python sources of a wheel, parsed on demand."""

    def __init__(self, path: Path):
        self.name, self.version = path.name.split("-")[:2]
        self.archive = zipfile.ZipFile(path)
        self.files = [name for name in self.archive.namelist() if name.endswith(".py") and "/test/" not in name]

    def tree(self, name: str) -> ast.Module:
        return ast.parse(self.archive.read(name))

    def trees(self, prefix: str) -> Iterator[ast.Module]:
        for name in self.files:
            if name.startswith(prefix):
                yield self.tree(name)


def words(node: ast.AST | None) -> list[str] | None:
    """Return the strings of a literal list, tuple or set; None if it contains anything else."""
    if not isinstance(node, ast.List | ast.Tuple | ast.Set):
        return None
    found = [item.value for item in node.elts if isinstance(item, ast.Constant) and isinstance(item.value, str)]
    return found if len(found) == len(node.elts) else None


def assigned(trees: Iterator[ast.Module]) -> dict[str, ast.AST]:
    """Return the top-level assignments of these modules."""
    found: dict[str, ast.AST] = {}
    for tree in trees:
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                found[node.target.id] = node.value
    return found


def head(node: ast.AST) -> str:
    """Return the name of a type: `Literal` for `typing.Literal[...]`."""
    target = node.value if isinstance(node, ast.Subscript) else node
    return target.attr if isinstance(target, ast.Attribute) else target.id if isinstance(target, ast.Name) else ""


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


def is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def fields(node: ast.ClassDef) -> dict[str, ast.AST]:
    return {
        item.target.id: item.annotation
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def classes(trees: Iterator[ast.Module]) -> dict[str, ast.ClassDef]:
    return {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def added(tree: ast.AST) -> Iterator[tuple[list[str], ast.Call]]:
    """Yield every `add_argument("--name", ...)` with its names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            if any(name.startswith("-") for name in names):
                yield names, node


def keyword(call: ast.Call, name: str) -> ast.AST | None:
    return next((item.value for item in call.keywords if item.arg == name), None)


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def vllm(wheel: Wheel) -> dict[str, Any]:
    config = classes(wheel.trees("vllm/config/"))
    known = assigned(wheel.trees("vllm/config/")) | assigned(wheel.trees("vllm/engine/arg_utils.py"))
    backends = classes(wheel.trees("vllm/v1/attention/backends/registry.py"))["AttentionBackendEnum"]
    attention = [
        item.targets[0].id
        for item in backends.body
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name) and item.targets[0].id != "CUSTOM"
    ]
    arguments = wheel.tree("vllm/engine/arg_utils.py")
    # `model_kwargs = get_kwargs(ModelConfig)`: the class that a group of options comes from.
    groups = {
        node.targets[0].id: node.value.args[0].id
        for node in ast.walk(arguments)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Call)
        and head(node.value.func) == "get_kwargs"
        and isinstance(node.value.args[0], ast.Name)
    }
    # `moe_kwargs = kernel_kwargs["moe_backend"]`: a variable for one option.
    singles = {
        node.targets[0].id: node.value
        for node in ast.walk(arguments)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Subscript)
    }
    # Numbers that may be `8k` (human_readable_int) or `auto`.
    sizes = {"max_model_len"}
    for node in ast.walk(arguments):
        if isinstance(node, ast.Assign) and head(node.targets[0]) == "human_readable_int_args":
            sizes |= set(words(node.value) or ())
    options: dict[str, Any] = {}
    keys: dict[str, dict[str, Any]] = {}

    def shapes(owner: ast.ClassDef) -> dict[str, Any]:
        return {name: shape(annotation, known) for name, annotation in sorted(fields(owner).items())}

    for names, call in added(arguments):
        # `**model_kwargs["dtype"]`, or a modified copy of it.
        annotation = None
        for each in ast.walk(call):
            each = singles.get(each.id, each) if isinstance(each, ast.Name) else each
            if isinstance(each, ast.Subscript) and isinstance(each.value, ast.Name) and each.value.id in groups:
                owner = config.get(groups[each.value.id])
                if owner and isinstance(each.slice, ast.Constant):
                    annotation = annotation or fields(owner).get(str(each.slice.value))
        for name in names:
            options[name] = kind(annotation, known) if annotation else typed(call)
            if name.strip("-").replace("-", "_") in sizes:
                options[name] = "size"
            if annotation and "AttentionBackendEnum" in ast.dump(annotation):
                options[name] = list(attention)
            action = keyword(call, "action")
            if isinstance(action, ast.Constant) and str(action.value).startswith("store_"):
                options[name] = "flag"
    vllm_class = classes(wheel.trees("vllm/engine/arg_utils.py"))["EngineArgs"]
    for name, annotation in fields(vllm_class).items():
        # The type of a JSON option is the class in its field's annotation.
        for each in ast.walk(annotation):
            if isinstance(each, ast.Name) and each.id in config and option(name) in options:
                keys[option(name)] = shapes(config[each.id])
    keys["--speculative-config"] = shapes(config["SpeculativeConfig"])
    # It moved after 0.17.
    moved = ("vllm/entrypoints/common/cli_args.py", "vllm/entrypoints/openai/cli_args.py")
    command_line = wheel.tree(next(name for name in moved if name in wheel.files))
    frontend = classes(iter([command_line]))
    for name in ("BaseFrontendArgs", "FrontendArgs"):
        if name in frontend:
            options |= {option(field): kind(annotation, known) for field, annotation in fields(frontend[name]).items()}
    options |= {name: typed(call) for names, call in added(command_line) for name in names}
    environment = assigned(wheel.trees("vllm/envs.py"))["environment_variables"]
    assert isinstance(environment, ast.Dict)
    options["--tool-call-parser"] = registered(wheel, "vllm/tool_parsers/__init__.py", "_TOOL_PARSERS_TO_REGISTER")
    options["--reasoning-parser"] = registered(wheel, "vllm/reasoning/__init__.py", "_REASONING_PARSERS_TO_REGISTER")
    variables = [str(key.value) for key in environment.keys if isinstance(key, ast.Constant)]
    return {
        "options": options,
        "keys": {name: of for name, of in keys.items() if of},
        "environment": sorted(variables),
        "architectures": served_by_vllm(wheel),
    }


# The tables of vLLM's registry that hold models to chat with; the others embed, classify, rank or draft.
CHAT_MODELS = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS")


def served_by_vllm(wheel: Wheel) -> list[str]:
    """Return the architectures (config.json) that it serves itself, without the fallback to transformers' code."""
    file = "vllm/model_executor/models/registry.py"
    return sorted({name for table in CHAT_MODELS for name in registered(wheel, file, table)})


def served_by_sglang(wheel: Wheel) -> list[str]:
    """Return the architectures (config.json) that it serves: every module of a model names its classes."""
    found = set()
    for tree in wheel.trees("sglang/srt/models/"):
        entry = assigned(iter([tree])).get("EntryClass")
        for each in entry.elts if isinstance(entry, ast.List | ast.Tuple) else [entry]:
            if isinstance(each, ast.Name):
                found.add(each.id)
    return sorted(found)


def registered(wheel: Wheel, file: str, name: str) -> list[str]:
    table = assigned(iter([wheel.tree(file)]))[name]
    assert isinstance(table, ast.Dict)
    return sorted(str(key.value) for key in table.keys if isinstance(key, ast.Constant))


def sglang(wheel: Wheel) -> dict[str, Any]:
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
        options |= dict.fromkeys(names, "flag" if flag else typed(call))
    for name, file in (
        ("--tool-call-parser", "sglang/srt/function_call/parser_names.py"),
        ("--reasoning-parser", "sglang/srt/parser/reasoning_parser_names.py"),
    ):
        lists = [found for value in assigned(iter([wheel.tree(file)])).values() if (found := words(value))]
        options[name] = sorted(lists[0])
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
    }


def main(paths: list[str]) -> None:
    for path in paths:
        wheel = Wheel(Path(path))
        data = {"vllm": vllm, "sglang": sglang}[wheel.name](wheel)
        names = {name: found for name, found in sorted(data["options"].items()) if name.startswith("-")}
        document = {"engine": wheel.name, "version": wheel.version, "wheel": Path(path).name, **data, "options": names}
        text = HEADER + yaml.safe_dump(document, sort_keys=False, width=120, default_flow_style=None)
        ENGINES.mkdir(exist_ok=True)
        (ENGINES / f"{wheel.name}-{wheel.version}.yaml").write_text(text, encoding="utf-8")
        print(f"{wheel.name} {wheel.version}: {len(names)} options, {len(data['environment'])} variables")


if __name__ == "__main__":
    main(sys.argv[1:])
