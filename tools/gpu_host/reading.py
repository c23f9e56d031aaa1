"""Read rigup's facts of this machine and run its preflight, through pyinfra's local connector.

Prints the outcomes as JSON. A fact is right if its command and its parser work here; preflight must come to a table of
problems or to none, and must know the cards.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyinfra.api.config import Config
from pyinfra.api.connect import connect_all
from pyinfra.api.facts import FactBase
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State, StateStage
from pyinfra.context import ctx_host, ctx_state

import rigup.facts
from rigup.catalog.loader import default_catalog
from rigup.config.settings import Settings
from rigup.lock.lockfile import CheckpointLock, ImageLock, Lock
from rigup.plan.build import make_plan
from rigup.preflight.checks import check
from rigup.preflight.hardware import nvidia_gpus
from rigup.preflight.snapshot import HostCheck
from tasks.gather import gather, read_system
from tools.gpu_host.outcome import Outcome, elapsed

REPOSITORY_FILES = ("config.json", "chat_template.jinja")
RECIPE = "vllm-nvfp4-cu130"


def local_host() -> tuple[State, Host]:
    """Return pyinfra's state and host for this machine, connected."""
    inventory = Inventory((["@local"], {}))  # type: ignore[no-untyped-call]
    state = State(inventory, Config())  # type: ignore[no-untyped-call]
    state.current_stage = StateStage.Connect
    connect_all(state)
    state.current_stage = StateStage.Prepare
    (host,) = inventory
    return state, host


def facts() -> Iterator[type[FactBase[Any]]]:
    """Yield all facts that need no arguments."""
    for module in pkgutil.iter_modules(rigup.facts.__path__):
        for fact in vars(importlib.import_module(f"rigup.facts.{module.name}")).values():
            if isinstance(fact, type) and issubclass(fact, FactBase) and fact.__module__.endswith(f".{module.name}"):
                needed = list(inspect.signature(fact.command).parameters.values())[1:]
                if all(each.default is not inspect.Parameter.empty for each in needed):
                    yield fact


def facts_read(host: Host, state: State) -> Outcome:
    """Read all facts."""
    began, broken, count = time.monotonic(), [], 0
    for fact in facts():
        count += 1
        try:
            host.get_fact(fact)
        except Exception as error:
            broken.append(f"{fact.__name__}: {type(error).__name__}: {error}")
        if host in state.failed_hosts:
            state.failed_hosts.clear()
            broken.append(f"{fact.__name__}: its command failed")
    detail = "; ".join([f"{count - len(broken)} of {count} read", *broken])
    return Outcome("facts", "rigup's facts that need no arguments", not broken, detail, elapsed(began))


def preflight(host: Host, checkpoint: Path) -> Outcome:
    """Run preflight as for a first deploy of the recipe, with a lock that needs no network."""
    began = time.monotonic()
    settings = Settings.from_data({"recipe": RECIPE})
    catalog = default_catalog()
    recipe = catalog.recipe(RECIPE)
    source, tag = catalog.checkpoint(recipe.checkpoint), recipe.image.tag if recipe.image else ""
    locked = CheckpointLock(revision="0" * 40, bytes=1, files=1)
    image = ImageLock(digest="sha256:" + "0" * 64, created=datetime(2026, 1, 1, tzinfo=UTC), bytes=1)
    lock = Lock(images={tag: image}, checkpoints={source.key: locked})
    published = {name: (checkpoint / name).read_text() for name in REPOSITORY_FILES if (checkpoint / name).exists()}
    plan = make_plan("this", settings, catalog, lock, {f"{source.repo}@{locked.revision}": published})
    found = gather(host, read_system(host), plan, settings, lock)
    standing, _ = check(HostCheck(plan, settings, found, lock), datetime.now(UTC).date())
    cards = nvidia_gpus(found.hardware.pci)
    detail = "; ".join([f"{len(cards)} NVIDIA cards", *(f"{each.id}: {each.found}" for each in standing)])
    # Without systemd every such host has this problem.
    right = bool(cards) and "system-init" in {problem.id for problem in standing}
    return Outcome("preflight", "its findings on this host", right, detail, elapsed(began))


def main() -> int:
    """Print the outcomes; the argument is the folder of the checkpoint."""
    state, host = local_host()
    with ctx_state.use(state), ctx_host.use(host):
        outcomes = [facts_read(host, state), preflight(host, Path(sys.argv[1]))]
    print(json.dumps([asdict(outcome) for outcome in outcomes]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
