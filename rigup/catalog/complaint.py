"""What a rule says about a recipe, and what rules look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from rigup.catalog.checkpoint import Checkpoint, Files
from rigup.catalog.memory import Known
from rigup.catalog.model import Model
from rigup.catalog.recipe import Recipe, option_name
from rigup.config.yaml_file import Loc


class Complaint(NamedTuple):
    """A fault of a recipe: a stable id to accept it by, the key, what is wrong, and what to do.

    `advice`: the recipe may work nevertheless, so that it stops no deploy.
    """

    id: str
    loc: Loc
    message: str
    remedy: str = ""
    advice: bool = False


@dataclass(frozen=True)
class Case:
    """A recipe with its checkpoint and what is known about the model; `vram_mib` of other cards than the recipe's.

    `files` is what the lock knows of the checkpoint's files, if there is one. `drafter` is the checkpoint of a drafter
    that has one of its own.
    """

    recipe: Recipe
    checkpoint: Checkpoint
    model: Model | None
    vram_mib: int | None = None
    files: Files | None = None
    drafter: Known | None = None

    def where(self, *names: str) -> Loc:
        """Return the place of the first of these options in `argv`."""
        for index, argument in enumerate(self.recipe.argv):
            if option_name(argument) in names:
                return ("argv", index)
        return ("argv",)


Rule = Callable[[Case], Iterator[Complaint]]
