"""Patches of the ignore list: idempotent, in order, either file optional."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from rigup.catalog.apply_patches import applies
from rigup.catalog.apply_patches import patch_files as patch_files_for
from rigup.catalog.patch import IgnorePatch, When
from rigup.errors import RigupError
from tests.unit.sample import CATALOGUE

GATE = "model.language_model.layers.*.mlp.gate"
RECIPE = CATALOGUE.recipe("vllm-nvfp4-cu130")
PATCH = IgnorePatch(target="quantization-ignore", add=(GATE,), why="x")
DRAFTER = IgnorePatch(target="quantization-ignore", add=("mtp.fc*",), why="x")

# The shape that ModelOpt exports, shortened.
CONFIG = {
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "quantization_config": {
        "config_groups": {"group_0": {"targets": ["Linear"]}},
        "ignore": ["lm_head", "model.visual*", "mtp.layers.0*"],
        "quant_algo": "NVFP4",
        "quant_method": "modelopt",
    },
    "text_config": {"num_hidden_layers": 60},
}
QUANT = {
    "producer": {"name": "modelopt"},
    "quantization": {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"]},
}


def patch_files(published: Mapping[str, str], patches: Sequence[IgnorePatch]) -> dict[str, str]:
    return patch_files_for(published, patches, "vllm")


def files(**contents: object) -> dict[str, str]:
    return {name.replace("__", "."): json.dumps(content) for name, content in contents.items()}


def test_the_pattern_is_added_at_the_end_of_both_lists_and_nothing_else_changes() -> None:
    patched = patch_files(files(config__json=CONFIG, hf_quant_config__json=QUANT), [PATCH])
    config, quant = (json.loads(patched[name]) for name in ("config.json", "hf_quant_config.json"))
    assert config["quantization_config"]["ignore"] == ["lm_head", "model.visual*", "mtp.layers.0*", GATE]
    assert quant["quantization"]["exclude_modules"] == ["lm_head", GATE]
    config["quantization_config"]["ignore"].pop()
    quant["quantization"]["exclude_modules"].pop()
    assert (config, quant) == (CONFIG, QUANT)
    assert list(config) == list(CONFIG)


def test_patching_what_is_patched_changes_nothing() -> None:
    published = files(config__json=CONFIG, hf_quant_config__json=QUANT)
    once = patch_files(published, [PATCH, DRAFTER])
    assert patch_files({**published, **once}, [PATCH, DRAFTER]) == {}


def test_only_the_file_that_lacks_the_pattern_is_given() -> None:
    done = {**QUANT, "quantization": {**QUANT["quantization"], "exclude_modules": ["lm_head", GATE]}}  # type: ignore[dict-item]
    assert set(patch_files(files(config__json=CONFIG, hf_quant_config__json=done), [PATCH])) == {"config.json"}


@pytest.mark.parametrize("name", ["config.json", "hf_quant_config.json"])
def test_either_file_alone_is_enough(name: str) -> None:
    published = {name: json.dumps(CONFIG if name == "config.json" else QUANT)}
    assert set(patch_files(published, [PATCH])) == {name}


def test_a_config_without_quantization_is_left_to_the_other_file() -> None:
    plain = {"architectures": ["X"]}
    assert set(patch_files(files(config__json=plain, hf_quant_config__json=QUANT), [PATCH])) == {"hf_quant_config.json"}


def test_several_patches_keep_their_order_and_come_once() -> None:
    patched = patch_files(files(hf_quant_config__json=QUANT), [DRAFTER, PATCH, DRAFTER])
    modules = json.loads(patched["hf_quant_config.json"])["quantization"]["exclude_modules"]
    assert modules == ["lm_head", "mtp.fc*", GATE]


def test_a_missing_list_is_made() -> None:
    bare = {"quantization_config": {"quant_algo": "NVFP4"}}
    patched = patch_files(files(config__json=bare), [PATCH])
    assert json.loads(patched["config.json"])["quantization_config"]["ignore"] == [GATE]


def test_without_patches_nothing_is_asked_of_the_files() -> None:
    assert patch_files({}, []) == {}


@pytest.mark.parametrize("published", [{}, files(config__json={"a": 1}), {"tokenizer.json": "{}"}])
def test_a_patch_that_has_nothing_to_act_on_is_an_error(published: dict[str, str]) -> None:
    with pytest.raises(RigupError, match=r"neither config\.json"):
        patch_files(published, [PATCH])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not valid JSON .line 1"),
        ("[]", "is not a JSON object"),
        ('{"quantization_config": []}', "has no list of names"),
        ('{"quantization_config": {"ignore": "lm_head"}}', "has no list of names"),
        ('{"quantization_config": {"ignore": [1]}}', "has no list of names"),
    ],
)
def test_a_published_file_of_another_form_is_an_error(text: str, words: str) -> None:
    with pytest.raises(RigupError, match=words):
        patch_files({"config.json": text}, [PATCH])


def test_text_beyond_ascii_stays_readable() -> None:
    patched = patch_files(files(config__json={**CONFIG, "note": "Grüße 模型"}), [PATCH])
    assert "Grüße 模型" in patched["config.json"]


def test_a_patch_before_a_date_is_for_images_made_before_that_day_in_utc() -> None:
    patch = PATCH.model_copy(update={"when": When(image_before=date(2026, 2, 24))})
    assert applies(patch, RECIPE, datetime(2026, 2, 23, 23, 59, 59, tzinfo=UTC))
    assert not applies(patch, RECIPE, datetime(2026, 2, 24, 0, 0, 0, tzinfo=UTC))
    # 01:00 on the 24th in Tokyo is still the 23rd.
    assert applies(patch, RECIPE, datetime(2026, 2, 24, 1, 0, 0, tzinfo=timezone(timedelta(hours=9))))
    assert applies(PATCH, RECIPE, datetime(2030, 1, 1, tzinfo=UTC))


def test_a_patch_for_speculation_is_for_recipes_that_speculate() -> None:
    made = datetime(2026, 3, 1, tzinfo=UTC)
    patch = DRAFTER.model_copy(update={"when": When(image_before=date(2026, 4, 2), speculation=True)})
    assert not applies(patch, RECIPE, made)
    assert applies(patch, CATALOGUE.recipe("vllm-nvfp4-cu130-mtp1"), made)


@pytest.mark.parametrize(("floor", "needed"), [(None, True), ("0.17.0", True), ("0.18.0", False), ("0.33.0", False)])
def test_a_patch_before_a_version_goes_once_the_recipes_floor_is_there(floor: str | None, needed: bool) -> None:
    patch = PATCH.model_copy(update={"when": When(engine_before="0.18.0")})
    recipe = RECIPE.model_copy(update={"engine": RECIPE.engine.model_copy(update={"min": floor})})
    assert applies(patch, recipe, datetime(2026, 3, 1, tzinfo=UTC)) is needed


@pytest.mark.parametrize(
    ("listed", "added"),
    [
        (["mtp*"], False),
        (["mtp.fc*"], False),
        (["mtp.layers.0*"], True),
        (["lm_head"], True),
    ],
)
def test_a_wider_pattern_in_the_checkpoint_makes_the_patch_unneeded(listed: list[str], added: bool) -> None:
    quant = {"quantization": {"exclude_modules": listed}}
    assert bool(patch_files(files(hf_quant_config__json=quant), [DRAFTER])) is added


@pytest.mark.parametrize("entry", ["model.language_model.layers..mlp.gate", "model.language_model.layers.0*"])
def test_an_entry_that_does_not_hit_every_layer_covers_nothing(entry: str) -> None:
    quant = {"quantization": {"exclude_modules": [entry]}}
    patched = patch_files(files(hf_quant_config__json=quant), [PATCH])
    assert json.loads(patched["hf_quant_config.json"])["quantization"]["exclude_modules"] == [entry, GATE]
