"""The documentation's table of recipes, and a page for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from rigup.catalog.engine_args import arguments
from rigup.catalog.loader import Catalog, default_catalog
from rigup.catalog.recipe import Recipe
from tools.markdown import block, code, table, text

# What a newcomer need not look at first.
OLD = ("superseded", "broken")


@cache
def catalog() -> Catalog:
    return default_catalog()


def recipes_table() -> str:
    """The recipes, and below them those that something better has replaced, and broken ones."""
    titles = ("recipe", "model", "engine", "GPUs", "tool calls", "speed", "status")
    recipes = list(catalog().recipes.values())
    now = [_recipe_row(recipe) for recipe in recipes if recipe.status not in OLD]
    old = [_recipe_row(recipe) for recipe in recipes if recipe.status in OLD]
    return f"{table(titles, now)}\n## Superseded and broken\n\n{table(titles, old)}"


def _recipe_row(recipe: Recipe) -> Iterator[str]:
    yield f"[{recipe.id}]({recipe.id}.md)"
    yield text(catalog().checkpoint(recipe.checkpoint).model)
    yield recipe.engine.name
    yield str(recipe.gpus)
    yield recipe.tool_calls
    yield text(recipe.speed)
    yield _status(recipe)


def _status(recipe: Recipe) -> str:
    by = recipe.superseded_by
    return f"superseded by [{by}]({by}.md)" if by else recipe.status


def recipe_page(recipe: Recipe) -> str:
    """One recipe: what it serves and how, what it was measured at and by whom, what to know before choosing it."""
    parts = [f"# {recipe.id}", text(recipe.title), table(("", ""), _recipe_facts(recipe))]
    if recipe.not_deployable:
        parts.append(f'!!! warning "Not deployable"\n    {text(recipe.not_deployable)}')
    else:
        parts.append(f"Serve it with `recipe: {recipe.id}`. `rigup show {recipe.id}` prints what a host would run.")
    if recipe.findings:
        known = "\n".join(f"    - {code(id)}: {text(why)}" for id, why in recipe.findings.items())
        parts.append(f'!!! warning "A deploy refuses it"\n{known}')
    if recipe.caveats:
        parts += ["## Caveats", "\n".join(f"- {text(caveat)}" for caveat in recipe.caveats)]
    model = catalog().model_of(recipe)
    if model and model.traps:
        parts += [f"## Traps of {text(model.id)}", "\n".join(f"- {text(trap)}" for trap in model.traps)]
    parts.append("## Evidence")
    for evidence in recipe.evidence:
        by = ", ".join(filter(None, (evidence.who, evidence.when)))
        parts.append(f"**{text(evidence.source)}**{f' ({text(by)})' if by else ''}, {evidence.kind}:")
        parts.append(f"> {text(evidence.says)}")
        facts = [f"- measured: {text(speed)}" for speed in evidence.speeds]
        facts += [f"- changed here: {text(change)}" for change in evidence.changed]
        parts += ["\n".join(facts)] if facts else []
    parts += ["## Arguments", block("\n".join(argument for argument, _ in arguments(recipe)) or "none")]
    if recipe.env:
        parts += ["## Environment", block("\n".join(f"{key}={value}" for key, value in sorted(recipe.env.items())))]
    if recipe.patches:
        parts += ["## Patches", "\n".join(f"- `{patch.target}`: {text(patch.why)}" for patch in recipe.patches)]
    return "\n\n".join(parts) + "\n"


def _recipe_facts(recipe: Recipe) -> Iterator[tuple[str, str]]:
    checkpoint, engine = catalog().checkpoint(recipe.checkpoint), recipe.engine
    versions = [f"from {engine.min}"] if engine.min else []
    versions += [f"up to {engine.max}"] if engine.max else []
    versions += [f"as {engine.fork} builds it"] if engine.fork else []
    yield "Status", _status(recipe)
    yield "Good for", ", ".join(recipe.workload)
    yield "Tool calls", recipe.tool_calls
    yield "Speed", text("; ".join(map(str, recipe.speeds)) or "not measured")
    yield "Model", text(checkpoint.model)
    yield "Checkpoint", f"{code(checkpoint.repo)} at {code(checkpoint.reference)}, {text(checkpoint.quantization)}"
    yield "Engine", text(" ".join((engine.name, ", ".join(versions))))
    if recipe.image:
        yield "Image", code(recipe.image.tag)
    elif recipe.venv:
        packages = ", ".join(map(code, recipe.venv.packages))
        yield "Image", f"none: a virtual environment with Python {recipe.venv.python} and {packages}"
    elif recipe.source:
        yield "Image", f"none: built from {code(recipe.source.repo)}"
    if recipe.container.security_opt:
        yield "Container", f"started with {', '.join(map(code, recipe.container.security_opt))}"
    yield "GPUs", f"{recipe.gpus}, with {recipe.vram_mib} MiB each"
    if recipe.min_driver_cuda:
        yield "Driver", f"CUDA {recipe.min_driver_cuda} or newer"
    if recipe.extends:
        yield "Extends", f"[{recipe.extends}]({recipe.extends}.md)"
