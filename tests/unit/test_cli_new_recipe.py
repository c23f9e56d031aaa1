"""`rigup new-recipe`: checkpoints of many kinds on a hub on loopback, and the recipes that it drafts for them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import yaml

from rigup.catalog.engine_options import newest
from rigup.catalog.loader import default_catalog
from rigup.catalog.parsers import families
from rigup.catalog.recipe import Recipe
from rigup.cli.main import main
from tests.unit.loopback import Answer, Site, serving
from tests.unit.published_checkpoints import CHECKPOINTS, commit_of, publish


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Site]]:
    """A project whose hub is here."""
    with serving() as site, chdir(tmp_path):
        (tmp_path / "inventory").mkdir()
        text = f"hosts: {{rig1: {{address: 192.0.2.1, hub_endpoint: '{site.url}'}}}}\n"
        (tmp_path / "inventory/lab.yaml").write_text(text)
        monkeypatch.delenv("RIGUP_INVENTORY", raising=False)
        yield tmp_path, site


def drafted(project: tuple[Path, Site], row: dict[str, Any], *words: str) -> Recipe:
    """Draft a recipe for a checkpoint; it has no mistakes."""
    publish(project[1], row)
    assert main(["new-recipe", row["repo"], *words]) == 0
    name = words[words.index("--as") + 1] if "--as" in words else row["repo"].rpartition("/")[2].lower()
    return default_catalog().recipe(name)


def arguments(recipe: Recipe) -> dict[str, str]:
    return dict(argument.partition("=")[::2] for argument in recipe.argv)


# Dense, MoE, MLA, hybrid, Mamba, sparse, sliding windows, vision; BF16, FP8, AWQ, MXFP4, NVFP4 by both tools. For each:
# GPUs, tensor parallel size, context, parsers.
EXPECTED = {
    "Qwen/Qwen3-32B": (1, 1, 40960, "hermes", "qwen3"),
    "Qwen/Qwen3-235B-A22B-FP8": (4, 4, 40960, "hermes", "qwen3"),
    "nvidia/Kimi-K2.7-Code-NVFP4": (8, 8, 32768, "kimi_k2", "kimi_k2"),
    "nvidia/Qwen3.6-27B-NVFP4": (1, 1, 262144, "qwen3_coder", "qwen3"),
    "nvidia/Qwen3.6-35B-A3B-NVFP4": (1, 1, 262144, "qwen3_coder", "qwen3"),
    "nvidia/Qwen3.5-397B-A17B-NVFP4": (4, 4, 262144, "qwen3_coder", "qwen3"),
    "Qwen/Qwen3-VL-32B-Instruct": (2, 2, 262144, "hermes", None),
    "acme/Qwen3.5-397B-A17B-AWQ": (4, 4, 262144, "qwen3_coder", "qwen3"),
    "acme/Qwen3-235B-A22B-NVFP4": (2, 2, 40960, "hermes", "qwen3"),
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4": (1, 1, 262144, "qwen3_coder", "nemotron_v3"),
    "nvidia/GLM-5.1-NVFP4": (8, 8, 202752, "glm47", "glm45"),
    "nvidia/GLM-5.2-NVFP4": (8, 8, 262144, "glm47", "glm45"),
    "openai/gpt-oss-120b": (1, 1, 131072, "openai", "openai_gptoss"),
    "nvidia/MiniMax-M2.7-NVFP4": (4, 4, 196608, "minimax_m2", "minimax_m2"),
}


@pytest.mark.parametrize("repo", EXPECTED)
def test_a_checkpoint_of_any_kind_gets_a_recipe_without_mistakes(
    project: tuple[Path, Site], repo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = drafted(project, CHECKPOINTS[repo])
    context = int(arguments(recipe)["--max-model-len"])
    found = (recipe.gpus, recipe.parallel.tp, context, recipe.tool_parser, recipe.reasoning_parser)
    assert found == EXPECTED[repo]
    assert recipe.speculation is None and "agents" in recipe.workload and recipe.status == "assembled"
    said = capsys.readouterr().out
    assert "`rigup check` finds no mistakes." in said and "nobody is known to have started it" in said


def test_every_line_says_why(project: tuple[Path, Site]) -> None:
    drafted(project, CHECKPOINTS["nvidia/Kimi-K2.7-Code-NVFP4"])
    text = (project[0] / "inventory/recipes/kimi-k2.7-code-nvfp4.yaml").read_text()
    body = text[text.index("\nworkload:") :].splitlines()[1:]
    bare = [line for line in body if "#" not in line and line != "argv:" and not line.startswith("  ")]
    assert not bare, bare
    for argument in ("--max-model-len", "--trust-remote-code", "--mm-encoder-tp-mode"):
        assert re.search(rf"^  - {argument}.*  # \S", text, re.MULTILINE), argument
    assert f"at {commit_of('nvidia/Kimi-K2.7-Code-NVFP4')[:12]}" in text
    # The scales of the cache and what is published of the model are in files of their own.
    checkpoint = yaml.safe_load((project[0] / "inventory/recipes/checkpoints/kimi-k2.7-code-nvfp4.yaml").read_text())
    assert (checkpoint["kv_cache"], checkpoint["quantization"]) == ("fp8", "NVFP4 by ModelOpt")
    model = default_catalog().models["Kimi-K2.7-Code"]
    assert (model.architecture, model.images, model.kv_heads) == ("KimiK25ForConditionalGeneration", True, None)


def test_a_second_upload_of_a_model_shares_what_is_known_of_it(project: tuple[Path, Site]) -> None:
    for repo in ("Qwen/Qwen3-235B-A22B-FP8", "acme/Qwen3-235B-A22B-NVFP4"):
        drafted(project, CHECKPOINTS[repo])
    catalog = default_catalog()
    names = {each.model for each in catalog.checkpoints.values() if "Qwen3-235B" in each.repo}
    assert names == {"Qwen3-235B-A22B"}
    assert [path.name for path in (project[0] / "inventory/recipes/models").iterdir()] == ["Qwen3-235B-A22B.yaml"]


def test_parallelism_divides_heads_and_blocks_and_the_rest_is_a_pipeline(project: tuple[Path, Site]) -> None:
    row = CHECKPOINTS["Qwen/Qwen3-235B-A22B-FP8"]
    # 1536 / 8 is no multiple of the block of 128.
    eight = drafted(project, row, "--gpus", "8", "--as", "eight")
    assert (eight.parallel.tp, eight.parallel.pp) == (4, 2)
    six = drafted(project, row, "--gpus", "6", "--as", "six")
    assert (six.parallel.tp, six.parallel.pp) == (2, 3)
    text = (project[0] / "inventory/recipes/eight.yaml").read_text()
    assert "a part of moe_intermediate_size 1536 would be 192, which blocks of 128 do not divide" in text
    # MXFP4 is padded.
    assert drafted(project, CHECKPOINTS["openai/gpt-oss-120b"], "--gpus", "8").parallel.tp == 8


def test_a_chat_speculates_with_the_layer_that_the_index_names(project: tuple[Path, Site]) -> None:
    row = CHECKPOINTS["nvidia/Qwen3.6-27B-NVFP4"]
    found = drafted(project, row, "--for", "chat").speculation
    assert found and (found.method, found.n) == ("mtp", 2)
    without = drafted(project, row | {"tensors": []}, "--for", "chat", "--as", "without")
    assert without.speculation is None
    # DeepSeek-V4-Flash has DSpark in its own files: mtp would be a mistake.
    assert drafted(project, CHECKPOINTS["deepseek-ai/DeepSeek-V4-Flash"], "--for", "chat").speculation is None


DRAFTER = {
    "repo": "acme/Qwen3-32B-EAGLE3",
    "bytes": 1_500_000_000,
    "config": {
        "architectures": ["LlamaForCausalLMEagle3"],
        "num_hidden_layers": 1,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_size": 5120,
    },
}
FLASH = {
    **DRAFTER,
    "repo": "acme/Qwen3-32B-DFlash",
    "config": {**DRAFTER["config"], "architectures": ["DFlashDraftModel"], "block_size": 16, "num_hidden_layers": 5},  # type: ignore[dict-item]
}


@pytest.mark.parametrize(("drafter", "method", "tokens"), [(DRAFTER, "eagle3", 3), (FLASH, "dflash", 15)])
def test_a_drafter_becomes_a_checkpoint_of_its_own(
    project: tuple[Path, Site], drafter: dict[str, Any], method: str, tokens: int
) -> None:
    publish(project[1], drafter)
    recipe = drafted(project, CHECKPOINTS["Qwen/Qwen3-32B"], "--for", "chat", "--drafter", drafter["repo"])
    assert recipe.speculation and (recipe.speculation.method, recipe.speculation.n) == (method, tokens)
    [_, checkpoint] = default_catalog().checkpoints_of(recipe)
    assert (checkpoint.repo, checkpoint.drafts_for) == (drafter["repo"], "Qwen3-32B")


def test_the_template_of_agents_takes_two_system_messages(project: tuple[Path, Site]) -> None:
    row = CHECKPOINTS["nvidia/Qwen3.6-27B-NVFP4"]
    assert [patch.target for patch in drafted(project, row).patches] == ["chat-template"]
    plain = row | {"template": "{% for message in messages %}{{ message.content }}{% endfor %}<function="}
    assert drafted(project, plain, "--as", "plain").patches == ()


QWEN = CHECKPOINTS["Qwen/Qwen3-32B"]
REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "too large for a host": (CHECKPOINTS["deepseek-ai/DeepSeek-R1"], (), "too large for 8 GPUs .* use an upload with"),
    "too large for four": (CHECKPOINTS["nvidia/GLM-5.2-NVFP4"], ("--gpus", "4"), "too large for 4 .* use --gpus 8, or"),
    "no engine": (
        QWEN | {"config": {**QWEN["config"], "architectures": ["OddForCausalLM"]}},
        (),
        "serves OddForCausalLM",
    ),
    "no architecture": (QWEN | {"config": {"hidden_size": 1}}, (), "names no architecture: use the upload of"),
    "odd weights": (
        QWEN | {"config": {**QWEN["config"], "quantization_config": {"quant_method": "exl3"}}},
        (),
        "does not read weights of the kind exl3: use another upload",
    ),
    "GGUF": (
        {"repo": "acme/x-GGUF", "bytes": 9, "weights": "x.gguf"},
        (),
        "only GGUF files: use the upload in safetensors",
    ),
    "no weights": (QWEN | {"weights": "pytorch_model.bin"}, (), "no weights in safetensors: use an upload"),
    "a drafter": (DRAFTER, (), "is a drafter .* `rigup new-recipe REPO --drafter acme/Qwen3-32B-EAGLE3`"),
    "no drafter": (QWEN, ("--drafter", "Qwen/Qwen3-32B"), "is not a drafter of a known kind .* name a repository with"),
    "no repository": (QWEN | {"repo": "Qwen3-32B"}, (), "is not a repository of the hub: use ORGANIZATION/NAME"),
    "not there": (QWEN | {"hidden": True}, (), "there is no Qwen/Qwen3-32B at main: check the checkpoint's repo"),
    "no GPUs": (QWEN, ("--gpus", "0"), "0 GPUs are not a host: use a number"),
    "an odd name": (QWEN, ("--as", "a/b"), "'a/b' cannot name a recipe: use letters"),
    "a name of the catalog": (
        QWEN,
        ("--as", "vllm-nvfp4-cu130"),
        "already a recipe 'vllm-nvfp4-cu130': choose another",
    ),
    "no JSON": (
        QWEN | {"config": None, "files": {"config.json": "{"}},
        (),
        "config.json of Qwen/Qwen3-32B is not JSON",
    ),
}


@pytest.mark.parametrize(("row", "words", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refusal_says_what_to_do_and_writes_nothing(
    project: tuple[Path, Site],
    capsys: pytest.CaptureFixture[str],
    row: dict[str, Any],
    words: tuple[str, ...],
    message: str,
) -> None:
    shown = {key: value for key, value in row.items() if not (key == "config" and value is None)}
    if "hidden" not in row:
        publish(project[1], shown)
    assert main(["new-recipe", row["repo"], *words]) == 1
    assert re.search(message, capsys.readouterr().err), message
    assert not (project[0] / "inventory/recipes").exists()


def test_a_draft_overwrites_nothing(project: tuple[Path, Site], capsys: pytest.CaptureFixture[str]) -> None:
    drafted(project, QWEN)
    assert main(["new-recipe", QWEN["repo"]]) == 1
    assert "there is already a recipe 'qwen3-32b': choose another name with --as" in capsys.readouterr().err


def test_what_a_stranger_publishes_stays_text(project: tuple[Path, Site]) -> None:
    config = {**QWEN["config"], "quantization_config": {"quant_method": "awq", "group_size": "x\n- y: z"}}
    recipe = drafted(project, QWEN | {"config": config, "template": "{{ 1 / 0 }}\n: - # <tool_call>\x07"})
    assert recipe.patches and recipe.tool_parser == "hermes"


def test_a_page_of_another_form_is_no_traceback(project: tuple[Path, Site], capsys: pytest.CaptureFixture[str]) -> None:
    commit = publish(project[1], QWEN)
    project[1].pages[f"/api/models/{QWEN['repo']}/tree/{commit}?recursive=true&expand=false"] = Answer(
        b'[{"type": "file"}]'
    )
    assert main(["new-recipe", QWEN["repo"]]) == 1
    assert "unexpected form" in capsys.readouterr().err


def test_the_data_says_the_same(project: tuple[Path, Site], capsys: pytest.CaptureFixture[str]) -> None:
    publish(project[1], QWEN)
    assert main(["new-recipe", QWEN["repo"], "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["recipe"] == "qwen3-32b" and data["findings"] == [] and data["memory"].startswith("weights 61.0")
    assert [Path(each).is_file() for each in data["files"]] == [True, True, True] and len(data["unknown"]) >= 2


def test_the_parsers_on_file_exist_in_the_newest_releases() -> None:
    for engine in ("vllm", "sglang"):
        options = newest(engine).options
        for row in families():
            for key, option in (("tool", "--tool-call-parser"), ("reasoning", "--reasoning-parser")):
                name, known = row.get(engine, {}).get(key), options[option]
                assert name is None or name in known, (row["architectures"], engine, name)
