"""Propose a recipe for the cards of a host. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from rigup.catalog.lint import Hardware, check_recipe
from rigup.catalog.loader import Catalog
from rigup.catalog.rank import Choice, ranked
from rigup.config.need import Workload
from rigup.hardware.cards import Card


def proposed(catalog: Catalog, cards: Sequence[Card]) -> Choice | None:
    """Return the best recipe that a deploy accepts on these cards; None if there is none.

    Agents come first: what serves them serves a chat, too.
    """
    if not cards:
        return None
    vram_mib = min(max(card.memory_mib) for card in cards)
    capabilities = {card.capability for card in cards}
    for workload in get_args(Workload):
        for choice in ranked(catalog, workload, len(cards)):
            recipe = choice.recipe
            if recipe.vram_mib > vram_mib or capabilities != {recipe.capability}:
                continue
            if all(finding.advice for finding in check_recipe(catalog, recipe, Hardware(len(cards), vram_mib))):
                return replace(choice, reason=f"the best for {workload} on these cards: {choice.reason}")
    return None
