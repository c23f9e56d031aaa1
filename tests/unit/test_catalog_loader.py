"""The catalog: the recipes of the project, and the findings for wrong ones."""

from pathlib import Path

import pytest
import yaml

from rigup.catalog.engine_args import arguments
from rigup.catalog.loader import Catalog, default_catalog, load_catalog
from rigup.catalog.recipe import Recipe
from rigup.errors import InputError, RigupError

CHECKPOINT = "id: tiny\nrepo: acme/tiny\nbranch: main\nmodel: Tiny\nquantization: NVFP4\n"
RECIPE = """\
id: one
title: One
workload: [chat]
status: reported
tool_calls: reliable
evidence: [{source: a page, kind: verbatim, says: it works, speeds: [{tokens: 64}]}]
engine: {name: vllm}
image: {tag: "vllm/vllm-openai:nightly"}
checkpoint: tiny
served_name: tiny
gpus: 4
vram_mib: 97000
argv: [--trust-remote-code]
"""


def catalog(directory: Path, recipe: str = RECIPE, checkpoint: str = CHECKPOINT) -> Catalog:
    (directory / "checkpoints").mkdir()
    (directory / "one.yaml").write_text(recipe, encoding="utf-8")
    (directory / "checkpoints" / "tiny.yaml").write_text(checkpoint, encoding="utf-8")
    return load_catalog(directory)


def refused(directory: Path, recipe: str = RECIPE, checkpoint: str = CHECKPOINT) -> str:
    with pytest.raises(InputError) as caught:
        catalog(directory, recipe, checkpoint)
    return str(caught.value)


def all_arguments(recipe: Recipe) -> list[str]:
    return [argument for argument, _ in arguments(recipe)]


def test_the_projects_own_catalog_is_valid_and_has_the_default_recipe() -> None:
    recipe = default_catalog().recipe("vllm-nvfp4-cu130")
    assert recipe.image.tag == "vllm/vllm-openai:cu130-nightly"
    assert recipe.tool_calls == "reliable"
    assert not any("speculative" in argument for argument in all_arguments(recipe))
    assert "--tool-call-parser=qwen3_coder" in all_arguments(recipe)


def test_speculation_goes_by_the_name_that_is_not_deprecated() -> None:
    for recipe in default_catalog().recipes.values():
        assert not any("qwen3_next_mtp" in argument for argument in all_arguments(recipe))
        assert not any("qwen35_coder" in argument for argument in all_arguments(recipe))


def test_a_minimal_recipe_is_read(tmp_path: Path) -> None:
    found = catalog(tmp_path)
    assert found.recipe("one").checkpoint == found.checkpoint("tiny").id
    assert found.checkpoint("tiny").key == "acme/tiny@main"


def test_an_unknown_recipe_names_the_near_ones(tmp_path: Path) -> None:
    with pytest.raises(RigupError, match="did you mean vllm-nvfp4-cu130"):
        default_catalog().recipe("vllm-nvpf4-cu130")
    with pytest.raises(RigupError, match=r"did you mean .*-mtp\d"):
        default_catalog().recipe("mtp")
    with pytest.raises(RigupError, match="`rigup recipes --all` lists them"):
        default_catalog().recipe("zzz")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("gpus: 4", "gpu: 4", "one.yaml:11: gpu: unknown key: did you mean gpus?"),
        ("gpus: 4", "gpus: 0", "one.yaml:11: gpus"),
        ("id: one", "id: two", "one.yaml:1: id: is 'two' in a file named one.yaml"),
        (
            "checkpoint: tiny",
            "checkpoint: tiyn",
            "one.yaml:9: checkpoint: there is no checkpoint 'tiyn': did you mean tiny?",
        ),
        ("status: reported", "status: reportd", "one.yaml:4: status: must be current"),
        ("{name: vllm}", "{nam: vllm}", "one.yaml:7: engine.nam: unknown key: did you mean name?"),
        (":nightly", "", "is not an image with a tag"),
        ('nightly"', 'nightly", digest: abc', "one.yaml:8: image.digest: 'abc' is not a digest"),
        ("[--trust-remote-code]", "--trust-remote-code", "one.yaml:13: argv"),
        ("[--trust-remote-code]", "[--port=80]", "argv has --port, which comes from the endpoint"),
        ("[--trust-remote-code]", "[--host, 0.0.0.0]", "argv has --host"),
        ("[--trust-remote-code]", "[--max-model-len, 4096]", "argv[1]: must be text, and YAML reads 4096 as a number"),
        ("[{source: a page, kind: verbatim, says: it works, speeds: [{tokens: 64}]}]", "[]", "one.yaml:6: evidence"),
        (", speeds: [{tokens: 64}]", "", "one.yaml:1: status is reported, but no evidence has a measured figure"),
        ("says: it works", "sais: it works", "evidence[0].sais: unknown key: did you mean says?"),
    ],
)
def test_wrong_recipes_are_refused_with_file_line_and_key(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert words in refused(tmp_path, RECIPE.replace(old, new))


@pytest.mark.parametrize(
    ("addition", "words"),
    [
        ("env: {NCCL_P2P_LEVEL: '4'}\n", "use one of LOC, NVL, PIX, PXB, PHB, SYS"),
        ("env: {NCCL_IB_DISABLE: 1}\n", "put it in quotes"),
        ("env: {'A B': x}\n", "env"),
        ('env: {A: "x\\ny"}\n', "env.A contains a line break"),
        ("patches: [{target: quantization-ignore, add: [], why: x}]\n", "patches[0].add"),
        ("patches: [{target: quantization-ignore, add: [model.layers..mlp.gate], why: x}]\n", "with the star"),
        ("patches: [{target: quantization-ignore, add: [mlp.gate], why: x}]\n", "also matches gate_up_proj"),
        ("patches: [{target: config, add: [a], why: x}]\n", "patches[0]: has no known target"),
        (
            "patches: [{target: quantization-ignore, add: [a], why: x, when: {image_befor: 2026-01-01}}]\n",
            "did you mean image_before",
        ),
        ("patches: [{target: quantization-ignore, add: [a], why: x, when: {image_before: soon}}]\n", "image_before"),
        ("ready: {path: health}\n", "ready.path"),
    ],
)
def test_wrong_environments_and_patches_are_refused(tmp_path: Path, addition: str, words: str) -> None:
    assert words in refused(tmp_path, RECIPE + addition)


@pytest.mark.parametrize(
    ("addition", "words"),
    [
        ("revision: main\n", "checkpoints/tiny.yaml:6: revision: 'main' is not a commit: use 40 hexadecimal digits"),
        ("revison: main\n", "checkpoints/tiny.yaml:6: revison: unknown key: did you mean revision?"),
        (f"revision: {'a' * 40}\n", "has a revision and a branch: give it revision: COMMIT"),
    ],
)
def test_wrong_checkpoints_are_refused(tmp_path: Path, addition: str, words: str) -> None:
    assert words in refused(tmp_path, checkpoint=CHECKPOINT + addition)


@pytest.mark.parametrize(
    ("branch", "words"),
    [("", "has neither revision nor branch: give it revision: COMMIT"), ("branch: 'a b'", "is not a branch")],
)
def test_a_checkpoint_says_whether_it_floats(tmp_path: Path, branch: str, words: str) -> None:
    assert words in refused(tmp_path, checkpoint=CHECKPOINT.replace("branch: main", branch))


def test_the_findings_of_all_files_come_together(tmp_path: Path) -> None:
    message = refused(tmp_path, RECIPE.replace("gpus: 4", "gpu: 4"), CHECKPOINT.replace("repo:", "rep:"))
    assert {line.split(":")[0].split("/")[-1] for line in message.splitlines()} == {"one.yaml", "tiny.yaml"}


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a directory"):
        load_catalog(tmp_path / "recipes")


def test_superseded_recipes_are_in_the_archive_and_no_others() -> None:
    catalog = default_catalog()
    archived = {path.stem for path in (Path(__file__).parents[2] / "recipes" / "archive").glob("*.yaml")}
    assert archived == {name for name, recipe in catalog.recipes.items() if recipe.status == "superseded"}


def test_an_archived_recipe_can_be_extended_and_extend_but_not_share_an_id(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    own = "status: assembled\ntool_calls: unknown\nevidence: [{source: here, kind: assembled, says: a guess}]\n"
    (tmp_path / "archive" / "old.yaml").write_text(f"id: old\ntitle: Old\nextends: one\ngpus: 2\n{own}")
    (tmp_path / "new.yaml").write_text(f"id: new\ntitle: New\nextends: old\n{own}")
    found = catalog(tmp_path)
    assert (found.recipe("old").gpus, found.recipe("new").gpus) == (2, 2)
    (tmp_path / "archive" / "one.yaml").write_text(RECIPE)
    with pytest.raises(InputError, match=r"archive/one.yaml:1: id: 'one' already exists in .*/one.yaml"):
        load_catalog(tmp_path)


def test_the_same_id_in_two_directories_is_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "a", tmp_path / "b"
    one.mkdir()
    two.mkdir()
    catalog(one)
    (two / "one.yaml").write_text(RECIPE, encoding="utf-8")
    found = load_catalog(one, two)
    with pytest.raises(InputError, match=r"b/one.yaml:1: id: 'one' already exists in .*/a/one.yaml"):
        found.recipe("one")


def test_recipes_are_data_and_nothing_in_them_runs() -> None:
    for path in (Path(__file__).parent.parent.parent / "recipes").rglob("*.yaml"):
        # safe_load knows no tag that makes objects.
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), (dict, list))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            "vLLM of February",
            "cu130 cu130-mtp1 cu130-mtp2 cu130-mtp5 cu130-dcp2 cu130-text chisleu kcramp-docker triton-k8s",
        ),
        ("compose, patched, built", "destroyed-mtp1 destroyed-mtp2 destroyed-mtp5 ixtrix-patched orangezed-mtp5"),
        ("vLLM of March, and a patch alone", "orthozany aabbccddwasd"),
        ("vLLM of today", "voipmonitor voipmonitor-mtp2 voipmonitor-8gpu v2 cu130-adaptive"),
    ],
)
def test_every_vllm_recipe_of_the_community_has_its_row(kind: str, names: str) -> None:
    assert not {f"vllm-nvfp4-{name}" for name in names.split()} - set(default_catalog().recipes), kind


def test_every_other_recipe_of_the_community_has_its_row() -> None:
    wanted = """
        vllm-fp8-8gpu-mtp2 vllm-fp8-6gpu vllm-stock-b12x vllm-stock-b12x-mtp2 vllm-carve-yarn-900k
        sglang-fp8-cyysky-8gpu sglang-nvfp4-festr-joninco sglang-nvfp4-minimal sglang-nvfp4-festr-full
        sglang-nvfp4-ixtrix sglang-nvfp4-ixtrix-spec sglang-nvfp4-kcramp sglang-nvfp4-kcramp-nextn
        sglang-nvfp4-b12x sglang-nvfp4-b12x-nomtp sglang-nvfp4-b12x-8gpu sglang-awq-cu130 sglang-awq-b12x-cu132
        sglang-awq-yarn-524k glm-5.1-8gpu glm-5.1-8gpu-mtp3
        glm-5.3-flash glm-5.3-flash-mtp3 glm-5.3-flash-spark-2gpu deepseek-v4-flash-2gpu deepseek-v4-flash-vision-2gpu
        deepseek-v4.1-flash qwen3.8-flash-next qwen3.8-flash-next-2gpu
    """
    assert not set(wanted.split()) - set(default_catalog().recipes)
