"""Recipes that cannot work: `rigup check` and a deploy refuse each with its finding, and tell where it is written."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from rigup.catalog.lint import check_catalog, check_recipe
from rigup.catalog.loader import default_catalog
from rigup.cli.main import main
from rigup.config.settings import Settings
from rigup.errors import InputError
from tasks.preflight import _check_recipes
from tests.unit.sample import CATALOGUE, OWN

WIDE = """\
id: Wide
attention_heads: 96
kv_heads: 8
sources: {attention_heads: its config.json, kv_heads: its config.json}
"""
WIDE_CHECKPOINT = "id: wide\nrepo: acme/wide\nbranch: main\nmodel: Wide\nquantization: NVFP4\n"

VLLM, MTP, SGLANG = "vllm-nvfp4-cu130", "vllm-nvfp4-cu130-mtp1", "sglang-nvfp4-minimal"
GLM, DEEPSEEK = "glm-5.1-8gpu", "deepseek-v4-flash-2gpu"
DRAFTED = "workload: [chat]\nspeculation: {method: %s, n: 3}\n"
FEWER_TOKENS = "argv: {remove: [--max-num-batched-tokens], add: [--max-num-batched-tokens=%s%s]}\n"

WRONG = {
    # Arithmetic.
    "six GPUs for 32 heads": (VLLM, "gpus: 6\nparallel: {tp: 6}\n", "recipe-tp-heads"),
    "three GPUs for 8 KV heads": (VLLM, "checkpoint: wide\ngpus: 3\nparallel: {tp: 3}\n", "recipe-tp-kv-heads"),
    "a share in percent": (VLLM, "argv: [--gpu-memory-utilization=95]\n", "recipe-memory-share"),
    "a share above one": (VLLM, "argv: [--gpu-memory-utilization=1.05]\n", "recipe-memory-share"),
    "fewer tokens than sequences": (VLLM, FEWER_TOKENS % ("64", ""), "recipe-batched-tokens"),
    "a prompt in one piece": (VLLM, FEWER_TOKENS % ("8192", ", --no-enable-chunked-prefill"), "recipe-chunked-prefill"),
    "more sequences than states": (
        VLLM,
        "argv: {remove: [--max-num-seqs], add: [--max-num-seqs=2048]}\n",
        "recipe-state-blocks",
    ),
    # What does not fit the model.
    "the parser of another form": (VLLM, "tool_parser: hermes\n", "recipe-tool-parser"),
    "EAGLE-3 without its drafter": (MTP, DRAFTED % "eagle3", "recipe-draft-model"),
    "DFlash without its drafter": (MTP, DRAFTED % "dflash", "recipe-draft-model"),
    "DSpark without its drafter": (MTP, DRAFTED % "dspark", "recipe-draft-model"),
    # What the endpoint decides.
    "GPUs chosen by variable": (VLLM, "env: {CUDA_VISIBLE_DEVICES: '0,1'}\n", "recipe-visible-devices"),
    "two nodes": (VLLM, "argv: {add: [--nnodes=2]}\n", "recipe-nodes"),
    "the second node": (VLLM, "argv: {add: [--node-rank=1]}\n", "recipe-nodes"),
    # What the cards lack.
    "attention for Hopper": (VLLM, "argv: {add: [--attention-backend=FLASHMLA]}\n", "recipe-sm120"),
    "attention for B200": (
        SGLANG,
        "argv: {remove: [--attention-backend], add: [--attention-backend=trtllm_mha]}\n",
        "recipe-sm120",
    ),
    "GLM-5.1 on four cards": (GLM, "gpus: 4\nparallel: {tp: 4, dcp: 1}\n", "recipe-memory"),
    # Ten and more of our own.
    "GLM-5.2 on four cards": (GLM, "checkpoint: glm-5.2-nvfp4\ngpus: 4\nparallel: {tp: 4}\n", "recipe-memory"),
    "another model's reasoning": (VLLM, "reasoning_parser: deepseek_v4\n", "recipe-reasoning-parser"),
    "Qwen's parser for GLM": (GLM, "tool_parser: qwen3_coder\n", "recipe-tool-parser"),
    "MTP of a checkpoint with DSpark": (DEEPSEEK, "speculation: {method: mtp, n: 3}\n", "recipe-draft-model"),
    "DFlash2 without its drafter": ("glm-5.3-flash-mtp3", "speculation: {method: dflash2}\n", "recipe-draft-model"),
    "a cache split further than it is doubled": (VLLM, "parallel: {dcp: 4}\n", "recipe-dcp-kv-heads"),
    "a share of nothing": (SGLANG, "argv: {add: [--mem-fraction-static=0]}\n", "recipe-memory-share"),
    "GPUs chosen for the runtime": (SGLANG, "env: {NVIDIA_VISIBLE_DEVICES: all}\n", "recipe-visible-devices"),
    "a cluster of SGLang": (SGLANG, "argv: {add: ['--dist-init-addr=192.0.2.1:5000']}\n", "recipe-nodes"),
    "FlashAttention 3": (
        SGLANG,
        "argv: {remove: [--attention-backend], add: [--attention-backend=fa3]}\n",
        "recipe-sm120",
    ),
    "experts for B200": (VLLM, "argv: {add: [--moe-backend=flashinfer_trtllm]}\n", "recipe-sm120"),
    "another model's switch": (
        DEEPSEEK,
        "patches: [{target: chat-template, thinking: false, why: speed}]\n",
        "recipe-thinking",
    ),
    "a release without the architecture": (
        VLLM,
        'checkpoint: glm-5.3-flash-nvfp4\nengine: {max: "0.17.0"}\n',
        "recipe-architecture",
    ),
    "an engine before the model": (VLLM, 'engine: {max: "0.16.0"}\n', "recipe-model-engine"),
    "a mistake that is not there": (VLLM, "findings: {recipe-tp-heads: for fun}\n", "recipe-declared"),
}

# The other one is about the catalog's own order.
STOPPING = {name: each for name, each in WRONG.items() if each[2] != "recipe-declared"}


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the user's recipes, next to an inventory."""
    (tmp_path / "lab.yaml").write_text("hosts: {rig1: {address: 192.0.2.1, recipe: mine}}\n")
    monkeypatch.setenv("RIGUP_INVENTORY", str(tmp_path / "lab.yaml"))
    directory = tmp_path / "recipes"
    for name, text in (("models/Wide.yaml", WIDE), ("checkpoints/wide.yaml", WIDE_CHECKPOINT)):
        (directory / name).parent.mkdir(parents=True)
        (directory / name).write_text(text)
    return directory


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(words) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def deploy(recipe: str = "mine") -> None:
    """Check the recipe of a host as a deploy does before it asks the host for anything."""
    _check_recipes({"rig1": Settings(recipe=recipe)}, default_catalog(), {}, date(2026, 12, 1))


@pytest.mark.parametrize(("base", "text", "id"), WRONG.values(), ids=WRONG.keys())
def test_check_refuses_what_cannot_work(
    recipes: Path, capsys: pytest.CaptureFixture[str], base: str, text: str, id: str
) -> None:
    (recipes / "mine.yaml").write_text(OWN.format(base=base) + text)
    lines = told(capsys, "check", "mine", code=1).splitlines()
    found = [line for line in lines if line.endswith(f"[{id}]")]
    assert len(found) == 1, lines
    # It is this change that was found, and not something that the recipe inherits.
    assert id not in [finding.id for finding in check_recipe(CATALOGUE, CATALOGUE.recipe(base))]


@pytest.mark.parametrize(("base", "text", "id"), STOPPING.values(), ids=STOPPING.keys())
def test_a_deploy_refuses_it_too_and_names_host_file_and_line(recipes: Path, base: str, text: str, id: str) -> None:
    (recipes / "mine.yaml").write_text(OWN.format(base=base) + text)
    with pytest.raises(InputError) as caught:
        deploy()
    [finding] = [finding for finding in caught.value.findings if finding.id == id]
    assert str(finding).startswith("rig1: recipe: recipe mine: ")
    assert f"{recipes}/mine.yaml:" in str(finding) or f"/recipes/{base}.yaml:" in str(finding)


def test_a_finding_says_what_is_wrong_and_what_to_do(recipes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipes / "mine.yaml").write_text(OWN.format(base=VLLM) + "gpus: 6\nparallel: {tp: 6}\ntool_parser: hermes\n")
    text = told(capsys, "check", "mine", code=1)
    assert (
        f"{recipes}/mine.yaml:8: parallel.tp: 6 GPUs cannot share the 32 attention heads of Qwen3.5-397B-A17B evenly: "
        "use a number that divides 32, with pp or dp for the other GPUs [recipe-tp-heads]\n" in text
    )
    assert (
        f"{recipes}/mine.yaml:9: tool_parser: hermes does not read the tool calls of Qwen3.5-397B-A17B: they stay in "
        "the text: use qwen3_coder or qwen3_xml [recipe-tool-parser]\n" in text
    )


def test_what_may_work_is_advice_and_stops_no_deploy(recipes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deploy("vllm-nvfp4-cu130")
    assert capsys.readouterr().err == ""
    (recipes / "mine.yaml").write_text(OWN.format(base=VLLM) + "speculation: {method: mtp, n: 1}\n")
    told(capsys, "check", "mine", code=1)
    deploy()
    said = capsys.readouterr().err
    assert "Advice about recipes; the deploy continues." in said
    assert (
        "speculation is known to corrupt those of several steps" in said
        and "[recipe-agents-speculation, advice]" in said
    )


@pytest.mark.parametrize(("sequences", "found"), [(600, []), (1024, [True]), (2048, [False])])
def test_sequences_are_certain_to_be_too_many_beyond_the_error_of_the_estimate(
    recipes: Path, sequences: int, found: list[bool]
) -> None:
    # 75.8 GiB at 0.80, less 58.5 of weights and 7 for the engine: 10.3 GiB, and 16 MiB for each sequence.
    text = f"argv: {{remove: [--max-num-seqs], add: [--max-num-seqs={sequences}]}}\n"
    (recipes / "mine.yaml").write_text(OWN.format(base=VLLM) + text)
    catalog = default_catalog()
    assert [each.advice for each in check_recipe(catalog, catalog.recipe("mine"))] == found


@pytest.mark.parametrize(("newest", "found"), [("0.19.1", []), ("0.20.0", ["recipe-state-blocks"])])
def test_sequences_beyond_the_states_stop_only_engines_that_check_them(
    recipes: Path, newest: str, found: list[str]
) -> None:
    text = f'engine: {{max: "{newest}"}}\nargv: {{remove: [--max-num-seqs], add: [--max-num-seqs=2048]}}\n'
    (recipes / "mine.yaml").write_text(OWN.format(base=VLLM) + text)
    catalog = default_catalog()
    assert [each.id for each in check_recipe(catalog, catalog.recipe("mine"))] == found


def test_weights_that_stay_on_the_host_take_none_of_the_gpus_memory(recipes: Path) -> None:
    four = OWN.format(base=GLM) + "gpus: 4\nparallel: {tp: 4}\nargv: {add: [--cpu-offload-gb=%s]}\n"
    for gib, found in ((20, ["recipe-memory"]), (40, [])):
        (recipes / "mine.yaml").write_text(four % gib)
        catalog = default_catalog()
        assert [each.id for each in check_recipe(catalog, catalog.recipe("mine"))] == found, gib


def test_every_recipe_of_the_catalog_is_sound_or_declares_what_is_not() -> None:
    assert check_catalog(CATALOGUE) == []
    declared = {name: sorted(recipe.findings) for name, recipe in CATALOGUE.recipes.items() if recipe.findings}
    assert declared == {
        "deepseek-v4-flash-8gpu": ["recipe-expert-parallel"],
        "minimax-m2.7-2gpu": ["recipe-variable"],
        **{f"vllm-nvfp4-destroyed-mtp{count}": ["recipe-state-blocks"] for count in (1, 2, 5)},
    }


def test_a_declared_mistake_is_told_by_check_and_stops_a_deploy(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "check", "vllm-nvfp4-destroyed-mtp1")
    assert "has a known mistake, for which a deploy refuses it: the source sets no --max-num-seqs" in text
    assert text.endswith("1 recipe: no other mistakes found\n")
    with pytest.raises(InputError, match=r"1024 sequences, the default, need 16.4 GiB .*\[recipe-state-blocks\]"):
        deploy("vllm-nvfp4-destroyed-mtp1")


BROKEN = {
    "not YAML": "id: mine\ntitle: [\n",
    "an unknown key": OWN.format(base=VLLM) + "gpu: 4\n",
    "no such base": OWN.format(base="nothing-like-it"),
    "no such checkpoint": OWN.format(base=VLLM) + "checkpoint: nothing-like-it\n",
    "a broken checkpoint": OWN.format(base=VLLM) + "checkpoint: bad\n",
    "another file's id": OWN.format(base=VLLM).replace("id: mine", "id: vllm-nvfp4-v2"),
    "a wrong argument": OWN.format(base=VLLM) + "argv: {add: [--port=80]}\n",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_of_the_user_is_reported_and_the_others_work(
    recipes: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (recipes / "mine.yaml").write_text(text)
    (recipes / "good.yaml").write_text(OWN.format(base=VLLM).replace("mine", "good"))
    (recipes / "checkpoints" / "bad.yaml").write_text("id: bad\nrepo: bad\n")
    where = f"{recipes}/mine.yaml"

    listed = told(capsys, "recipes")
    assert "good " in listed and "vllm-nvfp4-v2 " in listed and "\nmine " not in listed
    assert "These recipes of yours have mistakes and are left out:" in listed and f"  {where}:" in listed
    assert "services:" in told(capsys, "show", "good", "--as", "compose")
    assert "good: arguments accepted by vllm 0.17.0, vllm 0.33.0" in told(capsys, "check", "good")
    everything = told(capsys, "check", code=1)
    assert f"{where}:" in everything and f"{recipes}/checkpoints/bad.yaml:" in everything
    for command in ("show", "check"):
        assert f"{where}:" in told(capsys, command, "mine", code=1)

    deploy("good")
    deploy("vllm-nvfp4-cu130")
    with pytest.raises(InputError, match=rf"rig1: recipe: the recipe cannot be read: {where}:\d+: .*\[recipe-schema\]"):
        deploy()


def test_what_extends_a_broken_file_points_at_it(recipes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipes / "base.yaml").write_text("id: base\n  title: x\n")
    (recipes / "mine.yaml").write_text(OWN.format(base="base"))
    text = told(capsys, "check", "mine", code=1)
    assert f"{recipes}/mine.yaml:3: extends: the recipe 'base' has mistakes: correct {recipes}/base.yaml:2" in text


def test_a_recipe_named_like_one_of_the_catalog_is_not_used_in_its_place(recipes: Path) -> None:
    (recipes / "vllm-nvfp4-v2.yaml").write_text(OWN.format(base=VLLM).replace("mine", "vllm-nvfp4-v2"))
    deploy("vllm-nvfp4-cu130")
    with pytest.raises(InputError, match=r"vllm-nvfp4-v2.yaml:1: id: 'vllm-nvfp4-v2' already exists in "):
        deploy("vllm-nvfp4-v2")
    catalog = default_catalog()
    assert "vllm-nvfp4-v2" in catalog.recipes and catalog.recipes["vllm-nvfp4-v2"].checkpoint == "qwen3.5-397b-nvfp4-v2"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layers: 60\n", "Wide.yaml:1: has no source for layers: add each to sources"),
        ("images: 'yes'\n", "Wide.yaml:5: images: must be true or false, got the text 'yes'"),
        ("hedas: 4\n", "Wide.yaml:5: hedas: unknown key"),
    ],
)
def test_a_fact_about_a_model_needs_its_source(
    recipes: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    (recipes / "models" / "Wide.yaml").write_text(WIDE + text)
    assert words in told(capsys, "check", code=1)


def test_what_is_known_about_models_is_used_by_checkpoints() -> None:
    used = {checkpoint.model for checkpoint in CATALOGUE.checkpoints.values() if not checkpoint.drafts_for}
    assert set(CATALOGUE.models) == used
    qwen = CATALOGUE.models["Qwen3.5-397B-A17B"]
    assert (qwen.attention_heads, qwen.kv_heads, qwen.layers, qwen.context) == (32, 2, 60, 262144)
    assert qwen.parsers["vllm"].tool == ("qwen3_coder", "qwen3_xml") and qwen.thinking == "enable_thinking"
    assert CATALOGUE.models["DeepSeek-V4-Flash-Vision"].images is True
    assert CATALOGUE.models["DeepSeek-V4-Flash"].images is False
