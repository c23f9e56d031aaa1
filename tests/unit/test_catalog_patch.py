"""Which layers a pattern of the ignore list hits, by the engines' own rules, written anew.

vLLM 0.33.0, `is_layer_excluded` in model_executor/layers/quantization/modelopt.py: a name or its fused form that is
listed, then a listed text that is part of the name, then fnmatch; before that `x*` at the end of an entry is split into
`x` and `x.*`. Names go through the model's mapper from the hub's names: `model.language_model.` is
`language_model.model.` in vLLM, and the drafter keeps `mtp.`.

SGLang 0.5.23: an entry with a star becomes a regular expression that has to match the whole name, and names begin with
`model.layers.`.
"""

import re
from fnmatch import fnmatchcase

import pytest
from pydantic import ValidationError

from rigup.catalog.patch import IgnorePatch
from tests.unit.sample import CATALOGUE

FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "qkv_proj": ("q_proj", "k_proj", "v_proj")}

# Names as vLLM gives them to its layers, of a layer with linear attention, one with full attention, and the drafter.
LAYERS = [
    "language_model.model.layers.0.linear_attn.in_proj_qkvz",
    "language_model.model.layers.0.mlp.gate",
    "language_model.model.layers.0.mlp.experts",
    "language_model.model.layers.0.mlp.shared_expert.gate_up_proj",
    "language_model.model.layers.0.mlp.shared_expert.down_proj",
    "language_model.model.layers.0.mlp.shared_expert_gate",
    "language_model.model.layers.3.self_attn.qkv_proj",
    "language_model.model.layers.59.mlp.gate",
    "language_model.lm_head",
    "mtp.fc",
    "mtp.layers.0.mlp.gate",
    "mtp.layers.0.mlp.gate_up_proj",
    "visual.blocks.0.attn.qkv",
]
GATES = {"language_model.model.layers.0.mlp.gate", "language_model.model.layers.59.mlp.gate"}


def mapped(entry: str) -> str:
    for old, new in (("model.language_model.", "language_model.model."), ("model.visual.", "visual.")):
        if entry.startswith(old):
            return new + entry.removeprefix(old)
    return entry


def split(entry: str) -> list[str]:
    """`mtp.fc*` as `mtp.fc` and `mtp.fc.*`."""
    return [entry[:-1], f"{entry[:-1]}.*"] if entry.endswith("*") and not entry.endswith(".*") else [entry]


def vllm_hits(entry: str) -> set[str]:
    patterns = [mapped(each) for each in split(entry)]

    def excluded(name: str) -> bool:
        stem, _, last = name.rpartition(".")
        parts = [f"{stem}.{part}" for part in FUSED.get(last, ())]
        if name in patterns or (parts and all(part in patterns for part in parts)):
            return True
        return any(pattern in name or fnmatchcase(name, pattern) for pattern in patterns)

    return {name for name in LAYERS if excluded(name)}


def sglang_hits(entry: str) -> set[str]:
    names = [name.replace("language_model.model.", "model.") for name in LAYERS]
    pattern = re.escape(entry).replace(r"\*", ".*")
    return {name for name in names if re.fullmatch(pattern, name)}


@pytest.mark.parametrize(
    ("entry", "hit"),
    [
        ("model.language_model.layers.*.mlp.gate", GATES),
        ("mtp.fc*", {"mtp.fc"}),
        ("mtp.fc", {"mtp.fc"}),
        # The star was eaten by Markdown: nothing is hit.
        ("model.language_model.layers..mlp.gate", set()),
        ("lm_head", {"language_model.lm_head"}),
    ],
)
def test_what_vllm_hits(entry: str, hit: set[str]) -> None:
    assert vllm_hits(entry) == hit


@pytest.mark.parametrize(
    "entry",
    ["gate", ".gate", "mlp.gate", ".mlp.gate", "gate*", "mlp.gate*", "*gate*", "*mlp.gate*", "*.layers.*.mlp.gate*"],
)
def test_a_gate_that_hits_projections_in_one_of_the_engines_is_refused(entry: str) -> None:
    assert any(name.endswith("gate_up_proj") for name in vllm_hits(entry) | sglang_hits(entry))
    with pytest.raises(ValidationError, match="also matches gate_up_proj"):
        IgnorePatch(target="quantization-ignore", add=(entry,), why="x")


@pytest.mark.parametrize("entry", ["*.gate", "*mlp.gate", "*.mlp.gate", "model.language_model.layers.*.mlp.gate"])
def test_a_gate_that_hits_no_projection_is_taken(entry: str) -> None:
    assert not any(name.endswith("_proj") for name in vllm_hits(entry) | sglang_hits(entry))
    assert IgnorePatch(target="quantization-ignore", add=(entry,), why="x").add == (entry,)


def test_sglang_hits_nothing_with_vllms_names() -> None:
    assert sglang_hits("model.language_model.layers.*.mlp.gate") == set()
    assert sglang_hits("*.mlp.gate") == {"model.layers.0.mlp.gate", "model.layers.59.mlp.gate", "mtp.layers.0.mlp.gate"}


def test_every_pattern_of_the_catalog_hits_what_it_is_meant_for() -> None:
    meant = {"model.language_model.layers.*.mlp.gate": GATES, "mtp.fc*": {"mtp.fc"}}
    patterns = {
        pattern
        for recipe in CATALOGUE.recipes.values()
        for patch in recipe.patches
        if isinstance(patch, IgnorePatch)
        for pattern in patch.add
    }
    assert {pattern: vllm_hits(pattern) for pattern in patterns} == meant
