"""The inventory file of a new project: what was found on each host, and the settings that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from rigup.catalog.loader import Catalog
from rigup.catalog.propose import proposed
from rigup.cli._survey import Seen
from rigup.config.settings import Settings
from rigup.facts.hardware import DiskSpace
from rigup.templates import Lines, filled
from rigup.text import size

Entry = Mapping[str, Any]


class LabYaml:
    """The file with these hosts. `best` is the recipe for all of them, as far as they do not need another one."""

    def __init__(self, catalog: Catalog, entries: Mapping[str, Entry], seen: Mapping[str, Seen | str]) -> None:
        self._catalog, self._entries, self._seen = catalog, entries, seen
        self._choices = {
            name: proposed(catalog, found.cards) for name, found in seen.items() if isinstance(found, Seen)
        }
        self.best = next((choice for choice in self._choices.values() if choice), None)
        self.why_none = "no recipe fits these cards" if self._choices else "no host was reached"

    def text(self) -> str:
        """Return the file."""
        hosts = "\n\n".join(self._host(name) for name in self._entries)
        return filled("project/lab.yaml.j2", recipe=Lines("\n".join(self._recipe())), hosts=Lines(hosts))

    def _recipe(self) -> list[str]:
        if self.best is None:
            return [f"  # recipe: NAME                # {self.why_none}; `rigup recipes` lists them all"]
        return [f"  # {self.best.reason}; `rigup recipes` lists the others", f"  recipe: {self.best.recipe.id}"]

    def _host(self, name: str) -> str:
        found = self._seen[name]
        lines, settings = [f"`rigup init` did not reach it: {found}"], dict[str, str]()
        if isinstance(found, Seen):
            lines, settings = self.about(name, found)
        text = yaml.safe_dump({name: {**self._entries[name], **settings}}, sort_keys=False)
        return "\n".join(f"  {line}" for line in (*(f"# {line}" for line in lines), *text.splitlines()))

    def about(self, name: str, found: Seen) -> tuple[list[str], dict[str, str]]:
        """Return what to say about a host that was reached, and its own settings."""
        choice, lines, settings = self._choices[name], list(found.lines), dict[str, str]()
        if choice is None:
            return [*lines, "no recipe fits these cards"], {}
        if self.best and choice.recipe.id != self.best.recipe.id:
            lines.append(choice.reason)
            settings["recipe"] = choice.recipe.id
        needed = sum(each.bytes or 0 for each in self._catalog.checkpoints_of(choice.recipe))
        if needed and not _has_space(found.disks, needed):
            takes = f"the checkpoint takes {size(needed)}, and {Settings.model_fields['model_store'].default} has less"
            if store := _other_store(found.disks, needed):
                lines.append(f"{takes}: `model_store` is {store}")
                settings["model_store"] = store
            else:
                lines.append(f"{takes}: mount a file system for it, and set `model_store` or `model_disk`")
        return lines, settings


def _has_space(disks: Sequence[DiskSpace], needed: int) -> bool:
    """Return whether the usual store has so many bytes, as far as its file system is known."""
    usual = f"{Settings.model_fields['model_store'].default}/"
    holding = [disk for disk in disks if usual.startswith(f"{disk.mount.rstrip('/')}/")]
    return not holding or max(holding, key=lambda disk: len(disk.mount)).available >= needed


def _other_store(disks: Sequence[DiskSpace], needed: int) -> str | None:
    """Return a directory for the checkpoints on the file system with the most space; None if there is none."""
    disk = max(disks, key=lambda disk: disk.available)
    path = f"{disk.mount.rstrip('/')}/models"
    try:
        Settings.model_validate({"model_store": path})
    except ValidationError:
        return None
    return path if disk.available >= needed else None
