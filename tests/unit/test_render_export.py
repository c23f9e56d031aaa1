"""`rigup show`: every form hands the plan's arguments on unchanged, and says where each value was written."""

import json
import random
import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from rigup.catalog.apply_patches import TEMPLATE
from rigup.catalog.loader import Catalog
from rigup.cli import main
from rigup.config.settings import Settings
from rigup.errors import RigupError
from rigup.lock import lockfile as locks
from rigup.lock.lockfile import Lock, VenvLock
from rigup.plan.build import Published, make_plan
from rigup.plan.host import CACHE
from rigup.plan.model import EndpointPlan
from rigup.render.docker import docker_argv
from rigup.render.export import FORMS, compose, docker, kubernetes, shell, shown, systemd
from tests.unit.sample import CATALOGUE, PUBLISHED, REPO, REVISION, image, lock, plan
from tests.unit.small_world import published
from tests.unit.systemd_words import exec_words
from tests.unit.test_plan_build import REFUSING
from tests.unit.test_render_systemd import HOSTILE, settings_of
from tests.unit.waiting import HANG_S

CONTAINERS = sorted(name for name, recipe in CATALOGUE.recipes.items() if recipe.image)
BARE = sorted(name for name, recipe in CATALOGUE.recipes.items() if recipe.venv)


FETCH = [
    "HF_ENDPOINT=https://huggingface.co",
    *("hf", "download", REPO, f"--revision={REVISION}", f"--local-dir=/srv/models/{REPO}/{REVISION}"),
]


def undoubled(text: str) -> str:
    """What compose and Kubernetes make of `$$`; a single `$` before a name would be a variable."""
    assert "$" not in text.replace("$$", "")
    return text.replace("$$", "$")


def shell_words(command: str) -> list[str]:
    """What a real shell makes of one command."""
    script = f"set -- {command}\nprintf '%s\\0' \"$@\""
    ran = subprocess.run(["sh", "-c", script], capture_output=True, check=True, timeout=HANG_S)
    return ran.stdout.decode().split("\0")[:-1]


def words_of(text: str) -> list[str]:
    """All words of a text of commands, whose lines go on after a backslash."""
    return [word for word in shlex.split(text, comments=True) if word != "\n"]


def command_of(text: str) -> str:
    """The command before the comments."""
    return text.partition("\n\n# ")[0]


def after_image(words: list[str], endpoint: EndpointPlan) -> list[str]:
    return words[words.index(endpoint.image) + 1 :]


def arguments_in(form: str, endpoint: EndpointPlan) -> list[str]:
    """The server's arguments as the form's own reader gets them."""
    if form == "docker":
        return after_image(shell_words(docker(endpoint)), endpoint)
    if form == "shell":
        pull, _, rest = shell(endpoint).partition("\nenv ")
        fetch, _, run = rest.partition("\n/usr/bin/docker ")
        assert shell_words(pull) == ["/usr/bin/docker", "pull", endpoint.image]
        assert shell_words(fetch) == FETCH
        return after_image(shell_words(run), endpoint)
    if form == "systemd":
        return after_image(exec_words(settings_of(systemd(endpoint))["ExecStart"][0]), endpoint)
    if form == "compose":
        return [undoubled(word) for word in yaml.safe_load(compose(endpoint))["services"]["llm-main"]["command"]]
    [pod] = [each for each in yaml.safe_load_all(kubernetes(endpoint)) if each["kind"] == "Deployment"]
    words = [undoubled(word) for word in pod["spec"]["template"]["spec"]["containers"][0]["args"]]
    return ["--host=127.0.0.1" if word == "--host=0.0.0.0" else word for word in words]


@pytest.mark.parametrize("form", sorted(FORMS))
def test_hostile_values_arrive_as_they_are_in_every_form(form: str) -> None:
    base = plan().endpoint("main")
    alphabet = " \t\n\r\"'\\$%{}()[];#=@:,&|<>*?!`~-ax0é模\x01\x7f"
    for seed in range(60):
        source = random.Random(seed)
        values = ["".join(source.choices(alphabet, k=source.randrange(14))) for _ in range(3)]
        hostile = [f"--x{n}={value}" for n, value in enumerate([*values, source.choice(HOSTILE)])]
        endpoint = base.model_copy(update={"options": (*base.options, *hostile)})
        assert arguments_in(form, endpoint) == list(endpoint.argv), seed


@pytest.mark.parametrize("form", ["docker", "compose", "kubernetes"])
def test_hostile_environments_arrive_as_they_are(form: str) -> None:
    env = {f"V{n}": value for n, value in enumerate(HOSTILE) if not set(value) & set("\n\r\0")}
    endpoint = plan().endpoint("main").model_copy(update={"env": env})
    if form == "docker":
        words = [word for word in shell_words(docker(endpoint)) if word.startswith("--env=")]
        found = dict(word.removeprefix("--env=").split("=", 1) for word in words)
    elif form == "compose":
        service = yaml.safe_load(compose(endpoint))["services"]["llm-main"]
        found = {name: undoubled(value) for name, value in service["environment"].items()}
    else:
        [pod] = [each for each in yaml.safe_load_all(kubernetes(endpoint)) if each["kind"] == "Deployment"]
        listed = pod["spec"]["template"]["spec"]["containers"][0]["env"]
        found = {each["name"]: undoubled(each["value"]) for each in listed if "value" in each}
    assert found == env


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_recipe_has_every_form(name: str, form: str) -> None:
    text = shown(CATALOGUE, name, form).render()
    # The unit's own first line is a comment.
    assert text.startswith("#") == (form == "systemd")
    recipe = CATALOGUE.recipe(name)
    image = recipe.container_image()
    assert (image.digest or image.tag) in text
    assert f"--served-model-name={recipe.served_name}" in text
    if form in ("compose", "kubernetes"):
        assert all(yaml.safe_load_all(text))


@pytest.mark.parametrize("name", BARE)
def test_a_recipe_without_a_container_is_shown_as_commands_only(name: str) -> None:
    words = shlex.split(shown(CATALOGUE, name, "shell").text, comments=True)
    assert "uv" in words
    assert "--host=127.0.0.1" in words
    with pytest.raises(RigupError, match="`--as shell`"):
        shown(CATALOGUE, name, "docker")


@pytest.mark.parametrize("name", BARE)
def test_a_recipe_without_a_container_is_shown_as_the_unit_that_a_deploy_installs(name: str) -> None:
    text = shown(CATALOGUE, name, "systemd").render()
    assert "# the packages are not in a lock" in text
    assert "\nUser=rigup-serve\n" in text
    assert f"--served-model-name={CATALOGUE.recipe(name).served_name}" in text
    assert "0" * 40 not in text


def test_every_value_says_where_it_was_written() -> None:
    assert "<-" not in shown(CATALOGUE, "vllm-nvfp4-cu130-mtp2", "docker").render()
    text = shown(CATALOGUE, "vllm-nvfp4-cu130-mtp2", "docker").render(explain=True)
    assert "# --max-num-seqs=128  <- argv[3] vllm-nvfp4-cu130.yaml:" in text
    assert "# --tensor-parallel-size=4  <- parallel.tp vllm-nvfp4-cu130.yaml:" in text
    assert "# NCCL_P2P_LEVEL=PHB  <- env.NCCL_P2P_LEVEL vllm-nvfp4-cu130.yaml:" in text
    assert "# HF_HUB_OFFLINE=1  <- rigup\n" in text


def test_a_line_break_in_a_value_does_not_leave_its_comment() -> None:
    recipe = CATALOGUE.recipe("vllm-nvfp4-cu130")
    hostile = recipe.model_copy(update={"argv": ("--x=a\nrm -rf /", "--y=\u2028b")})
    text = shown(Catalog({recipe.id: hostile}, CATALOGUE.checkpoints), recipe.id, "docker").render(explain=True)
    assert "rm -rf /" in text
    assert shell_words(command_of(text))[-2:] == ["--x=a\nrm -rf /", "--y=\u2028b"]


def test_what_is_not_resolved_is_said_and_nothing_is_invented() -> None:
    text = shown(CATALOGUE, "vllm-nvfp4-cu130", "docker").render()
    assert "# the image is not in a lock" in text
    assert "0" * 40 not in text
    assert "/srv/models/nvidia/Qwen3.5-397B-A17B-NVFP4/main" in text


def test_docker_is_the_units_own_command_but_for_the_environment_file_and_the_log() -> None:
    endpoint = plan().endpoint("main")
    words = [word for word in shell_words(docker(endpoint)) if not word.startswith("--env=")]
    units = [word for word in docker_argv(endpoint) if not word.startswith("--env-file=")]
    units[units.index("--log-driver=none")] = "--log-driver=local"
    assert words == units


def test_a_pod_may_load_for_as_long_as_the_unit_may() -> None:
    endpoint = plan(ready_timeout=2700).endpoint("main")
    [pod] = [each for each in yaml.safe_load_all(kubernetes(endpoint)) if each["kind"] == "Deployment"]
    probe = pod["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] >= 2700
    assert pod["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert pod["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"] == {"memory": "12Gi"}


def test_what_a_container_needs_beyond_the_usual_is_in_its_command_and_in_its_digest() -> None:
    plain = plan().endpoint("main")
    options = {"caches": ("/cache/jit",), "tmpfs": ("/usr/local/cuda-13.0/compat",)}
    endpoint = plain.model_copy(update={**options, "security_opt": ("seccomp=unconfined",)})
    words = docker_argv(endpoint)
    assert "--mount=type=volume,source=llm-main-cache-jit,target=/cache/jit" in words
    assert "--mount=type=tmpfs,target=/usr/local/cuda-13.0/compat" in words
    assert "--security-opt=seccomp=unconfined" in words
    assert endpoint.digest != plain.digest


WRITTEN = {"model_store": "/data/models", "endpoints": {"left": {"gpus": [0, 1, 2, 3], "port": 8005}}}
SAMPLING = """\
id: own-sampling
title: With defaults of its own for requests
extends: vllm-stock-b12x
status: assembled
tool_calls: unknown
evidence: [{source: here, kind: assembled, says: a try}]
patches: [{target: generation-defaults, set: {temperature: 0.5}, why: a try}]
"""


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Lock, Published]:
    """An inventory with rig1, whose lock is of an image that needs patches, and what the checkpoint published."""
    monkeypatch.chdir(tmp_path)
    inventory = tmp_path / "lab.yaml"
    monkeypatch.setenv("RIGUP_INVENTORY", str(inventory))
    inventory.write_text(yaml.safe_dump({"hosts": {"rig1": {"address": "192.0.2.1", **WRITTEN}}}))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "own-sampling.yaml").write_text(SAMPLING)
    venv = CATALOGUE.recipe("vllm-stock-b12x").venv
    assert venv
    pins = tuple(f"{name} --hash=sha256:{'ab' * 32}" for name in ("b12x==1.5.1", "torch==2.14.0", "vllm==0.33.0"))
    known = lock(image(created=datetime(2026, 2, 20, tzinfo=UTC)))
    known = known.merged(Lock(venvs={venv.key: VenvLock(requirements=pins)}))
    files = {**PUBLISHED[f"{REPO}@{REVISION}"], "chat_template.jinja": REFUSING, "generation_config.json": "{}"}
    listed = [published(name, text.encode()) for name, text in files.items()]
    listing = {str(entry["path"]): f"{entry['size']} git:{entry['oid']}" for entry in listed}
    checkpoint = known.checkpoints[f"{REPO}@main"].model_copy(update={"listing": listing})
    known = known.merged(Lock(checkpoints={f"{REPO}@main": checkpoint}))
    locks.write(tmp_path / "lab.lock", known)
    kept = tmp_path / CACHE / "published" / REPO / REVISION
    kept.mkdir(parents=True)
    for name, text in files.items():
        (kept / name).write_text(text)
    return inventory, known, {f"{REPO}@{REVISION}": files}


def shown_for_rig1(name: str, form: str, inventory: Path) -> int:
    return main.main(["show", name, "rig1", "--inventory", str(inventory), "--as", form])


@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_host_of_the_inventory_is_shown_what_it_would_run_itself(
    rig: tuple[Path, Lock, Published], form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inventory, known, published = rig
    assert shown_for_rig1("vllm-nvfp4-cu130", form, inventory) == 0
    settings = Settings.from_data({"recipe": "vllm-nvfp4-cu130", **WRITTEN})
    endpoint = make_plan("rig1", settings, CATALOGUE, known, published).endpoint("left")
    assert set(endpoint.patched_files) == {"config.json", "chat_template.jinja"}
    text = capsys.readouterr().out
    assert FORMS[form](endpoint) in text and "patched files are left out" not in text
    assert "--chat-template=/rigup/chat_template.jinja" in text and "8005" in text


def test_a_host_in_place_of_the_recipe_is_shown_what_it_serves(
    rig: tuple[Path, Lock, Published], capsys: pytest.CaptureFixture[str]
) -> None:
    inventory = rig[0]
    assert shown_for_rig1("vllm-nvfp4-cu130", "docker", inventory) == 0
    expected = capsys.readouterr().out
    for word in ("rig1", "rig1/left"):
        assert main.main(["show", word, "--inventory", str(inventory)]) == 0
        assert capsys.readouterr().out == expected
    assert main.main(["show", "rig1/lfet", "--inventory", str(inventory)]) == 1
    assert "rig1 has no endpoint 'lfet': did you mean left" in capsys.readouterr().err
    assert main.main(["show", "rig2", "--inventory", str(inventory)]) == 1
    assert "there is no recipe 'rig2'" in capsys.readouterr().err


def test_a_pod_of_a_host_has_its_patched_files_where_its_arguments_say(
    rig: tuple[Path, Lock, Published], capsys: pytest.CaptureFixture[str]
) -> None:
    inventory = rig[0]
    assert shown_for_rig1("vllm-nvfp4-cu130", "kubernetes", inventory) == 0
    found = {each["kind"]: each for each in yaml.safe_load_all(capsys.readouterr().out)}
    for each in found.values():
        kubernetes_validate.validate(each, "1.34", strict=True)
    files = found["ConfigMap"]
    quantization = json.loads(files["data"]["config.json"])["quantization_config"]
    assert "model.language_model.layers.*.mlp.gate" in quantization["ignore"]
    pod = found["Deployment"]["spec"]["template"]["spec"]
    assert {"name": "files", "configMap": {"name": files["metadata"]["name"]}} in pod["volumes"]
    mounts = pod["containers"][0]["volumeMounts"]
    order = [mount["mountPath"] for mount in mounts]
    places = {mount["mountPath"]: mount["subPath"] for mount in mounts if mount["name"] == "files"}
    assert places == {f"{over}/{name}": name for over, name in (("/model", "config.json"), ("/rigup", TEMPLATE))}
    # A file over another lies in what was mounted before it.
    assert order.index("/model") < order.index("/model/config.json")


def test_a_host_without_a_container_is_shown_its_locked_packages_its_paths_and_its_template(
    rig: tuple[Path, Lock, Published], capsys: pytest.CaptureFixture[str]
) -> None:
    inventory, known, published = rig
    mirrors = {
        "pypi_index": "http://mirror:8000/simple",
        "hub_endpoint": "http://hub:8001",
        "python_mirror": "http://py",
    }
    data = yaml.safe_load(inventory.read_text())
    data["hosts"]["rig1"] |= mirrors
    inventory.write_text(yaml.safe_dump(data))
    assert shown_for_rig1("vllm-stock-b12x", "shell", inventory) == 0
    settings = Settings.from_data({"recipe": "vllm-stock-b12x", **WRITTEN})
    endpoint = make_plan("rig1", settings, CATALOGUE, known, published).endpoint("left")
    assert endpoint.venv
    words = words_of(capsys.readouterr().out)
    install = words.index("install")
    assert words[install + 1 : install + 7] == [
        *("--index-url=http://mirror:8000/simple", "--allow-insecure-host=mirror:8000"),
        f"--python={endpoint.venv.path}/bin/python3",
        *("b12x==1.5.1", "torch==2.14.0", "vllm==0.33.0"),
    ]
    assert words[:4] == ["env", "UV_PYTHON_INSTALL_MIRROR=http://py", "uv", "venv"]
    fetch = words.index("download")
    assert words[fetch - 2] == "HF_ENDPOINT=http://hub:8001"
    store = f"/data/models/{REPO}/{REVISION}"
    assert words[fetch + 1 : fetch + 4] == [REPO, f"--revision={REVISION}", f"--local-dir={store}"]
    assert {f"--model={store}", "--port=8005", "CUDA_VISIBLE_DEVICES=0,1,2,3"} <= set(words)
    # What the unit binds to another place lies here for whoever asks.
    assert f"--chat-template={endpoint.directory}/chat_template.jinja" in words


def test_what_a_shell_cannot_do_as_the_host_does_it_is_refused(
    rig: tuple[Path, Lock, Published], capsys: pytest.CaptureFixture[str]
) -> None:
    inventory = rig[0]
    assert shown_for_rig1("own-sampling", "shell", inventory) == 1
    assert "would read the published generation_config.json, not the patched one" in capsys.readouterr().err
    assert shown_for_rig1("own-sampling", "systemd", inventory) == 0


def test_compose_starts_the_server_again_after_a_boot() -> None:
    service = yaml.safe_load(compose(plan().endpoint("main")))["services"]["llm-main"]
    assert service["restart"] == "unless-stopped"


def test_what_is_shown_says_how_well_it_is_known() -> None:
    short = shown(CATALOGUE, "vllm-nvfp4-ixtrix-patched", "docker").render()
    assert "# caveat: They replaced" in short and "community recipe collection" not in short
    text = shown(CATALOGUE, "vllm-nvfp4-ixtrix-patched", "docker").render(explain=True)
    assert "# superseded by vllm-nvfp4-voipmonitor-mtp2; tool calls: usually; not measured\n" in text
    assert "# verbatim: community recipe collection of February 2026, recipe 10 (Ixtrix, 2026-02-27)\n" in text
    assert "#   changed: his three changed files of vLLM, which were not published, are not mounted\n" in text
    assert "# caveat: They replaced compilation/passes/fusion/collective_fusion.py, " in text
    assert "# rigup does not deploy this recipe: it mounts three changed files" in text


@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_recipe_built_from_source_is_not_shown_as_commands(form: str) -> None:
    with pytest.raises(RigupError, match="is built from source, which rigup does not do"):
        shown(CATALOGUE, "vllm-nvfp4-orangezed-mtp5", form)
