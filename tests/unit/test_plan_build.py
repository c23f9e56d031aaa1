"""The plan: pure, equal for equal input, and different where the served process is."""

import json
from datetime import UTC, datetime

import pytest

from rigup.catalog.engine_args import arguments
from rigup.config.settings import Settings
from rigup.errors import RigupError
from rigup.lock.lockfile import CheckpointLock, Lock
from rigup.plan.build import make_plan
from rigup.plan.model import EndpointPlan, Mount, Plan
from rigup.render.docker import docker_argv
from rigup.render.systemd import env_file_text
from tests.unit.sample import CATALOGUE, DIGEST, LISTING, PUBLISHED, REPO, REVISION, TAG, image, lock, plan

REFUSING = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}"
REFUSING += "{{ m.content }}{% endfor %}"

OLD = image(created=datetime(2026, 2, 23, tzinfo=UTC))


def test_everything_loose_is_resolved() -> None:
    endpoint = plan().endpoint("main")
    assert endpoint.image == f"vllm/vllm-openai@{DIGEST}"
    assert endpoint.image_tag == TAG
    assert endpoint.checkpoint.revision == REVISION
    assert endpoint.checkpoint.path == f"/srv/models/{REPO}/{REVISION}"
    assert endpoint.checkpoint.instance == "nvidia--Qwen3.5-397B-A17B-NVFP4--c5c90ef5aaa1"
    assert endpoint.url == "http://127.0.0.1:8000"
    assert endpoint.ready_timeout == 2700


def test_the_engine_gets_the_endpoint_from_rigup_and_the_rest_from_the_recipe() -> None:
    argv = plan(endpoints={"main": {"port": 9000, "listen": "::1"}}).endpoint("main").argv
    assert argv[:4] == ("--model=/model", "--served-model-name=Qwen3.5-397B-A17B", "--host=::1", "--port=9000")
    assert list(argv[4:]) == [argument for argument, _ in arguments(CATALOGUE.recipe("vllm-nvfp4-cu130"))]


def test_the_url_of_an_ipv6_address_has_brackets() -> None:
    assert plan(endpoints={"main": {"listen": "::1"}}).endpoint("main").url == "http://[::1]:8000"


def test_an_image_that_needs_no_patch_gets_none() -> None:
    endpoint = plan().endpoint("main")
    assert endpoint.patched_files == {}
    assert [mount.target for mount in endpoint.mounts] == ["/model"]


def test_an_older_image_gets_the_patched_config_mounted_over_the_published_one() -> None:
    endpoint = plan(OLD).endpoint("main")
    config = json.loads(endpoint.patched_files["config.json"])
    assert config["quantization_config"]["ignore"] == ["lm_head", "model.language_model.layers.*.mlp.gate"]
    assert [(mount.source, mount.target) for mount in endpoint.mounts] == [
        (endpoint.checkpoint.path, "/model"),
        (f"/etc/rigup/endpoints/main/{endpoint.generation}/config.json", "/model/config.json"),
    ]


def test_a_recipe_with_patches_needs_the_published_files() -> None:
    with pytest.raises(RigupError, match="were not read"):
        make_plan("rig1", Settings(), CATALOGUE, lock(), {})


def test_a_patched_chat_template_lies_beside_the_checkpoint_and_is_named_to_the_engine() -> None:
    published = {name: {**files, "chat_template.jinja": REFUSING} for name, files in PUBLISHED.items()}
    endpoint = make_plan("rig1", Settings(), CATALOGUE, lock(), published).endpoint("main")
    assert set(endpoint.patched_files) == {"chat_template.jinja"}
    assert endpoint.patched_files["chat_template.jinja"].endswith(REFUSING)
    assert endpoint.mounts[1:] == (
        Mount(source=f"{endpoint.directory}/chat_template.jinja", target="/rigup/chat_template.jinja"),
    )
    assert endpoint.argv[-1] == "--chat-template=/rigup/chat_template.jinja"


def test_equal_input_gives_an_equal_plan() -> None:
    one, two = plan(), plan()
    assert one.digest == two.digest
    assert one.text() == two.text()
    assert Plan.model_validate_json(one.model_dump_json(exclude_computed_fields=True)) == one


def test_the_text_on_the_host_is_json_with_the_digest() -> None:
    made = plan()
    data = json.loads(made.text())
    assert data["digest"] == made.digest
    assert data["endpoints"][0]["image"] == f"vllm/vllm-openai@{DIGEST}"


def test_the_order_of_endpoints_in_the_inventory_does_not_matter() -> None:
    left = {"gpus": [0, 1, 2, 3]}
    right = {"gpus": [4, 5, 6, 7], "port": 8001}
    assert plan(endpoints={"a": left, "b": right}).digest == plan(endpoints={"b": right, "a": left}).digest


def process(endpoint: EndpointPlan) -> tuple[list[str], str, dict[str, str]]:
    """What a host would run, without what only names the digest."""
    argv = [word for word in docker_argv(endpoint) if not word.startswith("--label=rigup.plan=")]
    argv = [word.replace(endpoint.generation, "GENERATION") for word in argv]
    return argv, env_file_text(endpoint), endpoint.patched_files


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"image": "vllm/vllm-openai@sha256:" + "cd" * 32},
        {"gpus": (0, 1, 2, 3)},
        {"options": ("--other",)},
        {"command": ("serve",)},
        {"port": 8001},
        {"served_name": "other"},
        {"env": {"A": "1"}},
        {"ulimits": {"memlock": 0}},
        {"checkpoint": plan().endpoint("main").checkpoint.model_copy(update={"path": "/srv/other"})},
        {"stall_timeout": 60},
        {"patched_files": {"config.json": "{}"}},
        {"ready_timeout": 60},
        {"ready_path": "/ready"},
        {"image_bytes": 1},
        {"image_tag": "a:b"},
        {"recipe": "other"},
        {"vram_mib": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_digest_changes_exactly_where_the_process_does(change: dict[str, object]) -> None:
    before = plan().endpoint("main")
    after = before.model_copy(update=change)
    assert (process(before) != process(after)) == (before.digest != after.digest)


@pytest.mark.parametrize(
    "settings",
    [
        {"driver_branch": 610},
        {"ready_timeout": 100},
        {"kernel_args": []},
        {"registry_mirror": "http://m:5000"},
    ],
)
def test_settings_of_the_host_change_the_plan_and_not_the_process(settings: dict[str, object]) -> None:
    before, after = plan(), plan(**settings)
    assert before.digest != after.digest
    assert before.endpoint("main").digest == after.endpoint("main").digest


def test_one_endpoints_change_leaves_the_others_process_alone() -> None:
    left, right = {"gpus": [0, 1, 2, 3]}, {"gpus": [4, 5, 6, 7], "port": 8001}
    before = plan(endpoints={"a": left, "b": right})
    after = plan(endpoints={"a": left, "b": {**right, "recipe": "vllm-nvfp4-cu130-mtp1"}})
    assert before.endpoint("a").digest == after.endpoint("a").digest
    assert before.endpoint("b").digest != after.endpoint("b").digest
    # Both serve one checkpoint from one image: it is fetched once.
    assert len(after.checkpoints) == 1
    assert after.images == {f"vllm/vllm-openai@{DIGEST}": TAG}


def test_an_unknown_recipe_names_the_near_ones() -> None:
    with pytest.raises(RigupError, match="there is no recipe 'vllm-nvfp4-cu310': did you mean vllm-nvfp4-cu130"):
        plan(recipe="vllm-nvfp4-cu310")
    with pytest.raises(RigupError, match="did you mean"):
        plan(endpoints={"main": {"recipe": "vllm-nvfp4"}})


def test_a_wrong_number_of_gpus_is_refused() -> None:
    with pytest.raises(RigupError, match="endpoint main has 2 GPUs, but recipe vllm-nvfp4-cu130 needs 4"):
        plan(endpoints={"main": {"gpus": [0, 1]}})


def test_what_the_lock_lacks_is_named() -> None:
    with pytest.raises(RigupError, match=f"the lock has no image {TAG}"):
        make_plan("rig1", Settings(), CATALOGUE, Lock(), PUBLISHED)
    with pytest.raises(RigupError, match=f"the lock has no checkpoint {REPO}@main"):
        make_plan("rig1", Settings(), CATALOGUE, Lock(images={TAG: image()}), PUBLISHED)


def test_an_unknown_endpoint_names_those_there_are() -> None:
    with pytest.raises(RigupError, match="rig1 has no endpoint 'mian': it has main"):
        plan().endpoint("mian")


@pytest.mark.parametrize(
    ("recipe", "images"),
    [
        ("vllm-nvfp4-voipmonitor-mtp2", True),
        ("deepseek-v4-flash-vision-2gpu", True),
        ("deepseek-v4.1-flash", True),
        ("glm-5.3-flash-mtp3", True),
        ("deepseek-v4-flash-2gpu", False),
        ("glm-5.1-8gpu", False),
    ],
)
def test_an_image_is_tried_with_every_model_that_is_known_to_accept_one(recipe: str, images: bool) -> None:
    found = CATALOGUE.recipe(recipe)
    commit = CheckpointLock(revision=REVISION, bytes=1, files=1, listing=LISTING)
    checkpoint = CATALOGUE.checkpoint(found.checkpoint)
    revision = checkpoint.revision or REVISION
    locked = Lock(
        images={found.container_image().tag: image()},
        checkpoints={checkpoint.key: commit.model_copy(update={"revision": revision})},
    )
    made = make_plan("rig1", Settings(recipe=recipe), CATALOGUE, locked, None)
    assert made.endpoint("main").smoke.images is images
    assert made.endpoint("main").smoke.thinking == ("thinking" if "deepseek" in recipe else "enable_thinking")
