"""The pages of `docs/` that come from the code: MkDocs calls the hooks at the end while it builds.

A written page says `<!-- generated: NAME -->` where one of GENERATED goes. Every recipe has a page of its own, which
exists only in the built site, as does the page made of `recipes/README.md`.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

from bench.summary import TITLES
from rigup.catalog.loader import default_catalog
from rigup.cli._parser import Parser
from rigup.cli.main import parser
from rigup.config.findings import FINDINGS
from rigup.config.settings_help import settings_table
from rigup.resources import RECIPES
from tools.docs_recipes import recipe_page, recipes_table
from tools.markdown import block, code, table, text

ROOT = Path(__file__).resolve().parent.parent
AUDIT = ROOT / "tests" / "audit"
RESULTS = ROOT / "bench" / "results"
MARKER = re.compile(r"<!-- generated: (\S+) -->")
HELP_WIDTH = 96


# Steps


@cache
def steps() -> tuple[str, ...]:
    """The steps of a deploy in the order in which `deploy.py` calls them."""
    statements = ast.parse((ROOT / "deploy.py").read_text()).body
    calls = [each.value for each in statements if isinstance(each, ast.Expr | ast.Assign)]
    called = [call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)]
    return tuple(name for name in called if (ROOT / "tasks" / f"{name}.py").is_file())


# Commands


def commands(top: argparse.ArgumentParser | None = None) -> dict[str, argparse.ArgumentParser]:
    """The parser of every command, by its name; those of subcommands follow their command."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in (top or parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                found |= {each.prog: each, **commands(each)}
    return found


def command_line() -> str:
    """Every command with its own help."""
    return "\n".join(f"## {name}\n\n{block(_help(each))}" for name, each in {"rigup": parser(), **commands()}.items())


def _help(command: argparse.ArgumentParser) -> str:
    # The width of no terminal: a build gives the same pages anywhere.
    command.formatter_class = partial(argparse.HelpFormatter, width=HELP_WIDTH)
    return command.format_help()


def exit_codes() -> str:
    """What each command's exit codes mean, by its own help."""
    rows = []
    for name, command in commands().items():
        prefix, found, meaning = (command.epilog or "").partition("Exit codes: ")
        if prefix or not found:
            raise PluginError(f"the help of `{name}` does not end with its exit codes")
        rows.append((code(name), text(meaning)))
    return table(("command", "exit codes"), rows)


def json_output() -> str:
    """The keys of the object that each command prints with `--json`."""
    parts = []
    for name, command in commands().items():
        assert isinstance(command, Parser)
        if command.json_keys:
            parts.append(f"## {name}")
            parts.append(
                table(("key", "content"), ((code(key), text(what)) for key, what in command.json_keys.items()))
            )
    return "\n\n".join(parts)


# Audit


@cache
def audit_checks() -> dict[str, dict[str, Callable[..., None]]]:
    """The audit's checks by step, then by id: functions with what `@check(...)` says of them as `about`."""
    found = {step: _checks_in(AUDIT / f"test_{step}.py") for step in steps() if (AUDIT / f"test_{step}.py").is_file()}
    if left := {path.stem.removeprefix("test_") for path in AUDIT.glob("test_*.py")} - set(found):
        raise PluginError(f"tests/audit checks what is no step of deploy.py: {', '.join(sorted(left))}")
    return found


def _checks_in(path: Path) -> dict[str, Callable[..., None]]:
    spec = importlib.util.spec_from_file_location(f"audit_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    functions = {name: each for name, each in vars(module).items() if name.startswith("test_")}
    return {name.removeprefix("test_").replace("_", "-"): each for name, each in functions.items()}


def checks() -> str:
    """The audit's checks, a table for each step."""
    parts = []
    for step, found in audit_checks().items():
        parts.append(f"## {step}")
        parts.append(
            table(("check", "what it checks", "severity", "settings", "repaired by"), _check_rows(step, found))
        )
    return "\n\n".join(parts)


def _check_rows(step: str, found: dict[str, Callable[..., None]]) -> Iterator[tuple[str, ...]]:
    for name, function in found.items():
        about: Any = function.about  # type: ignore[attr-defined]
        title = (function.__doc__ or "").split("\n\n")[0]
        limits = [" As root only."] if about.root else []
        limits += [" With `--deep` only."] if about.deep else []
        settings = ", ".join(map(code, about.settings))
        yield code(name), text(title) + "".join(limits), about.severity, settings, ", ".join(about.repair or (step,))


# Measurements


def benchmark() -> str:
    """The no-op deploy and the audit beside other tools, as last measured."""
    result = json.loads((RESULTS / "benchmark.json").read_text())
    cases, measured = result["cases"], result["measured"]
    columns = sorted({(case["hosts"], case["round_trip_ms"]) for case in cases})
    medians = {
        (case["job"], case["tool"], case["hosts"], case["round_trip_ms"]): f"{case['median']:.1f}" for case in cases
    }
    titles = ["seconds", *(f"{hosts} host{'s' * (hosts > 1)}, {delay} ms" for hosts, delay in columns)]
    rows = [
        [text(title.strip()), *(medians.get((job, tool, *column), "") for column in columns)]
        for (job, tool), title in TITLES.items()
    ]
    about = (
        f"Medians, measured on {measured['at'][:10]}: {measured['processor']}, {measured['processors']} processors; "
    )
    about += f"Python {measured['python']}, pyinfra {measured['pyinfra']}, Ansible {measured['ansible-core']}."
    return f"{table(titles, rows)}\n{about}\n"


def ratios() -> str:
    """How much faster than the other tools, where one host was measured."""
    found = json.loads((RESULTS / "benchmark.json").read_text())["ratios"]
    rows = [
        (text(each["what"]), f"{each['round_trip_ms']} ms", f"{each['value']:g}", text(each["aim"] or ""))
        for each in found
        if each["hosts"] == 1
    ]
    return table(("ratio", "round trip", "measured", "target"), rows)


def store() -> str:
    """Downloads: one, a fleet's, and a whole deploy's, as last measured."""
    result = json.loads((RESULTS / "store.json").read_text())
    single = table(
        ("one download", "limit", "GB/s"),
        (
            (text(run["tool"]), _rate(run["limit_bytes_per_s"]), f"{run['gb_per_s']:g}")
            for run in result["single"]["runs"]
        ),
    )
    fleet = table(
        ("a fleet", "limit", "seconds", "checkpoints fetched from the hub"),
        (
            (
                f"{run['hosts']} hosts, {'with' if run['peers'] else 'without'} peers",
                _rate(run["limit_bytes_per_s"]),
                f"{run['seconds']:g}",
                f"{run['checkpoints_from_hub']:g}",
            )
            for run in result["fleet"]["runs"]
        ),
    )
    deploy = table(
        ("seconds of the download alone", "seconds of the whole deploy", "ratio to the longer part"),
        (
            (f"{run['download_alone_seconds']:g}", f"{run['seconds']:g}", f"{run['against_the_larger']:g}")
            for run in result["deploy"]["runs"]
        ),
    )
    return f"{single}\n{fleet}\n{deploy}\nMeasured on {result['single']['measured']['at'][:10]} over loopback.\n"


def _rate(limit: int) -> str:
    return f"{limit / 1e6:g} MB/s" if limit else "none"


def preflight() -> str:
    """The ids of preflight's findings, and whether a waiver may accept them."""
    rows = [(code(id), "yes" if at_own_risk else "no") for id, at_own_risk in FINDINGS.items()]
    return table(("finding", "may be waived"), rows)


GENERATED: dict[str, Callable[[], str]] = {
    "settings": settings_table,
    "recipes": recipes_table,
    "commands": command_line,
    "exit-codes": exit_codes,
    "json": json_output,
    "checks": checks,
    "preflight": preflight,
    "benchmark": benchmark,
    "ratios": ratios,
    "store": store,
}


def filled(markdown: str) -> str:
    """A page with its markers replaced. Raises PluginError for a marker that nothing stands for."""

    def replaced(match: re.Match[str]) -> str:
        if match[1] not in GENERATED:
            raise PluginError(f"nothing is generated for {match[0]}; there are: {', '.join(GENERATED)}")
        return GENERATED[match[1]]()

    return MARKER.sub(replaced, markdown)


# MkDocs' hooks


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and the picture that are not in docs/."""
    for recipe in default_catalog().recipes.values():
        files.append(File.generated(config, f"reference/recipes/{recipe.id}.md", content=recipe_page(recipe)))
    questions = (RECIPES / "README.md").read_text()
    files.append(File.generated(config, "reference/recipe-questions.md", content=questions))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return filled(markdown)
