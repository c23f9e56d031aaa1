"""The Kubernetes form against the API's own published schemas, and what keeps a pod closed to strangers."""

from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings

from rigup.forms import shown
from rigup.recipes import Recipe, default_catalogue
from tests.unit.generated_recipes import catalogue_of, recipes

CATALOGUE = default_catalogue()
CONTAINERS = sorted(name for name, recipe in CATALOGUE.recipes.items() if recipe.image)
API = "1.34"


def objects(text: str) -> dict[str, dict[str, Any]]:
    """The objects in a text, by kind."""
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


def server(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    [container] = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_object_of_every_recipe_is_valid_to_the_api(name: str) -> None:
    found = objects(shown(CATALOGUE, name, "kubernetes"))
    assert set(found) == {"PersistentVolumeClaim", "Job", "Deployment", "Service"}
    for each in found.values():
        kubernetes_validate.validate(each, API, strict=True)


@settings(max_examples=20, deadline=None)
@given(recipes(containers=True))
def test_any_recipe_is_valid_to_the_api(recipe: Recipe) -> None:
    for each in objects(shown(catalogue_of(recipe), recipe.id, "kubernetes")).values():
        kubernetes_validate.validate(each, API, strict=True)


def test_what_the_api_does_not_know_would_be_seen() -> None:
    found = objects(shown(CATALOGUE, "vllm-nvfp4-cu130", "kubernetes"))
    server(found)["redinessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found["Deployment"], API, strict=True)


@pytest.mark.parametrize("name", CONTAINERS)
def test_what_listens_beyond_loopback_has_a_key_that_no_argument_shows(name: str) -> None:
    text = shown(CATALOGUE, name, "kubernetes")
    found = objects(text)
    container = server(found)
    assert "--host=0.0.0.0" in container["args"]
    assert not [word for word in container["args"] if "api-key" in word or "$(" in word]
    if CATALOGUE.recipe(name).engine.name == "vllm":
        # Not optional: without the Secret the container is not started at all.
        assert {"name": "llm-main-key", "key": "key"} in [
            each["valueFrom"]["secretKeyRef"] for each in container["env"] if each["name"] == "VLLM_API_KEY"
        ]
        assert "--from-file=key=/dev/stdin" in text
    else:
        # As two words: SGLang 0.5.23 does not see `--config=FILE`.
        assert container["args"][-2:] == ["--config", "/run/rigup/key.yaml"]
        volumes = found["Deployment"]["spec"]["template"]["spec"]["volumes"]
        assert {"secretName": "llm-main-key", "defaultMode": 0o400} in [each.get("secret") for each in volumes]
        assert "--from-file=key.yaml=/dev/stdin" in text


def test_the_forms_that_share_the_hosts_network_listen_on_loopback_alone() -> None:
    for name in CONTAINERS:
        for form in ("docker", "compose", "systemd", "shell"):
            text = shown(CATALOGUE, name, form)
            assert "--host=127.0.0.1" in text and "0.0.0.0" not in text, (name, form)


def test_the_job_needs_of_its_image_what_every_engine_needs_itself() -> None:
    [fetch] = objects(shown(CATALOGUE, "vllm-nvfp4-v2", "kubernetes"))["Job"]["spec"]["template"]["spec"]["containers"]
    assert fetch["command"][:2] == ["python3", "-c"]
    assert fetch["args"] == ["nvidia/Qwen3.5-397B-A17B-NVFP4-V2", "8f590eae8f10bf55d9a46f79ea0280bde435c9f8", "/model"]


def test_tmpfs_and_seccomp_reach_the_pod() -> None:
    for name, recipe in CATALOGUE.recipes.items():
        if recipe.image and (recipe.container.tmpfs or recipe.container.security_opt):
            container = server(objects(shown(CATALOGUE, name, "kubernetes")))
            assert set(recipe.container.tmpfs) <= {mount["mountPath"] for mount in container["volumeMounts"]}
            unconfined = {"seccompProfile": {"type": "Unconfined"}}
            assert container.get("securityContext") == (unconfined if recipe.container.security_opt else None)
