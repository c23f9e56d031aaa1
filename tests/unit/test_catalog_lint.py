"""What `rigup check` finds: wrong recipes, each with its finding; the catalog's own, without any."""

from pathlib import Path

import pytest
import yaml

from rigup.catalog.engine_args import arguments
from rigup.catalog.engine_options import releases, releases_of
from rigup.catalog.lint import Hardware, check_catalog, check_recipe
from rigup.catalog.loader import Catalog, load_catalog
from rigup.catalog.memory import fit
from rigup.catalog.patch import IgnorePatch
from rigup.errors import InputError
from tests.unit.sample import CATALOGUE, OWN

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPES = ROOT / "recipes"


def mine(directory: Path, base: str, text: str) -> Catalog:
    """The catalog with a variant of a recipe. Raises InputError if the schema refuses it."""
    (directory / "mine.yaml").write_text(OWN.format(base=base) + text, encoding="utf-8")
    catalog = load_catalog(RECIPES, directory)
    catalog.recipe("mine")
    return catalog


GLM = "glm-5.3-flash-mtp3"
PLAIN, SGLANG, B12X = "vllm-nvfp4-cu130", "sglang-nvfp4-minimal", "sglang-nvfp4-b12x-nomtp"

WRONG = [
    (
        PLAIN,
        "speculation: {method: mtp, n: 2}\n",
        "mine.yaml:7: speculation: agents need tool calls, and speculation",
    ),
    (GLM, "workload: [agents]\n", "glm-5.3-flash-mtp3.yaml:32: speculation: agents need tool calls, and speculation"),
    (PLAIN, "tool_parser: null\n", "vllm-nvfp4-cu130.yaml:3: workload: agents need tool calls, but no parser"),
    (PLAIN, "parallel: {tp: 8}\n", "mine.yaml:7: parallel.tp: tp 8 x pp 1 x dp 1 is 8 GPUs, but gpus is 4"),
    (PLAIN, "parallel: {dcp: 3}\n", "mine.yaml:7: parallel.dcp: does not divide tp"),
    (PLAIN, "argv: {add: [--enable-expert-parallel]}\n", "mine.yaml:7: argv[7]: expert parallelism is slower"),
    (PLAIN, "argv: {add: [-ep]}\n", "mine.yaml:7: argv[7]: expert parallelism is slower"),
    (PLAIN, "argv: {add: [--moe-backend=b12x]}\n", "no released image of this engine has the b12x kernels"),
    (PLAIN, "env: {NCCL_GRAPH_FILE: /etc/nccl_graph_opt.xml}\n", "env.NCCL_GRAPH_FILE: is for eight GPUs on two"),
    (PLAIN, 'env: {NCCL_PROTO: ""}\n', "env.NCCL_PROTO: is empty, which NCCL treats as an error"),
    (PLAIN, "argv: {add: [--max-model-len=921600]}\n", "exceeds the native 262144 tokens"),
    (
        PLAIN,
        "argv: {add: [--language-model-only]}\n",
        "has no effect with --language-model-only, which leaves out the vision encoder",
    ),
    (PLAIN, "argv: {add: [--kv-cache-dtype=nvfp4]}\n", "there are no FP4 KV cache kernels for these cards"),
    (PLAIN, "checkpoint: qwen3.5-397b-fp8\n", "gpus: does not fit: weights 94.8"),
    (PLAIN, "argv: {add: [--disable-log-requests]}\n", "vllm 0.33.0 has no option --disable-log-requests"),
    (PLAIN, "argv: {add: [--swap-space=4]}\n", "vllm 0.33.0 has no option --swap-space"),
    (PLAIN, "argv: {add: [--attention-backend=FLASHINFR]}\n", "does not take 'FLASHINFR': did you mean FLASHINFER"),
    (PLAIN, "argv: {remove: [--max-num-seqs], add: [--max-num-seqs]}\n", "--max-num-seqs of vllm 0.33.0 needs a value"),
    (PLAIN, "argv: {add: [--language-model-only=yes]}\n", "--language-model-only of vllm 0.33.0 takes no value"),
    (
        PLAIN,
        "argv: {add: ['--attention-config={\"use_trtlm_attention\":false}']}\n",
        "has no key 'use_trtlm_attention'",
    ),
    (
        PLAIN,
        "argv: {add: ['--attention-config={use_trtllm_attention:false}']}\n",
        "--attention-config is not valid JSON",
    ),
    (
        PLAIN,
        'argv: {add: [\'--attention-config={"use_trtllm_attention":"no"}\']}\n',
        'has "no" instead of true or false',
    ),
    (PLAIN, "argv: {add: ['--eplb-config={\"window_size\":0.5}']}\n", "has 0.5 instead of a whole number"),
    (
        "vllm-nvfp4-cu130-mtp1",
        "speculation: {method: mpt, n: 1}\n",
        "speculation: method in --speculative-config of vllm 0.33.0 does not take 'mpt': did you mean mtp?",
    ),
    (PLAIN, "tool_parser: qwen35_coder\n", "tool_parser: qwen35_coder never shipped"),
    (PLAIN, "env: {VLLM_NVFP4_GEMM_BACKEND: cutlass}\n", "vllm 0.33.0 does not read VLLM_NVFP4_GEMM_BACKEND"),
    (PLAIN, "engine: {min: 0.33.0, max: 0.17.0}\n", "engine.min: 0.33.0 is above max 0.17.0"),
    (
        PLAIN,
        "engine: {min: 0.17.1, max: 0.32.0}\n",
        "mine.yaml:7: engine.min: there are no options on file",
    ),
    (PLAIN, "engine: {max: 0.16.0}\n", "engine.max: there are no options on file"),
    ("vllm-stock-b12x", "venv: {packages: ['vllm[b12y]==0.33.1']}\n", "no released image of this engine has the b12x"),
    ("vllm-stock-b12x", "engine: {min: 0.34.0}\n", "vllm[b12x]==0.33.0 is outside engine.min and engine.max"),
    ("vllm-carve-yarn-900k", "speculation: {method: mtp, n: 1}\n", "the drafter does not fit the weights of vpyn/"),
    ("vllm-nvfp4-cu130-mtp1", "speculation: {n: 5}\n", "more than 3 speculated tokens were never stable"),
    (
        SGLANG,
        "argv: {add: [--cuda-graph-max-bs=16]}\n",
        "--cuda-graph-max-bs is ambiguous in sglang 0.5.23, which exits",
    ),
    (SGLANG, "argv: {add: [--mamba-scheduler-strategy=extra_buffer]}\n", "no option --mamba-scheduler-strategy"),
    (SGLANG, "argv: {add: [--fp4-gemm-backend=b12x]}\n", "--fp4-gemm-backend of sglang 0.5.23 does not take 'b12x'"),
    (SGLANG, "tool_parser: qwen3_xml\n", "--tool-call-parser of sglang 0.5.23 does not take 'qwen3_xml'"),
    (
        SGLANG,
        "argv: {add: ['--json-model-override-args={\"rope_scaling\":{}}']}\n",
        "changes no rope in SGLang",
    ),
    (SGLANG, 'env: {SGLANG_ENABLE_SPEC_V2: "True"}\n', "sglang 0.5.23 does not read SGLANG_ENABLE_SPEC_V2"),
    (SGLANG, "checkpoint: qwen3.5-397b-nvfp4-v2\n", "has mixed precision: use --quantization=modelopt_mixed"),
    (B12X, "checkpoint: qwen3.5-397b-awq\n", "already says how it is quantized: remove it"),
    (
        PLAIN,
        "argv: {remove: [--max-num-seqs], add: [--max-num-seqs=many]}\n",
        "--max-num-seqs of vllm 0.33.0 does not take 'many': a whole number",
    ),
    (
        PLAIN,
        "argv: {remove: [--max-num-seqs], add: [--max-num-seqs=1.5]}\n",
        "--max-num-seqs of vllm 0.33.0 does not take '1.5': a whole number",
    ),
    (PLAIN, "argv: [--gpu-memory-utilization=90%]\n", "does not take '90%': a number"),
    (PLAIN, "argv: {add: [--max-model-len=256KB]}\n", "does not take '256KB': a number such as 8192, 8k or 8K"),
    (PLAIN, "argv: {add: ['--mm-processor-kwargs={1: 2}']}\n", "--mm-processor-kwargs is not valid JSON"),
    (
        SGLANG,
        "argv: {add: [--mem-fraction-static=most]}\n",
        "--mem-fraction-static of sglang 0.5.23 does not take 'most'",
    ),
    (
        SGLANG,
        "argv: {add: [--max-running-requests=6O]}\n",
        "--max-running-requests of sglang 0.5.23 does not take '6O'",
    ),
    (
        B12X,
        "argv: {add: [--enable-pcie-oneshot-alreduce]}\n",
        "sglang 0.5.23 (fork voipmonitor) has no option --enable-pcie-oneshot-alreduce: did you mean",
    ),
    (
        B12X,
        "argv: [--moe-runner-backend=b13x]\n",
        "--moe-runner-backend of sglang 0.5.23 (fork voipmonitor) does not take",
    ),
    (
        B12X,
        'env: {SGLANG_ENABLE_SPEC_V3: "1"}\n',
        "does not read SGLANG_ENABLE_SPEC_V3: did you mean SGLANG_ENABLE_SPEC_V2",
    ),
    (
        GLM,
        "speculation: {method: mpt}\n",
        "speculation: --mode of vllm 0.33.0 (fork local-inference-lab) does not take 'mpt': did you mean mtp?",
    ),
    (GLM, "speculation: {n: [[1, 4, 3]]}\n", "speculation: --draft-tokens of vllm 0.33.0 (fork local-inference-lab"),
    (GLM, "speculation: {n: 4}\n", "mine.yaml:7: speculation.n: more than 3 speculated tokens were never stable"),
    (
        PLAIN,
        "engine: {fork: somebody}\nargv: {add: [--own-option]}\n",
        "If the fork has it, add it to recipes/engines/forks/somebody-vllm.yaml with its source",
    ),
    (
        SGLANG,
        "patches: [{target: quantization-ignore, add: [model.language_model.layers.*.mlp.gate], why: x}]\n",
        "SGLang has no modules below model.language_model",
    ),
]


@pytest.mark.parametrize(("base", "text", "words"), WRONG, ids=[words for _, _, words in WRONG])
def test_a_wrong_recipe_gets_its_finding(tmp_path: Path, base: str, text: str, words: str) -> None:
    text = text.replace("0.33.0", '"0.33.0"').replace("0.17.0", '"0.17.0"').replace("0.34.0", '"0.34.0"')
    findings = check_catalog(mine(tmp_path, base, text), ["mine"])
    assert any(words in str(finding) for finding in findings), findings
    # What it extends has no such fault: it is this change that was found.
    assert not check_catalog(CATALOGUE, [base])


def test_the_catalogs_own_recipes_are_sound() -> None:
    assert [str(finding) for finding in check_catalog(CATALOGUE)] == []


def test_more_gpus_than_there_are_is_a_finding() -> None:
    found = check_catalog(CATALOGUE, ["vllm-fp8-8gpu-mtp2"], Hardware(gpus=4))
    assert [str(finding).split(": ", 1)[1] for finding in found] == [
        "gpus: needs 8 GPUs, but there are 4: choose a recipe for fewer GPUs [recipe-hardware-gpus]"
    ]


@pytest.mark.parametrize(
    ("name", "branch", "words"),
    [
        (PLAIN, 575, None),
        (PLAIN, 580, None),
        (
            "sglang-awq-b12x-cu132",
            580,
            "image.tag: needs CUDA 13.2, but driver branch 580 has CUDA 13.0: use driver branch",
        ),
        (GLM, 595, "min_driver_cuda: needs CUDA 13.4, but driver branch 595 has CUDA 13.2: use driver branch 615"),
        (GLM, 615, None),
        (GLM, 620, None),
    ],
)
def test_a_driver_older_than_the_images_cuda_is_a_finding(name: str, branch: int, words: str | None) -> None:
    found = [str(finding) for finding in check_catalog(CATALOGUE, [name], Hardware(driver_branch=branch))]
    assert len(found) == (words is not None) and (words is None or words in found[0]), found


def test_gpus_with_too_little_memory_are_a_finding() -> None:
    found = [str(finding) for finding in check_catalog(CATALOGUE, [PLAIN], Hardware(vram_mib=49140))]
    assert len(found) == 1 and "does not fit: weights 58" in found[0], found


def test_a_length_with_a_suffix_counts_as_the_engine_reads_it(tmp_path: Path) -> None:
    for text, tokens in (("1M", 1 << 20), ("1m", 10**6), ("900k", 900000), ("921600", 921600)):
        found = check_catalog(mine(tmp_path, PLAIN, f"argv: {{add: [--max-model-len={text}]}}\n"), ["mine"])
        assert any("exceeds the native 262144 tokens" in str(finding) for finding in found), text
        recipe = mine(tmp_path, PLAIN, f"argv: {{add: [--max-model-len={text}]}}\n").recipe("mine")
        estimate = fit(recipe, CATALOGUE.checkpoint(recipe.checkpoint), CATALOGUE.model_of(recipe))
        assert estimate and estimate.context == tokens


def test_a_finding_names_the_file_of_the_recipe_that_was_extended(tmp_path: Path) -> None:
    catalog = mine(tmp_path, "vllm-nvfp4-v2", "workload: [chat]\n")
    recipe = catalog.recipe("mine").model_copy(update={"gpus": 8})
    assert any("vllm-nvfp4-cu130.yaml" in finding.where for finding in check_recipe(catalog, recipe))


@pytest.mark.parametrize(
    ("base", "text", "words"),
    [
        (PLAIN, "argv: {add: [--tensor-parallel-size=8]}\n", "which has its own key: write it as parallel.tp"),
        (PLAIN, "argv: {add: [--tensor_parallel_size=8]}\n", "which has its own key: write it as parallel.tp"),
        (PLAIN, "argv: {add: [-pp=2]}\n", "which has its own key: write it as parallel.pp"),
        (PLAIN, "argv: {add: [-dp=2]}\n", "which has its own key: write it as parallel.dp"),
        (PLAIN, "argv: {add: [-dcp=2]}\n", "which has its own key: write it as parallel.dcp"),
        (PLAIN, "argv: {add: [--api_key=secret]}\n", "argv has --api-key, which comes from the endpoint"),
        (PLAIN, "argv: {add: ['--speculative_config={}']}\n", "has its own key: write it as speculation"),
        (PLAIN, "argv: {add: [--speculative-config.method=mtp]}\n", "has its own key: write it as speculation"),
        (PLAIN, "argv: {add: ['-sc={}']}\n", "argv has -sc, which has its own key: write it as speculation"),
        (
            "vllm-carve-yarn-900k",
            "argv: {add: [--hf_overrides.x=1]}\n",
            "argv has --hf-overrides, which the yarn patch also sets",
        ),
        (GLM, "argv: [--mode=mtp]\n", "argv has --mode, which has its own key: write it as speculation"),
        (GLM, "argv: [--draft-tokens=3]\n", "which has its own key: write it as speculation.n"),
        (PLAIN, "argv: {add: [--enable-prefix-caching, --enable_prefix_caching]}\n", "already exists"),
        (PLAIN, "argv: {add: [max-num-seqs=8]}\n", "which is not an option"),
        (PLAIN, "speculation: {method: qwen3_next_mtp, n: 2}\n", "deprecated name of the same drafter: use mtp"),
        (
            PLAIN,
            "speculation: {method: mtp, n: [[1, 4, 3], [6, 9, 0]]}\n",
            "[6, 9, 0], but the next step must start at 5",
        ),
        (
            PLAIN,
            "speculation: {method: mtp, n: [[1, 9, 0]]}\n",
            "n drafts no tokens at any batch size: use speculation: null",
        ),
        (
            PLAIN,
            "speculation: {method: mtp, n: 2, steps: 3, topk: 1}\n",
            "speculation with vllm does not take steps and topk",
        ),
        (SGLANG, "speculation: {method: NEXTN, n: 4}\n", "speculation with sglang needs steps and topk"),
        (PLAIN, 'venv: {python: "3.12", packages: ["vllm==0.33.0"]}\n', "has image and venv to install the engine"),
        (PLAIN, "image: null\n", "has nothing to install the engine from"),
        (PLAIN, 'image: null\nvenv: {python: "3.12", packages: [vllm]}\n', "'vllm' is not a pinned package"),
        (PLAIN, "superseded_by: vllm-nvfp4-v2\n", "status is assembled with superseded_by"),
        (PLAIN, "env: {NCCL_P2P_LEVEL: '4'}\n", "NCCL_P2P_LEVEL is '4'"),
        (PLAIN, "container: {security_opt: [apparmor=unconfined]}\n", "container.security_opt[0]"),
    ],
)
def test_what_the_schema_itself_refuses(tmp_path: Path, base: str, text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        mine(tmp_path, base, text)
    assert words in str(caught.value)


def test_corrupted_and_unshipped_forms_stand_in_caveats_and_evidence_alone() -> None:
    for recipe in CATALOGUE.recipes.values():
        text = " ".join(argument for argument, _ in arguments(recipe)) + " ".join(
            pattern for patch in recipe.patches if isinstance(patch, IgnorePatch) for pattern in patch.add
        )
        for form in ("qwen35_coder", "qwen3_next_mtp", "layers..mlp", "NCCL_P2P_LEVEL=4"):
            assert form not in text, recipe.id


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("glm-5.3-flash", ["--mode=off"]),
        (GLM, ["--mode=mtp", "--draft-tokens=3"]),
        ("glm-5.3-flash-spark-2gpu", ["--mode=mtp", "--draft-tokens=3"]),
        ("glm-5.3-flash-dflash2", ["--mode=dflash2", "--draft-tokens=7", "--draft-model=/drafter"]),
        ("qwen3.8-flash-next", ["--mode=mtp", "--draft-tokens=3"]),
        ("qwen3.8-flash-next-2gpu", ["--mode=mtp", "--draft-tokens=3"]),
        ("deepseek-v4-flash-2gpu", ["--mode=dspark", "--draft-tokens=5"]),
        ("deepseek-v4-flash-vision-2gpu", ["--mode=dspark", "--draft-tokens=3"]),
        ("deepseek-v4.1-flash", ["--mode=dspark", "--draft-tokens=7"]),
    ],
)
def test_a_launcher_that_speculates_by_itself_is_told_what_to_do(name: str, told: list[str]) -> None:
    given = [argument for argument, key in arguments(CATALOGUE.recipe(name)) if key == "speculation"]
    assert given == told


@pytest.mark.parametrize("packages", ["vllm[b12x]==0.33.0", "vllm[audio,b12x]==0.33.0", "vllm==0.33.0, b12x==1.5.1"])
def test_a_pinned_engine_gives_its_version_and_may_bring_b12x_as_an_extra(tmp_path: Path, packages: str) -> None:
    text = f"engine: {{min: '0.30.0'}}\nvenv: {{packages: [{', '.join(map(repr, packages.split(', ')))}]}}\n"
    catalog = mine(tmp_path, "vllm-stock-b12x", text)
    assert check_catalog(catalog, ["mine"]) == []
    assert catalog.recipe("mine").engine_version == "0.33.0"


def test_nothing_assembled_is_marked_as_quoted() -> None:
    for recipe in CATALOGUE.recipes.values():
        for evidence in recipe.evidence:
            assert evidence.kind == "assembled" or (evidence.who and evidence.when and evidence.changed), recipe.id


def test_the_fit_gives_what_the_engine_logged() -> None:
    # vLLM with one speculated token at 0.90 logged 10.85 full sequences for the snapshot of February (209 GiB).
    recipe = CATALOGUE.recipe("vllm-nvfp4-cu130-mtp1")
    recipe = recipe.model_copy(update={"argv": ("--gpu-memory-utilization=0.90",)})
    checkpoint = CATALOGUE.checkpoint(recipe.checkpoint).model_copy(update={"bytes": 209 << 30})
    estimate = fit(recipe, checkpoint, CATALOGUE.model_of(recipe), 97887)
    assert estimate and estimate.sequence == pytest.approx(2.16, abs=0.01)
    # 7 GiB are 3.2 sequences.
    assert abs(estimate.left / estimate.sequence - 10.85) < 3.2


def test_eight_gpus_of_fp8_fit_and_four_do_not() -> None:
    recipe = CATALOGUE.recipe("vllm-fp8-8gpu-mtp2")
    checkpoint = CATALOGUE.checkpoint(recipe.checkpoint)
    on_four = recipe.model_copy(update={"gpus": 4, "parallel": recipe.parallel.model_copy(update={"tp": 4})})
    model = CATALOGUE.model_of(recipe)
    wide, narrow = fit(recipe, checkpoint, model), fit(on_four, checkpoint, model)
    assert wide and narrow and (wide.impossible, narrow.impossible) == (False, True)


def test_a_recipe_is_judged_by_the_releases_in_its_range_and_a_fork_by_what_is_known_of_it() -> None:
    ranges = {"vllm-nvfp4-chisleu": ["0.17.0"], PLAIN: ["0.17.0", "0.33.0"], "vllm-stock-b12x": ["0.33.0"]}
    for name, versions in ranges.items():
        assert [release.version for release in releases_of(CATALOGUE.recipe(name))] == versions
    forks = [recipe for recipe in CATALOGUE.recipes.values() if recipe.engine.fork]
    assert len(forks) >= 14
    for recipe in forks:
        [release] = releases_of(recipe)
        assert release.fork == recipe.engine.fork and release.engine == recipe.engine.name
        assert (RECIPES / f"engines/forks/{release.fork}-{release.engine}.yaml").is_file()


def test_what_is_known_of_a_fork_names_its_source_and_adds_what_no_release_has() -> None:
    known = {(release.engine, release.version): release for release in releases()}
    for path in (RECIPES / "engines" / "forks").glob("*.yaml"):
        data = yaml.safe_load(path.read_text())
        like = known[data["engine"], data["like"]]
        assert path.stem == f"{data['fork']}-{data['engine']}" and data["source"]
        assert not set(data.get("options", {})) & set(like.options)
        assert not set(data.get("environment", ())) & like.environment
        for name, more in data.get("values", {}).items():
            assert not set(more) & set(like.options[name])


def test_few_options_take_just_anything() -> None:
    for release in releases():
        unknown = [name for name, kind in release.options.items() if kind == "value" and name not in release.keys]
        assert len(unknown) < 0.13 * len(release.options), release.name


def test_what_the_wheels_know_was_read_rightly() -> None:
    known = {release.name: release for release in releases()}
    older, vllm, sglang = known["vllm 0.17.0"], known["vllm 0.33.0"], known["sglang 0.5.23"]
    assert older.options["--enable-auto-tool-choice"] == vllm.options["--enable-auto-tool-choice"] == "flag"
    assert "qwen3_coder" in older.options["--tool-call-parser"]
    assert vllm.options["--language-model-only"] == "flag"
    assert vllm.options["--mm-encoder-tp-mode"] == ("weights", "data")
    assert "b12x" in vllm.options["--moe-backend"] and "B12X" in vllm.options["--attention-backend"]
    assert {"qwen3_coder", "qwen3_xml"} <= set(vllm.options["--tool-call-parser"])
    assert "qwen35_coder" not in vllm.options["--tool-call-parser"]
    assert "num_speculative_tokens_per_batch_size" in vllm.keys["--speculative-config"]
    drafted = vllm.keys["--speculative-config"]
    assert drafted["num_speculative_tokens_per_batch_size"] == {"list": {"tuple": ["int", "int", "int"]}}
    assert drafted["num_speculative_tokens"] == "int" and "mtp" in drafted["method"]
    assert "VLLM_ALLOW_LONG_MAX_MODEL_LEN" in vllm.environment
    qwen, glm = "Qwen3_5MoeForConditionalGeneration", "Glm5NextForConditionalGeneration"
    assert [qwen in each.architectures for each in (older, vllm, sglang)] == [True, True, True]
    assert [glm in each.architectures for each in (older, vllm, sglang)] == [False, True, True]
    # A drafter and an embedding model, which nobody chats with.
    assert not {"Qwen3_5MoeMTP", "BertModel"} & vllm.architectures
    assert "--cuda-graph-max-bs" not in sglang.options and "--cuda-graph-max-bs-decode" in sglang.options
    assert "qwen3_coder" in sglang.options["--tool-call-parser"]
    assert "b12x" not in sglang.options["--fp4-gemm-backend"]
