"""The catalog's container recipes, deployed: those of vLLM on the real engine, those of SGLang on the stand-in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from lab import machine, world
from lab.hub import MODEL
from lab.registry.image import OFFERS
from rigup.catalog.loader import default_catalog
from rigup.catalog.recipe import Recipe
from tests.lab.one_rig.rig import OneRig
from tests.lab.rigs import Rigs

CATALOGUE = default_catalog()
# One image is for tests that need an engine that misbehaves.
OFFERED = {f"{offer.name}:{offer.tag}" for offer in OFFERS if offer.engine != "standin"}
# The lab has a miniature of this model alone.
DEPLOYABLE = sorted(
    recipe.id
    for recipe in CATALOGUE.recipes.values()
    if recipe.image
    and not recipe.not_deployable
    and recipe.status != "broken"
    and not recipe.findings
    and CATALOGUE.checkpoint(recipe.checkpoint).model == MODEL
)
# An image that Python starts, SGLang's stand-in of a fork, speculation; then what the host had before.
SWITCHES = ("vllm-nvfp4-voipmonitor", "sglang-nvfp4-b12x", "vllm-nvfp4-cu130-mtp1")


def serve(rigs: Rigs, host: machine.Host, recipe: Recipe, gpus: list[int] | str = "all") -> str:
    """Deploys a recipe, sees it answer, and returns the container's log."""
    rigs.write(recipe=recipe.id, endpoints={"main": {"gpus": gpus}})
    result = rigs.deploy()
    assert result.code == 0, f"{recipe.id}:\n{result.output}"
    [model] = json.loads(host.shell("curl -sS http://127.0.0.1:8000/v1/models").stdout)["data"]
    assert model["id"] == recipe.served_name
    assert model["owned_by"] == recipe.engine.name
    return host.shell(
        "journalctl -b -u llm@main -o cat _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID llm@main)"
    ).stdout


def test_the_lab_offers_every_image_that_a_deployable_recipe_names() -> None:
    tags = {recipe.image.tag for name in DEPLOYABLE if (recipe := CATALOGUE.recipe(name)).image}
    assert tags == OFFERED
    assert len(DEPLOYABLE) >= 27


def test_different_recipes_follow_each_other_on_one_host(one_rig: OneRig) -> None:
    try:
        for name in SWITCHES:
            recipe = CATALOGUE.recipe(name)
            log = serve(one_rig.rigs, one_rig.host, recipe)
            if recipe.engine.name == "sglang":
                assert "lab: a stand-in serves Qwen3.5: 4 GPUs visible, 4 needed" in log
            else:
                assert "lab: --tensor-parallel-size 4 -> 1 (one CPU)" in log
    finally:
        one_rig.rigs.write()
        one_rig.deploy()


# As `vllm-nvfp4-cu130-mtp1`; the lab's engine leaves prefix caching on, which on a CPU fails with the first request.
DRAFTS = """\
id: own-drafts
title: The real vLLM with a drafter, healthy and dead at its first request
extends: vllm-nvfp4-cu130-mtp1
status: assembled
tool_calls: unknown
evidence: [{source: the lab, kind: assembled, says: it fails on a CPU}]
env: {LAB_KEEP_PREFIXES: "1"}
"""


@pytest.mark.soak
def test_the_real_engine_that_dies_at_its_first_request_is_rolled_back(one_rig: OneRig) -> None:
    recipes = one_rig.rigs.directory / "recipes"
    recipes.mkdir(exist_ok=True)
    (recipes / "own-drafts.yaml").write_text(DRAFTS)
    try:
        log = serve(one_rig.rigs, one_rig.host, CATALOGUE.recipe("vllm-nvfp4-cu130"))
        assert "lab: --tensor-parallel-size 4 -> 1 (one CPU)" in log
        one_rig.rigs.write(recipe="own-drafts")
        result = one_rig.rigs.deploy()
        assert result.code == 1, result.output
        assert "own-drafts as main came up but failed its verification: endpoint completes a chat" in result.output
        assert re.search(r"Known cause: .*\(triton-missing\)", result.output), result.output
        assert "the previous generation serves again and is verified." in result.output
        unit = one_rig.host.shell("systemctl show --property=ActiveState,Description llm@main").stdout
        assert "ActiveState=active" in unit and "(vllm-nvfp4-cu130)" in unit
        answered = "curl -sS -o /dev/null -w '%{http_code}' http://127.0.0.1:8000/health"
        assert one_rig.host.shell(answered).stdout == "200"
    finally:
        one_rig.rigs.write()
        one_rig.deploy()


@pytest.fixture(scope="module")
def eight(services: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rigs, machine.Host]]:
    """A host with eight cards, which takes recipes for fewer as well."""
    host = machine.start("rig7", release="trixie", login="ops", gpus=8)
    host.reset()
    machine.write_known_hosts()
    rigs = Rigs(tmp_path_factory.mktemp("catalog"), {host.name: world.connection(host)}, world.defaults())
    yield rigs, host
    host.remove()
    machine.write_known_hosts()


@pytest.mark.soak
@pytest.mark.parametrize("name", DEPLOYABLE)
def test_every_recipe_serves(eight: tuple[Rigs, machine.Host], name: str) -> None:
    recipe = CATALOGUE.recipe(name)
    serve(*eight, recipe, gpus=list(range(recipe.gpus)))
