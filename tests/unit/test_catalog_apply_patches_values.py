"""Patches of single values: YaRN by the route of each engine, and the defaults for sampling."""

import json
from pathlib import Path
from typing import Any

import pytest

from rigup.catalog.apply_patches import patch_files, reads
from rigup.catalog.engine_args import arguments
from rigup.catalog.lint import check_catalog
from rigup.catalog.loader import load_catalog
from rigup.catalog.patch import SamplingPatch, YarnPatch
from rigup.errors import InputError, RigupError
from tests.unit.sample import CATALOGUE

ROPE = {"mrope_interleaved": True, "mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25, "rope_theta": 10000000}
TEXT = {"max_position_embeddings": 262144, "rope_parameters": {**ROPE, "rope_type": "default"}}
CONFIG = {"architectures": ["X"], "text_config": TEXT}
GENERATION = {"temperature": 1.0, "top_p": 0.95, "eos_token_id": [1, 2]}
CARVE = CATALOGUE.recipe("vllm-carve-yarn-900k")
AWQ = CATALOGUE.recipe("sglang-awq-yarn-524k")


def yarn(factor: float = 2.0, **values: Any) -> YarnPatch:
    data = {"target": "yarn", "factor": factor, "tokens": 262144, "rope": ROPE, "why": "x", **values}
    return YarnPatch.model_validate(data)


def sampling(**values: Any) -> SamplingPatch:
    return SamplingPatch.model_validate({"target": "generation-defaults", "set": values, "why": "x"})


def test_sglang_reads_yarn_from_a_patched_config_with_all_keys_of_the_rope() -> None:
    patched = patch_files({"config.json": json.dumps(CONFIG)}, AWQ.patches, "sglang")
    config = json.loads(patched["config.json"])
    assert config["text_config"]["rope_parameters"] == {
        **ROPE,
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 262144,
    }
    config["text_config"]["rope_parameters"] = TEXT["rope_parameters"]
    assert config == CONFIG
    assert patch_files({"config.json": patched["config.json"]}, AWQ.patches, "sglang") == {}
    assert not any("override" in argument for argument, _ in arguments(AWQ))


def test_vllm_gets_yarn_as_an_argument_and_its_config_stays_as_published() -> None:
    [(argument, key)] = [each for each in arguments(CARVE) if each[0].startswith("--hf-overrides=")]
    assert json.loads(argument.partition("=")[2]) == {
        "text_config": {"rope_parameters": json.loads(json.dumps(yarn(4.0).parameters))}
    }
    assert key == "patches[0]"
    assert patch_files({"config.json": json.dumps(CONFIG)}, [yarn(4.0)], "vllm") == {}


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(
    "published",
    [
        {**TEXT, "rope_parameters": {**ROPE, "rope_theta": 1000000}},
        {**TEXT, "rope_parameters": {**ROPE, "another": 1}},
        {**TEXT, "max_position_embeddings": 131072},
    ],
)
def test_a_rope_that_is_not_the_checkpoints_own_is_refused(engine: str, published: dict[str, Any]) -> None:
    with pytest.raises(RigupError, match="the yarn patch has the rope"):
        patch_files({"config.json": json.dumps({"text_config": published})}, [yarn()], engine)


@pytest.mark.parametrize("files", [{}, {"config.json": "{}"}, {"config.json": '{"text_config": {}}'}])
def test_a_config_without_a_rope_is_refused(files: dict[str, str]) -> None:
    with pytest.raises(RigupError, match=r"no text_config\.rope_parameters"):
        patch_files(files, [yarn()], "sglang")


def test_sampling_defaults_change_what_differs_and_keep_the_rest() -> None:
    patched = patch_files({"generation_config.json": json.dumps(GENERATION)}, [sampling(temperature=0.6)], "vllm")
    assert json.loads(patched["generation_config.json"]) == {**GENERATION, "temperature": 0.6}
    assert patch_files(patched, [sampling(temperature=0.6)], "vllm") == {}
    assert patch_files({"generation_config.json": json.dumps(GENERATION)}, [sampling(top_p=0.95)], "vllm") == {}


def test_sampling_defaults_of_a_checkpoint_without_such_a_file_are_refused_with_the_way_out() -> None:
    with pytest.raises(RigupError, match="--override-generation-config"):
        patch_files({}, [sampling(temperature=0.6)], "vllm")


def test_only_the_files_that_a_patch_looks_at_are_asked_for() -> None:
    assert reads([]) == []
    assert reads([sampling(top_k=20), yarn()]) == ["generation_config.json", "config.json"]


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ("{target: yarn, factor: 2, tokens: 262144, why: x}", "mine.yaml:7: patches[0].rope: is missing"),
        ("{target: chat-template, why: x}", "patches[0]: changes nothing: use text, system: merge or thinking: false"),
        ("{target: chat-template, sistem: merge, why: x}", "patches[0].sistem: unknown key: did you mean system?"),
        ("{target: generation-defaults, set: {temprature: 1}, why: x}", "temprature: unknown key: did you mean temp"),
        (
            "{target: generation-defaults, set: {top_p: 1.5}, why: x}",
            "patches[0].set.top_p: must be at most 1.0",
        ),
        ("{target: rope, why: x}", "patches[0]: has no known target: target: one of quantization-ignore, yarn"),
        ("{add: [mtp.fc*], why: x}", "patches[0]: has no known target"),
        ("{target: quantization-ignore, add: [mlp.gate], why: x}", "patches[0]: 'mlp.gate' also matches gate_up_proj"),
    ],
)
def test_a_wrong_patch_is_refused_where_it_stands(tmp_path: Path, patch: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        mine(tmp_path, "vllm-nvfp4-cu130", f"patches: [{patch}]\n")
    assert words in str(caught.value)


def test_an_option_that_a_patch_gives_stands_only_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="argv has --hf-overrides, which the yarn patch also sets: keep one"):
        mine(tmp_path, "vllm-carve-yarn-900k", "argv: {add: ['--hf-overrides={}']}\n")


def test_more_context_than_yarn_reaches_is_a_finding(tmp_path: Path) -> None:
    catalog = mine(
        tmp_path, "sglang-awq-yarn-524k", "argv: {remove: [--context-length], add: [--context-length=524289]}\n"
    )
    [finding] = check_catalog(catalog, ["mine"])
    assert "factor: 2 x 262144 tokens are 524288, but the context is 524289" in str(finding)


def mine(directory: Path, base: str, text: str) -> Any:
    own = "id: mine\ntitle: Mine\nextends: {}\nstatus: assembled\ntool_calls: unknown\n"
    own += "evidence: [{{source: here, kind: assembled, says: a guess}}]\n"
    (directory / "mine.yaml").write_text(own.format(base) + text)
    catalog = load_catalog(Path(__file__).resolve().parents[2] / "recipes", directory)
    catalog.recipe("mine")
    return catalog
