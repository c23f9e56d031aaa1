"""`rigup new-recipe`: draft a recipe for any checkpoint on the hub."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from rigup import atomic
from rigup.catalog.draft import Draft, Wish, draft
from rigup.catalog.lint import check_recipe, known_of
from rigup.catalog.loader import default_catalog
from rigup.catalog.memory import fit
from rigup.cli._hosts import add_inventory, read_inventory
from rigup.cli._output import print_json
from rigup.cli._parser import Commands, add_json
from rigup.config.need import Workload
from rigup.errors import Finding, RigupError
from rigup.fit.memory import Fit
from rigup.lock.lockfile import CheckpointLock
from rigup.lock.published import read_published
from rigup.plan.host import CACHE

REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
JSON = {
    "recipe": "its name",
    "files": "the files that were written",
    "unknown": "what is not known, a list of sentences",
    "findings": "what `rigup check` finds, a list: where, line, key, message, remedy, id, advice",
    "memory": "what it takes of the GPUs' memory, in words, or null",
}


def register(commands: Commands) -> None:
    """Add `rigup new-recipe`."""
    parser = commands.add_parser(
        "new-recipe",
        help="draft a recipe for any checkpoint on the hub",
        description="Reads the small files of a repository on the hub and writes a recipe next to the inventory, with "
        "the reason behind each line: engine and image, parallelism, context, sequences, parsers, speculation, "
        "patches. Says what it does not know, and checks the recipe.",
        epilog="Exit codes: 0 written, 1 not written, or written with mistakes.",
    )
    parser.add_argument("repo", metavar="REPO", help="the repository, ORGANIZATION/NAME")
    parser.add_argument("--gpus", type=int, metavar="N", help="for N GPUs (default: as few as hold it)")
    parser.add_argument("--for", dest="workload", choices=get_args(Workload), default="agents", help="default: agents")
    parser.add_argument("--as", dest="name", metavar="NAME", help="the recipe's name (default: the repository's)")
    parser.add_argument("--drafter", metavar="REPO", help="speculate with this drafter (EAGLE3, DFlash, DSpark)")
    parser.add_argument("--branch", default="main", help="default: main")
    add_json(parser, JSON)
    add_inventory(parser)
    parser.set_defaults(run=_new_recipe)


def _new_recipe(options: argparse.Namespace) -> int:
    """Run `rigup new-recipe`. Raises RigupError, with what to do instead, for what cannot be served."""
    name = options.name or options.repo.rpartition("/")[2].lower()
    _check_words(options, name)
    inventory = read_inventory(options)
    directory = inventory.path.parent / "recipes"
    catalog = default_catalog()
    if name in catalog.recipes or ("recipe", name) in catalog.broken:
        raise RigupError(f"there is already a recipe {name!r}", "choose another name with --as")
    endpoint = next(iter(inventory.hosts.values())).settings.hub_endpoint
    published, lock = read_published(endpoint, options.repo, options.branch, CACHE)
    locks = {f"{published.repo}@{published.branch}": lock}
    drafter = None
    if options.drafter:
        drafter, found = read_published(endpoint, options.drafter, "main", CACHE)
        locks[f"{drafter.repo}@{drafter.branch}"] = found
    day = datetime.now(UTC).date().isoformat()
    made = draft(catalog, published, Wish(name, options.workload, day, options.gpus, drafter))
    written = _write(made, directory)
    findings, estimate = _checked(name, locks)
    if options.json:
        data = {"findings": [asdict(finding) for finding in findings], "memory": str(estimate) if estimate else None}
        print_json({"recipe": name, "files": [str(path) for path in written], "unknown": list(made.unknown), **data})
    else:
        _tell(name, written, made, findings, estimate)
    return 1 if any(not finding.advice for finding in findings) else 0


def _check_words(options: argparse.Namespace, name: str) -> None:
    for word in filter(None, (options.repo, options.drafter)):
        if not REPO.fullmatch(word):
            raise RigupError(f"{word!r} is not a repository of the hub", "use ORGANIZATION/NAME")
    if not NAME.fullmatch(name):
        raise RigupError(f"{name!r} cannot name a recipe", "use letters, digits and . _ -")
    if options.gpus is not None and not 1 <= options.gpus <= 64:
        raise RigupError(f"{options.gpus} GPUs are not a host", "use a number from 1 to 64")


def _write(made: Draft, directory: Path) -> list[Path]:
    """Write the files of a draft, none if one of them exists. Raises RigupError."""
    paths = {directory / name: text for name, text in made.files.items()}
    if there := [path for path in paths if path.exists()]:
        raise RigupError(f"{there[0]} already exists", "remove it, or choose another name with --as")
    try:
        for path, text in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(path, text, 0o644)
    except OSError as error:
        raise RigupError(f"{error.filename} cannot be written: {error.strerror}", "check the directory") from error
    return list(paths)


def _checked(name: str, locks: dict[str, CheckpointLock]) -> tuple[list[Finding], Fit | None]:
    """Check the recipe with the files that the hub has; also return what it takes of the memory."""
    catalog = default_catalog()
    recipe = catalog.recipe(name)
    files = {key: lock.contents for key, lock in locks.items()}
    known, *drafters = known_of(catalog, recipe, files)
    estimate = fit(recipe, *known[:2], files=known.files, drafter=drafters[0] if drafters else None)
    return check_recipe(catalog, recipe, files=files), estimate


def _tell(name: str, written: list[Path], made: Draft, findings: list[Finding], estimate: Fit | None) -> None:
    for path in written:
        print(f"Wrote {path}")
    print(f"{name}: {estimate or 'memory use unknown'}")
    print("Not known:")
    for each in made.unknown:
        print(f"  - {each}")
    if findings:
        print("`rigup check` finds:")
        for finding in findings:
            print(f"  {finding}{' (advice)' if finding.advice else ''}")
    else:
        print("`rigup check` finds no mistakes.")
    print(f"Next: `rigup show {name}` prints its command; `recipe: {name}` in the inventory deploys it.")
