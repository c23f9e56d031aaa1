"""A recipe by need: the ranking, its reasons, and what the inventory makes of it."""

from pathlib import Path

import pytest

from rigup.catalog.rank import best, ranked
from rigup.config.inventory import load_inventory
from rigup.config.need import Need
from rigup.config.settings import Settings
from rigup.errors import InputError, RigupError
from rigup.lock.lockfile import Lock
from rigup.plan.build import make_plan
from tests.unit.sample import CATALOGUE, PUBLISHED, lock, plan


def test_for_agents_reliable_tool_calls_come_before_speed() -> None:
    choices = ranked(CATALOGUE, "agents", 4, model="Qwen3.5-397B-A17B")
    assert choices[0].recipe.id == "vllm-nvfp4-cu130"
    assert choices[0].reason.startswith(
        "tool calls reliable; reported, assembled from several sources; 64 tok/s for one request"
    )
    order = [("reliable", "usually", "unknown").index(choice.recipe.tool_calls) for choice in choices]
    assert order == sorted(order)


def test_for_batches_the_sum_of_many_requests_counts() -> None:
    choice = ranked(CATALOGUE, "batch", 4)[0]
    assert (choice.recipe.id, "2277 tok/s with many requests" in choice.reason) == ("vllm-nvfp4-voipmonitor", True)


@pytest.mark.parametrize("workload", ["agents", "chat", "code", "batch", "benchmark"])
def test_only_what_can_be_deployed_and_is_not_superseded_is_proposed(workload: str) -> None:
    for choice in ranked(CATALOGUE, workload, 8):  # type: ignore[arg-type]
        recipe = choice.recipe
        assert recipe.status not in ("superseded", "broken")
        assert not recipe.source and not recipe.not_deployable


def test_a_need_takes_exactly_the_gpus_that_are_named() -> None:
    assert best(CATALOGUE, Need.model_validate({"for": "chat"}), 2).gpus == 2
    with pytest.raises(RigupError, match=r"no recipe for agents on 3 GPUs .sglang.: `rigup recipes --for agents`"):
        best(CATALOGUE, Need.model_validate({"for": "agents", "engine": "sglang"}), 3)


def test_the_plan_serves_what_the_need_picks() -> None:
    known = lock().merged(Lock(choices={"agents-4gpu-vllm": "vllm-nvfp4-cu130"}))
    need = {"for": "agents", "engine": "vllm"}
    for settings in ({"recipe": need}, {"endpoints": {"main": {"recipe": need, "gpus": [0, 1, 2, 3]}}}):
        made = make_plan("rig1", Settings.from_data(settings), CATALOGUE, known, PUBLISHED)
        assert made.endpoint("main").recipe == "vllm-nvfp4-cu130"
    with pytest.raises(RigupError, match="the lock has no choice of a recipe for chat-4gpu: run `rigup lock`"):
        make_plan("rig1", Settings.from_data({"recipe": {"for": "chat"}}), CATALOGUE, known, PUBLISHED)


def test_what_resolves_a_lock_has_its_inventory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIGUP_INVENTORY", "other.yaml")
    with pytest.raises(RigupError, match=r"run `RIGUP_INVENTORY=other\.yaml rigup lock`"):
        make_plan("rig1", Settings.from_data({"recipe": {"for": "chat"}}), CATALOGUE, lock(), PUBLISHED)


def test_a_choice_that_the_catalog_lost_is_refused_with_how_to_choose_again() -> None:
    known = lock().merged(Lock(choices={"agents-4gpu": "gone"}))
    with pytest.raises(RigupError, match=r"recipe gone for agents-4gpu.*: `rigup update agents-4gpu` chooses another"):
        make_plan("rig1", Settings.from_data({"recipe": {"for": "agents"}}), CATALOGUE, known, PUBLISHED)


def test_a_need_survives_the_way_through_the_inventory(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text("hosts:\n  rig1: {address: 10.0.0.1, recipe: {for: agents, gpus: 4}}\n", encoding="utf-8")
    written = load_inventory(file).hosts["rig1"].written
    assert written["recipe"]["for"] == "agents"
    assert Settings.from_data(written).recipe == Need.model_validate({"for": "agents", "gpus": 4})


@pytest.mark.parametrize(
    ("need", "words"),
    [
        ("{for: agent}", "lab.yaml:2: hosts.rig1.recipe.for: must be agents, chat"),
        ("{four: agents}", "hosts.rig1.recipe.for: is missing"),
        ("{for: agents, gpu: 4}", "hosts.rig1.recipe.gpu: unknown key: did you mean gpus?"),
        ("{for: agents, gpus: 0}", "hosts.rig1.recipe.gpus"),
    ],
)
def test_a_wrong_need_is_told_with_file_and_line(tmp_path: Path, need: str, words: str) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(f"hosts:\n  rig1: {{address: 10.0.0.1, recipe: {need}}}\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_inventory(file)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vllm-nvfp4-orangezed-mtp5", "is built from source, which rigup does not do"),
        ("vllm-nvfp4-ixtrix-patched", "cannot be deployed .it mounts three changed files"),
    ],
)
def test_what_cannot_be_deployed_is_refused_with_the_reason(name: str, words: str) -> None:
    with pytest.raises(RigupError, match=words):
        plan(recipe=name)
