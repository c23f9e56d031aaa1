"""A drafter with a checkpoint of its own: from the recipe over the lock and the plan to the host, and what it takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
import yaml

from rigup.catalog.checkpoint import Files
from rigup.catalog.lint import check_recipe, known_of
from rigup.catalog.loader import Catalog, default_catalog
from rigup.catalog.memory import fit
from rigup.cli.main import main
from rigup.config.settings import Settings
from rigup.errors import InputError
from rigup.facts.store import parse_stored_models
from rigup.fit.memory import GIB, Cache, Split, blocks_of
from rigup.fit.shape import describe, kept
from rigup.lock.lockfile import Lock
from rigup.lock.resolve import Want, resolve
from rigup.plan.build import make_plan
from rigup.plan.model import EndpointPlan, kept_endpoint
from rigup.render.export import FORMS, shell
from rigup.render.systemd import unit_text
from tasks.preflight import _check_recipes
from tests.unit.loopback import Answer, Site, serving
from tests.unit.sample import LISTING, OWN, PUBLISHED, REPO, REVISION, lock
from tests.unit.small_world import published, world

DRAFTER = "acme/Qwen3.5-397B-EAGLE3"
COMMIT = "e" * 40
CONFIG = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "hidden_size": 4096,
}
CHECKPOINT = f"""\
id: eagle
repo: {DRAFTER}
branch: main
model: Qwen3.5-397B-EAGLE3
drafts_for: Qwen3.5-397B-A17B
quantization: BF16
bytes: 8000000000
"""
SPECULATION = "workload: [chat]\nspeculation: {method: eagle3, n: 3, model: eagle}\n"
VLLM, SGLANG, VENV = "vllm-nvfp4-cu130", "sglang-nvfp4-minimal", "vllm-stock-b12x"


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the user's recipes, with the checkpoint of a drafter."""
    (tmp_path / "lab.yaml").write_text("hosts: {rig1: {address: 192.0.2.1, recipe: mine}}\n")
    monkeypatch.setenv("RIGUP_INVENTORY", str(tmp_path / "lab.yaml"))
    (tmp_path / "recipes/checkpoints").mkdir(parents=True)
    (tmp_path / "recipes/checkpoints/eagle.yaml").write_text(CHECKPOINT)
    return tmp_path / "recipes"


def mine(recipes: Path, base: str, text: str = SPECULATION) -> Catalog:
    """The catalog with a variant of a recipe."""
    (recipes / "mine.yaml").write_text(OWN.format(base=base) + text)
    return default_catalog()


def locked(catalog: Catalog) -> Lock:
    """A lock for every recipe here, with the drafter at COMMIT."""
    recipe, known = catalog.recipe("mine"), lock()
    [main] = known.checkpoints.values()
    venv = {recipe.venv.key: {"requirements": [f"vllm==0.33.0 --hash=sha256:{'0' * 64}"]}} if recipe.venv else {}
    drafter = main.model_copy(update={"revision": COMMIT, "bytes": 8 * GIB, "files": 2})
    images = {recipe.image.tag: next(iter(known.images.values()))} if recipe.image else {}
    checkpoints = {each.key: main for each in catalog.checkpoints_of(recipe)} | {f"{DRAFTER}@main": drafter}
    return Lock.model_validate(known.model_dump() | {"images": images, "checkpoints": checkpoints, "venvs": venv})


def endpoint_of(catalog: Catalog) -> EndpointPlan:
    checkpoint = catalog.checkpoint(catalog.recipe("mine").checkpoint)
    files = {f"{checkpoint.repo}@{REVISION}": next(iter(PUBLISHED.values()))}
    plan = make_plan("rig1", Settings(recipe="mine"), catalog, locked(catalog), files)
    assert [each.source for each in plan.checkpoints] == [f"{checkpoint.repo}@{REVISION}", f"{DRAFTER}@{COMMIT}"]
    return plan.endpoint("main")


SGLANG_TEXT = "workload: [chat]\nspeculation: {method: EAGLE3, n: 4, steps: 3, topk: 1, model: eagle}\n"


def test_vllm_gets_the_drafter_in_its_configuration_and_sees_it_in_the_container(recipes: Path) -> None:
    endpoint = endpoint_of(mine(recipes, VLLM))
    [option] = [each for each in endpoint.options if each.startswith("--speculative-config=")]
    expected = {"method": "eagle3", "model": "/drafter", "num_speculative_tokens": 3}
    assert json.loads(option.partition("=")[2]) == expected
    assert f"--mount=type=bind,source=/srv/models/{DRAFTER}/{COMMIT},target=/drafter,readonly" in unit_text(endpoint)


def test_sglang_gets_the_path_of_the_drafter(recipes: Path) -> None:
    endpoint = endpoint_of(mine(recipes, SGLANG, SGLANG_TEXT))
    assert "--speculative-draft-model-path=/drafter" in endpoint.options


def test_without_a_container_the_engine_reads_the_drafter_from_the_store(recipes: Path) -> None:
    endpoint = endpoint_of(mine(recipes, VENV))
    path = f"/srv/models/{DRAFTER}/{COMMIT}"
    assert any(f'"model":"{path}"' in each for each in endpoint.options)
    assert f"BindReadOnlyPaths={path}\n" in unit_text(endpoint)
    assert f"--local-dir={path}" in shell(endpoint)


def test_another_commit_of_the_drafter_is_another_process(recipes: Path) -> None:
    endpoint = endpoint_of(mine(recipes, VLLM))
    assert endpoint.drafter is not None
    moved = endpoint.drafter.model_copy(update={"path": endpoint.drafter.path.replace("e", "f")})
    assert endpoint.model_copy(update={"drafter": moved}).digest != endpoint.digest
    # What earlier versions installed has the digest of a plan that knows no drafters.
    plain = endpoint.model_copy(update={"drafter": None})
    assert "drafter" not in json.dumps(plain.model_dump(exclude={"drafter", "options"}))
    assert plain.digest != endpoint.digest


def test_a_kept_plan_is_read_with_its_drafter_and_the_store_knows_who_uses_it(recipes: Path) -> None:
    catalog = mine(recipes, VLLM)
    plan = make_plan("rig1", Settings(recipe="mine"), catalog, locked(catalog), PUBLISHED)
    assert kept_endpoint(plan.text(), "main") == plan.endpoint("main")
    files = [f"5000 {repo}/model.safetensors" for repo in (f"{REPO}/{REVISION}", f"{DRAFTER}/{COMMIT}")]
    stored = parse_stored_models([*files, "--- plan", *plan.text().splitlines(), "--- units", "--- running"])
    assert {each.repo: each.used_by for each in stored} == {REPO: ("main",), DRAFTER: ("main",)}


@pytest.mark.parametrize("form", [form for form in FORMS if form != "shell"])
def test_every_form_has_both_checkpoints(recipes: Path, form: str) -> None:
    endpoint = endpoint_of(mine(recipes, VLLM))
    text = FORMS[form](endpoint)
    assert "/drafter" in text and DRAFTER in text


def test_kubernetes_downloads_and_mounts_both(recipes: Path) -> None:
    documents = list(yaml.safe_load_all(FORMS["kubernetes"](endpoint_of(mine(recipes, VLLM)))))
    claims = [each["metadata"]["name"] for each in documents if each["kind"] == "PersistentVolumeClaim"]
    assert claims == ["llm-main-model", "llm-main-drafter"]
    [job] = [each["spec"]["template"]["spec"] for each in documents if each["kind"] == "Job"]
    assert [each["args"][2] for each in job["containers"]] == ["/model", "/drafter"]
    [server] = [each["spec"]["template"]["spec"] for each in documents if each["kind"] == "Deployment"]
    assert [each["args"][1] for each in server["initContainers"]] == ["/model", "/drafter"]
    mounted = [(each["name"], each["mountPath"]) for each in server["containers"][0]["volumeMounts"]]
    assert mounted[:2] == [("model", "/model"), ("drafter", "/drafter")]


@pytest.mark.parametrize("base", [VLLM, VENV])
def test_show_names_the_branch_of_a_drafter_that_no_lock_has(
    recipes: Path, capsys: pytest.CaptureFixture[str], base: str
) -> None:
    mine(recipes, base)
    assert main(["show", "mine", "--as", "shell"]) == 0
    text = capsys.readouterr().out
    assert f"hf download {DRAFTER}".replace(" ", " \\\n  ") in text and "0" * 40 not in text
    assert f"/srv/models/{DRAFTER}/main" in text


WRONG = {
    "another model's": ("drafts_for: Qwen3.5-397B-A17B", "drafts_for: GLM-5.1", SPECULATION, "drafts for GLM-5.1"),
    "no drafter": ("drafts_for: Qwen3.5-397B-A17B\n", "", SPECULATION, "does not say which model it drafts for"),
    "MTP": ("id", "id", SPECULATION.replace("eagle3", "mtp"), "mtp drafts with a layer of the model itself"),
    "served": ("id", "id", "checkpoint: eagle\nworkload: [chat]\n", "is a drafter of Qwen3.5-397B-A17B"),
    "unknown": ("id", "id", SPECULATION.replace("model: eagle", "model: hawk"), "there is no checkpoint 'hawk'"),
    "none": ("id", "id", SPECULATION.replace(", model: eagle", ""), "name its checkpoint as speculation.model"),
}


@pytest.mark.parametrize(("before", "after", "text", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_draft_is_refused(
    recipes: Path, capsys: pytest.CaptureFixture[str], before: str, after: str, text: str, message: str
) -> None:
    (recipes / "checkpoints/eagle.yaml").write_text(CHECKPOINT.replace(before, after))
    mine(recipes, VLLM, text)
    assert main(["check", "mine"]) == 1
    assert message in capsys.readouterr().err


def test_the_option_of_a_drafter_has_its_own_key(recipes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine(recipes, SGLANG, "argv: {add: [--speculative-draft-model-path=/x]}\n")
    assert main(["check", "mine"]) == 1
    assert "write it as speculation.model" in capsys.readouterr().err


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as found:
        yield found


def test_the_lock_has_both_checkpoints_and_a_deploy_counts_the_locked_files(recipes: Path, site: Site) -> None:
    config = json.dumps(CONFIG | {"torch_dtype": "bfloat16"}).encode()
    settings = Settings.from_data({**world(site), "recipe": "mine"})
    weights = {"type": "file", "path": "model.safetensors", "size": 90 * GIB, "lfs": {"oid": "d" * 64}}
    listed = json.dumps([published("config.json", config), weights]).encode()
    site.pages |= {
        f"/api/models/{DRAFTER}/revision/main": Answer(json.dumps({"sha": COMMIT}).encode()),
        f"/api/models/{DRAFTER}/tree/{COMMIT}?recursive=true&expand=false": Answer(listed),
        f"/{DRAFTER}/resolve/{COMMIT}/config.json": Answer(config),
    }
    catalog = mine(recipes, VLLM)
    made = resolve([Want(settings)], catalog, Lock())
    assert set(made.checkpoints) == {f"{REPO}@main", f"{DRAFTER}@main"}
    held = made.checkpoints[f"{DRAFTER}@main"]
    assert (held.revision, held.config) == (COMMIT, {key: CONFIG[key] for key in CONFIG if key != "architectures"})
    assert set(held.listing) == {"config.json", "model.safetensors"} and LISTING
    # The 90 GiB of the drafter's file count, not the 8 GB that its checkpoint states.
    with pytest.raises(InputError, match="does not fit: weights 8"):
        _check_recipes({"rig1": settings}, catalog, {}, date(2026, 12, 1), {f"{DRAFTER}@main": held})


def test_the_drafter_takes_weights_and_cache(recipes: Path) -> None:
    catalog = mine(recipes, VLLM)
    recipe = catalog.recipe("mine")
    target, drafter = known_of(catalog, recipe, {f"{DRAFTER}@main": Files(CONFIG, 8 * GIB)})
    without, found = fit(recipe, *target[:2]), fit(recipe, *target[:2], drafter=drafter)
    assert without and found and without.blocks and found.blocks
    assert found.weights - without.weights == pytest.approx(2, abs=0.01)
    # One head of 2 x 128 values on each GPU is counted as one layer of 2 x 256, like the MTP layer that it replaces.
    assert found.blocks == without.blocks
    assert not check_recipe(catalog, recipe)


PLAIN = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 1024}


def test_the_cache_of_a_drafter_is_counted_in_layers_of_the_model() -> None:
    shape, drafts = describe(PLAIN | {"num_nextn_predict_layers": 1}), Cache(drafts=3)
    alike, wide = (
        describe(PLAIN | {"num_hidden_layers": 2}),
        describe(PLAIN | {"num_hidden_layers": 1, "head_dim": 256}),
    )
    sizes = [blocks_of(shape, Split(), drafts, drafter) for drafter in (None, alike, wide)]
    # Its own MTP layer, or else two or one of twice the size.
    assert [each and each.size // (2 * 256 * 2 * 16) for each in sizes] == [5, 6, 6]
    latent = describe({**PLAIN, "kv_lora_rank": 512, "qk_rope_head_dim": 64})
    found = [blocks_of(latent, Split(), drafts, drafter) for drafter in (None, alike)]
    assert [each and each.size // (576 * 2 * 64) for each in found] == [4, 4 + 2]
    assert blocks_of(shape, Split(), drafts, describe({})) is None


def test_the_configuration_of_the_library_speculators_is_read() -> None:
    config = {"speculators_model_type": "eagle3", "transformer_layer_config": PLAIN | {"num_hidden_layers": 1}}
    assert [each.layers for each in describe(config).heads] == [1]
    assert kept(config) == {"transformer_layer_config": PLAIN | {"num_hidden_layers": 1}}
