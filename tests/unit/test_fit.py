"""`rigup/fit`: what it computes from config.json, beside what engines printed when they started."""

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rigup.catalog.checkpoint import Files
from rigup.catalog.memory import fit
from rigup.catalog.model import Model
from rigup.fit.memory import GIB, Cache, Split, blocks_of, weights_of
from rigup.fit.memory import fit as fit_shape
from rigup.fit.shape import KEYS, ModelShape, describe, kept
from rigup.lock.lockfile import CheckpointLock, Lock, text
from tests.unit.sample import CATALOGUE
from tools.fit_table import BOOTS, Row, main, rows

ROWS = rows()
PLAIN = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 1024}


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.boot}: {row.what}" for row in ROWS])
def test_what_is_computed_is_what_the_engine_printed(row: Row) -> None:
    assert row.holds, row


def test_nearly_all_blocks_and_tokens_are_exact() -> None:
    """The others: what the engine had was rounded to 0.01 GiB, or a release kept some memory back."""
    cache = [row for row in ROWS if row.what not in ("weights", "left, GiB")]
    inexact = {row.boot for row in cache if abs(row.off) > 0.0011 * row.printed}
    assert len(cache) >= 28 and inexact == {"Qwen3-235B-A22B FP8", "Kimi-Linear-48B-A3B AWQ"}
    [kimi] = [row for row in cache if row.boot.startswith("Kimi") and row.what == "tokens"]
    assert kimi.off == 0


def test_the_boot_logs_are_of_every_kind_of_layer(capsys: pytest.CaptureFixture[str]) -> None:
    boots = yaml.safe_load(BOOTS.read_text(encoding="utf-8"))
    assert len(boots) >= 18 and len({boot["source"] for boot in boots}) >= 12
    shapes = [describe(boot.get("config") or CATALOGUE.models[boot["model"]].config or {}) for boot in boots]
    assert any(shape.state and shape.heads for shape in shapes)
    assert any(shape.state and shape.latent for shape in shapes)
    assert any(shape.latent and shape.latent.indexers for shape in shapes)
    assert any(each.window for shape in shapes for each in shape.heads)
    assert all(boot["recipe"] in CATALOGUE.recipes for boot in boots if "recipe" in boot)
    main()
    assert len(capsys.readouterr().out.splitlines()) == len(ROWS) + 2


@pytest.mark.parametrize(
    ("change", "layers"),
    [
        ({}, [(4, None)]),
        ({"num_kv_shared_layers": 1}, [(3, None)]),
        ({"sliding_window": 512}, [(4, 512)]),
        ({"sliding_window": 512, "use_sliding_window": False}, [(4, None)]),
        ({"sliding_window": 512, "sliding_window_pattern": 2}, [(2, None), (2, 512)]),
        ({"layer_types": ["full_attention"] + 3 * ["sliding_attention"], "sliding_window": 9}, [(1, None), (3, 9)]),
    ],
)
def test_which_layers_keep_what(change: dict[str, Any], layers: list[tuple[int, int | None]]) -> None:
    shape = describe({"text_config": PLAIN | change})
    assert [(each.layers, each.window) for each in shape.heads] == layers
    assert all((each.heads, each.width) == (2, 256) for each in shape.heads)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (PLAIN | {"compress_ratios": [4]}, "the model has compressed attention"),
        (PLAIN | {"mamba_d_state": 128}, "the model has Mamba layers"),
        (PLAIN | {"hybrid_override_pattern": "M-W*", "mamba_num_heads": 8}, "config.json cannot be read"),
        (PLAIN | {"layers_block_type": ["attention", "rwkv"]}, "the model has rwkv layers"),
        (PLAIN | {"block_configs": [{}]}, "the model has layers of different sizes"),
        (PLAIN | {"layer_types": 4 * ["chunked_attention"]}, "the model has chunked_attention layers"),
        (PLAIN | {"index_kpool": 16}, "the model has a pooled indexer"),
        # MiniMax-M3, MiMo-V2 and Step-3.5.
        (PLAIN | {"sparse_attention_config": {"sparse_index_dim": 128}}, "the model has an index over blocks"),
        (PLAIN | {"swa_num_key_value_heads": 8}, "the model has other heads in its windows"),
        (PLAIN | {"attention_other_setting": {"num_attention_heads": 96}}, "the model has other heads in its windows"),
        (PLAIN | {"num_attention_groups": 8}, "the model has groups of heads of its own"),
        ({}, "config.json cannot be read"),
        ({"text_config": [1]}, "config.json cannot be read"),
        (PLAIN | {"num_hidden_layers": 10**12}, "config.json cannot be read"),
        (PLAIN | {"num_hidden_layers": -1}, "config.json cannot be read"),
        (PLAIN | {"num_hidden_layers": float("inf")}, "config.json cannot be read"),
        (PLAIN | {"num_key_value_heads": -2}, "config.json cannot be read"),
        (PLAIN | {"head_dim": "wide"}, "config.json cannot be read"),
        (PLAIN | {"hidden_size": 0}, "config.json cannot be read"),
        (PLAIN | {"layer_types": 7}, "config.json cannot be read"),
        (PLAIN | {"linear_attn_config": "x"}, "config.json cannot be read"),
        (PLAIN | {"full_attention_interval": 4}, "config.json cannot be read"),
        (PLAIN | {"quantization_config": "fp8"}, "config.json cannot be read"),
    ],
)
def test_what_is_not_understood_is_unknown_instead_of_wrong(config: dict[str, Any], why: str) -> None:
    shape = describe(config, {"metadata": {"total_size": 8 * GIB}})
    assert shape.unknown and shape.unknown.startswith(why), shape
    estimate = fit_shape(shape, Split(2), 90, Cache(), 0.9)
    assert (estimate.blocks, estimate.sequence, estimate.sequences) == (None, None, 0)
    assert estimate.weights == pytest.approx(4, abs=0.001) and f"is not known: {why}" in str(estimate)


def test_gpus_beyond_the_heads_keep_copies_and_context_parallelism_splits_them() -> None:
    shape = describe(PLAIN)
    sizes = [(split, blocks_of(shape, split, Cache())) for split in (Split(1), Split(2), Split(4), Split(4, dcp=2))]
    found = [(each.tokens, each.size) for _, each in sizes if each]
    assert found == [(16, 65536), (16, 32768), (16, 32768), (32, 32768)]
    halves = blocks_of(shape, Split(1, pp=2), Cache("fp8"))
    assert halves and halves.size == 16384


def test_a_drafter_has_a_cache_only_while_it_drafts() -> None:
    shape = describe(PLAIN | {"num_nextn_predict_layers": 1})
    plain, drafting = blocks_of(shape, Split(), Cache()), blocks_of(shape, Split(), Cache(drafts=3))
    assert plain and drafting and drafting.size * 4 == plain.size * 5


def test_experts_are_spread_over_all_gpus_and_routers_over_none() -> None:
    config = PLAIN | {"num_experts": 64, "moe_intermediate_size": 512}
    shape = describe(config, {"metadata": {"total_size": 2 * GIB}})
    assert shape.experts == 3 * 1024 * 512 * 64 * 4 * 2
    assert shape.whole == 2 * (2 * 1024 * 4 + 64 * 1024 * 4)
    together, spread = weights_of(shape, Split(2, dp=2)), weights_of(shape, Split(2, dp=2, experts=True))
    assert together == (2 * GIB - shape.whole) / 2 + shape.whole
    assert together - spread == shape.experts / 4
    packed = describe(config | {"quantization_config": {"quant_method": "modelopt"}})
    assert packed.experts == shape.experts * 0.5625 / 2


def test_only_what_is_read_is_kept_of_a_config() -> None:
    method = {"quant_method": "fp8"}
    config = {"vocab_size": 9, "text_config": PLAIN | {"bos": 1}, "quantization_config": method | {"ignore": ["x"]}}
    assert kept(config) == {"text_config": PLAIN, "quantization_config": method}
    assert describe(kept(config)) == describe(config)
    assert set(PLAIN) <= KEYS


def test_what_the_catalog_quotes_agrees_with_what_it_says_of_the_model() -> None:
    quoted = [model for model in CATALOGUE.models.values() if model.config]
    assert {model.id for model in quoted} >= {"Qwen3.5-397B-A17B", "GLM-5.1", "GLM-5.2"}
    for model in quoted:
        config = model.config or {}
        assert describe(config).unknown is None, model.id
        assert (config["num_hidden_layers"], config["num_attention_heads"]) == (model.layers, model.attention_heads)
        assert config.get("num_key_value_heads") == model.kv_heads
    with pytest.raises(ValidationError, match="has vocab_size, which nothing reads"):
        Model(id="X", config={"vocab_size": 1}, sources={"config": "x"})


def test_the_checkpoints_own_files_count_more_than_the_catalog() -> None:
    listing = {f"model-0000{n}-of-00002.safetensors": f"{40 * GIB} sha256:{'0' * 64}" for n in (1, 2)}
    listing["consolidated.safetensors"] = f"{80 * GIB} sha256:{'0' * 64}"
    locked = CheckpointLock(revision="0" * 40, bytes=160 * GIB, files=3, listing=listing, config=PLAIN)
    assert locked.contents == Files(PLAIN, 80 * GIB)
    assert "num_hidden_layers: 4" in text(Lock(checkpoints={"a/b@main": locked}))

    # The catalog has no size for it, and of the model nothing but the cache's kind.
    recipe = CATALOGUE.recipe("deepseek-v4-flash-2gpu")
    checkpoint, model = CATALOGUE.checkpoint(recipe.checkpoint), CATALOGUE.model_of(recipe)
    assert fit(recipe, checkpoint, model) is None
    estimate = fit(recipe, checkpoint, model, files=locked.contents)
    assert estimate and estimate.blocks and estimate.weights == pytest.approx(40, abs=0.1)
    assert CheckpointLock(revision="0" * 40, bytes=1, files=1).contents == Files(None, None)


def test_a_shape_without_layers_has_no_blocks() -> None:
    assert blocks_of(ModelShape(), Split(), Cache()) is None
