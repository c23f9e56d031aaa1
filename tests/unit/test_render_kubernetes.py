"""The Kubernetes form against the API's own published schemas, and what keeps a pod closed to strangers."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from kubernetes_validate import utils

from rigup.catalog.recipe import Recipe
from rigup.render.export import shown
from tests.unit.generated_recipes import catalog_of, recipes
from tests.unit.sample import CATALOGUE
from tests.unit.waiting import HANG_S, until

CONTAINERS = sorted(name for name, recipe in CATALOGUE.recipes.items() if recipe.image)
API = "1.34"
# Each validation would read the schemas of all of the API anew.
utils.schema_contents = cache(utils.schema_contents)


def objects(text: str) -> dict[str, dict[str, Any]]:
    """The objects in a text, by kind."""
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


SECRET = "c0ffee"


def filled(text: str) -> dict[str, str]:
    """What the line at the top puts into the Secret, where openssl says SECRET and kubectl takes what it is given."""
    [line] = [line.removeprefix("#   ") for line in text.splitlines() if "kubectl" in line]
    stubs = f"openssl() {{ echo {SECRET}; }}; kubectl() {{ cat; }}; "
    said = subprocess.run(["bash", "-c", stubs + line], capture_output=True, text=True, check=True).stdout
    assert SECRET not in line and "patch secret llm-main-key" in line
    found = json.loads(said)["stringData"]
    assert isinstance(found, dict)
    return found


def server(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    [container] = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_object_of_every_recipe_is_valid_to_the_api(name: str) -> None:
    found = objects(shown(CATALOGUE, name, "kubernetes").render())
    assert set(found) == {"Secret", "PersistentVolumeClaim", "Job", "Deployment", "Service"}
    for each in found.values():
        kubernetes_validate.validate(each, API, strict=True)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(recipes(containers=True))
def test_any_recipe_is_valid_to_the_api(recipe: Recipe) -> None:
    for each in objects(shown(catalog_of(recipe), recipe.id, "kubernetes").render()).values():
        kubernetes_validate.validate(each, API, strict=True)


def test_what_the_api_does_not_know_would_be_seen() -> None:
    found = objects(shown(CATALOGUE, "vllm-nvfp4-cu130", "kubernetes").render())
    server(found)["redinessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found["Deployment"], API, strict=True)


@pytest.mark.parametrize("name", CONTAINERS)
def test_what_listens_beyond_loopback_has_a_key_that_no_argument_shows(name: str) -> None:
    text = shown(CATALOGUE, name, "kubernetes").render()
    found = objects(text)
    container = server(found)
    assert "--host=0.0.0.0" in container["args"]
    assert not [word for word in container["args"] if "api-key" in word or "$(" in word]
    if CATALOGUE.recipe(name).engine.name == "vllm":
        # Not optional: without the Secret the container is not started at all.
        assert {"name": "llm-main-key", "key": "key"} in [
            each["valueFrom"]["secretKeyRef"] for each in container["env"] if each["name"] == "VLLM_API_KEY"
        ]
        assert filled(text) == {"key": SECRET}
    else:
        # As two words: SGLang 0.5.23 does not see `--config=FILE`.
        assert container["args"][-2:] == ["--config", "/run/rigup/key.yaml"]
        volumes = found["Deployment"]["spec"]["template"]["spec"]["volumes"]
        assert {"secretName": "llm-main-key", "defaultMode": 0o400} in [each.get("secret") for each in volumes]
        assert filled(text) == {"key.yaml": f'api-key: "{SECRET}"'}


def test_the_forms_that_share_the_hosts_network_listen_on_loopback_alone() -> None:
    for name in CONTAINERS:
        for form in ("docker", "compose", "systemd", "shell"):
            text = shown(CATALOGUE, name, form).render()
            assert "--host=127.0.0.1" in text and "0.0.0.0" not in text, (name, form)


def test_the_job_needs_of_its_image_what_every_engine_needs_itself() -> None:
    [fetch] = objects(shown(CATALOGUE, "vllm-nvfp4-v2", "kubernetes").render())["Job"]["spec"]["template"]["spec"][
        "containers"
    ]
    assert fetch["command"][:2] == ["python3", "-c"]
    assert fetch["args"] == ["nvidia/Qwen3.5-397B-A17B-NVFP4-V2", "8f590eae8f10bf55d9a46f79ea0280bde435c9f8", "/model"]


def test_tmpfs_and_seccomp_reach_the_pod() -> None:
    for name, recipe in CATALOGUE.recipes.items():
        if recipe.image and (recipe.container.tmpfs or recipe.container.security_opt):
            container = server(objects(shown(CATALOGUE, name, "kubernetes").render()))
            assert set(recipe.container.tmpfs) <= {mount["mountPath"] for mount in container["volumeMounts"]}
            unconfined = {"seccompProfile": {"type": "Unconfined"}}
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                **(unconfined if recipe.container.security_opt else {}),
            }


def test_the_server_waits_for_the_files_of_its_own_commit(tmp_path: Path) -> None:
    found = objects(shown(CATALOGUE, "vllm-nvfp4-v2", "kubernetes").render())
    [awaiting] = found["Deployment"]["spec"]["template"]["spec"]["initContainers"]
    [fetch] = found["Job"]["spec"]["template"]["spec"]["containers"]
    repo, commit, model = fetch["args"]
    (tmp_path / "huggingface_hub.py").write_text(
        "import pathlib\n"
        "def snapshot_download(repo, revision, local_dir):\n"
        "    pathlib.Path(local_dir, '.cache').mkdir(parents=True)\n"
    )
    assert awaiting["args"] == [commit, model]
    # It naps by our clock, and says so.
    (tmp_path / "sitecustomize.py").write_text(
        "import pathlib, time\n"
        "nap = time.sleep\n"
        f"time.sleep = lambda seconds: (pathlib.Path({str(tmp_path / 'naps')!r}).touch(), nap(0.02))\n"
    )
    waiting = subprocess.Popen(
        [sys.executable, *awaiting["command"][1:], commit, str(tmp_path / "model")],
        env={"PYTHONPATH": str(tmp_path)},
    )
    until((tmp_path / "naps").exists, lambda: waiting.poll() is None)
    subprocess.run(
        [sys.executable, *fetch["command"][1:], repo, commit, str(tmp_path / "model")],
        env={"PYTHONPATH": str(tmp_path)},
        check=True,
    )
    assert waiting.wait(HANG_S) == 0
