"""Variants: what `extends` merges, what it does not inherit, and how a wrong one is told."""

from pathlib import Path

import pytest

from rigup.catalog.loader import Catalog, load_catalog
from rigup.errors import InputError

CHECKPOINT = "id: tiny\nrepo: acme/tiny\nbranch: main\nmodel: Tiny\nquantization: NVFP4\n"
BASE = """\
id: base
title: Base
workload: [chat]
status: reported
tool_calls: reliable
evidence: [{source: a page, kind: verbatim, says: it works, speeds: [{tokens: 64}]}]
caveats: [only the base has it]
engine: {name: vllm}
image: {tag: "vllm/vllm-openai:nightly"}
checkpoint: tiny
served_name: tiny
gpus: 4
vram_mib: 97000
speculation: {method: mtp, n: 1}
argv: [--trust-remote-code, --max-num-seqs=8]
env: {NCCL_P2P_LEVEL: PHB, A: b}
"""
OWN = """\
title: Variant
extends: base
status: assembled
tool_calls: unknown
evidence: [{source: here, kind: assembled, says: a guess}]
"""


def load(directory: Path, **files: str) -> Catalog:
    (directory / "checkpoints").mkdir(exist_ok=True)
    (directory / "checkpoints" / "tiny.yaml").write_text(CHECKPOINT, encoding="utf-8")
    (directory / "base.yaml").write_text(BASE, encoding="utf-8")
    for name, text in files.items():
        (directory / f"{name}.yaml").write_text(f"id: {name}\n{text}", encoding="utf-8")
    return load_catalog(directory)


def refused(directory: Path, **files: str) -> str:
    with pytest.raises(InputError) as caught:
        load(directory, **files)
    return str(caught.value)


def test_mappings_merge_lists_replace_and_null_removes(tmp_path: Path) -> None:
    text = OWN + "workload: [code, batch]\nenv: {A: null, B: c}\nspeculation: null\nimage: {command: [serve]}\n"
    variant = load(tmp_path, variant=text).recipe("variant")
    assert variant.workload == ("code", "batch")
    assert variant.env == {"NCCL_P2P_LEVEL": "PHB", "B": "c"}
    assert variant.speculation is None
    assert variant.image and (variant.image.tag, variant.image.command) == ("vllm/vllm-openai:nightly", ("serve",))


def test_arguments_are_removed_by_name_and_added_at_the_end(tmp_path: Path) -> None:
    text = OWN + "argv: {remove: [--max-num-seqs], add: [--max-num-seqs=64, --x=y]}\n"
    found = load(tmp_path, variant=text)
    assert found.recipe("variant").argv == ("--trust-remote-code", "--max-num-seqs=64", "--x=y")
    assert found.recipe("base").argv == ("--trust-remote-code", "--max-num-seqs=8")


def test_a_list_of_arguments_replaces_all(tmp_path: Path) -> None:
    assert load(tmp_path, variant=OWN + "argv: [--x]\n").recipe("variant").argv == ("--x",)


def test_what_vouches_for_the_base_does_not_vouch_for_the_variant(tmp_path: Path) -> None:
    assert load(tmp_path, variant=OWN).recipe("variant").caveats == ()
    message = refused(tmp_path, variant="title: x\nextends: base\n")
    for key in ("status", "tool_calls", "evidence"):
        assert f"variant.yaml: {key}: is missing" in message or f": {key}: is missing" in message


def test_a_variant_of_a_variant_knows_where_each_value_was_written(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        variant=OWN + "argv: {add: [--x]}\n",
        third=OWN.replace("base", "variant") + "env: {A: third}\n",
    )
    places = {str(loc): str(place) for loc, place in found.merged["third"].places.items()}
    assert found.recipe("third").argv == ("--trust-remote-code", "--max-num-seqs=8", "--x")
    assert places["('argv', 1)"] == "base.yaml:15"
    assert places["('argv', 2)"] == "variant.yaml:7"
    assert places["('env', 'A')"] == "third.yaml:7"
    assert places["('env', 'NCCL_P2P_LEVEL')"] == "base.yaml:16"


def test_recipes_of_the_user_extend_the_catalogs(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    load(tmp_path)
    (mine / "own.yaml").write_text("id: own\n" + OWN, encoding="utf-8")
    assert load_catalog(tmp_path, mine).recipe("own").gpus == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (OWN.replace("base", "bass"), "variant.yaml:3: extends: there is no recipe 'bass': did you mean base?"),
        (OWN.replace("base", "variant"), "extends: extends itself: variant -> variant"),
        (
            OWN + "argv: {remove: [--max-num-seq]}\n",
            "argv.remove[0]: --max-num-seq is not an option of the extended recipe",
        ),
        (OWN + "argv: {add: [--max-num-seqs=9]}\n", "argv.add[0]: --max-num-seqs already exists: list it under"),
        (OWN + "argv: {append: [--x]}\n", "variant.yaml:7: argv.append: unknown key: known keys: add, remove"),
        (OWN + "argv: {add: --x}\n", "argv.add: must be a list of strings"),
        (OWN + "gpu: 2\n", "variant.yaml:7: gpu: unknown key: did you mean gpus?"),
        (OWN + "env: {A: 1}\n", "variant.yaml:7: env.A: must be text, and YAML reads 1 as a number"),
        (OWN + "argv: {add: [--port=1]}\n", "argv has --port"),
    ],
)
def test_a_wrong_variant_is_told_with_its_own_file_and_line(tmp_path: Path, text: str, words: str) -> None:
    assert words in refused(tmp_path, variant=text)


def test_a_circle_of_variants_is_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, one=OWN.replace("base", "two"), two=OWN.replace("base", "one"))
    assert "extends itself: one -> two -> one" in message


def test_a_mistake_in_the_base_is_told_once_and_there(tmp_path: Path) -> None:
    load(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE.replace("gpus: 4", "gpus: 0"), encoding="utf-8")
    (tmp_path / "variant.yaml").write_text("id: variant\n" + OWN, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_catalog(tmp_path)
    assert [finding.key for finding in caught.value.findings] == ["gpus"]
    assert "base.yaml:12" in str(caught.value)
