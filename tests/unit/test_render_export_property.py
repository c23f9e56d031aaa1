"""Whatever recipe the schema accepts has every form, and its arguments and environment arrive unchanged in each.

The shells here are real, and what they start is a program that writes down what it got. What systemd and compose do is
seen for real on a lab host, by tests/lab/one_rig/test_forms_real.py.
"""

import os
import re
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from rigup.catalog.engine_args import own_arguments
from rigup.catalog.recipe import Recipe
from rigup.config.settings import Settings
from rigup.lock.lockfile import CheckpointLock, ImageLock, Lock
from rigup.paths import DOCKER, ENGINES
from rigup.plan.build import QUIET, make_plan
from rigup.render.docker import docker_argv
from rigup.render.export import FORMS, shown
from rigup.render.systemd import env_file_text, unit_text
from tests.unit.generated_recipes import CHECKPOINTS, PUBLISHED, catalog_of, recipes
from tests.unit.systemd_words import exec_words
from tests.unit.test_render_systemd import settings_of
from tests.unit.waiting import HANG_S

# How many words, then the words, each with a NUL, which none can hold; then the environment in a file of its own.
STUB = """\
#!/bin/sh
printf '%s\\0' "$#" "$0" "$@" >>"$CALLS"
env -0 >"$CALLS.env"
"""

often = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@dataclass
class Stubs:
    """Programs that a shown text would start, in a directory of their own."""

    directory: Path

    def add(self, *names: str) -> None:
        for name in names:
            path = self.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(STUB)
            path.chmod(0o755)

    def run(self, text: str) -> list[list[str]]:
        """The commands that a real shell starts for this text, by the program's name."""
        calls = self.directory / "calls"
        calls.write_bytes(b"")
        path = f"{self.directory}:{os.environ['PATH']}"
        environment = {"PATH": path, "CALLS": str(calls), "LANG": "C.UTF-8"}
        script = re.sub(
            rf"\n  {ENGINES}/[0-9a-f]+/", r"\n  .venv/", re.sub(f"(?m)^{DOCKER} ", "docker ", text)
        ).encode()
        ran = subprocess.run(
            ["sh", "-e"], input=script, capture_output=True, timeout=HANG_S, env=environment, cwd=self.directory
        )
        assert (ran.returncode, ran.stderr) == (0, b""), ran
        words = calls.read_bytes().decode().split("\0")[:-1]
        commands = []
        while words:
            count = int(words[0]) + 2
            commands.append([words[1].rpartition("/")[2], *words[2:count]])
            words = words[count:]
        return commands

    def environment(self) -> dict[str, str]:
        """The environment of what was started last."""
        found = (self.directory / "calls.env").read_bytes().decode().split("\0")[:-1]
        return dict(each.split("=", 1) for each in found)


@pytest.fixture
def stubs(tmp_path: Path) -> Stubs:
    stubs = Stubs(tmp_path)
    stubs.add("docker", "uv", "git", "curl", "hf", "python3", ".venv/bin/vllm", ".venv/bin/python3", "vllm")
    (tmp_path / "source").mkdir()
    return stubs


def server_words(recipe: Recipe, host: str = "127.0.0.1") -> list[str]:
    """What the container's process must get."""
    return [
        *(recipe.image.command if recipe.image else ()),
        "--model=/model" if recipe.engine.name == "vllm" else "--model-path=/model",
        f"--served-model-name={recipe.served_name}",
        f"--host={host}",
        "--port=8000",
        *(argument for argument, _ in own_arguments(recipe)),
        *recipe.argv,
    ]


def interpolated(value: str) -> str:
    """What compose makes of a text: `$$` is `$`; any other `$` would be a variable or an error."""
    assert "$" not in value.replace("$$", ""), value
    return value.replace("$$", "$")


def expanded(value: str) -> str:
    """What Kubernetes makes of a text (third_party/forked/golang/expansion): `$$` is `$`, `$(NAME)` a variable."""
    found, rest = "", value
    while "$" in rest:
        before, _, rest = rest.partition("$")
        assert not rest.startswith("("), value
        found += before + "$"
        rest = rest.removeprefix("$")
    return found + rest


@often
@given(recipes(containers=True))
def test_a_shell_starts_docker_with_exactly_the_recipes_arguments(stubs: Stubs, recipe: Recipe) -> None:
    env = {f"--env={name}={value}" for name, value in {**QUIET, **recipe.env}.items()}
    for form in ("docker", "shell"):
        *pulls, run = stubs.run(shown(catalog_of(recipe), recipe.id, form).render(explain=True))
        words = server_words(recipe)
        assert run[-len(words) :] == words
        assert {word for word in run[: -len(words)] if word.startswith("--env=")} == env
        assert [each[:2] for each in pulls] == ([["docker", "pull"], ["hf", "download"]] if form == "shell" else [])


@often
@given(recipes())
def test_a_shell_starts_a_bare_server_with_exactly_the_recipes_arguments(stubs: Stubs, recipe: Recipe) -> None:
    if not recipe.venv:
        return
    *_, server = stubs.run(shown(catalog_of(recipe), recipe.id, "shell").render(explain=True))
    words = [word.replace("--model=/model", "").replace("--model-path=/model", "") for word in server_words(recipe)]
    words = [word for word in words if word]
    assert server[-len(words) :] == words
    found = stubs.environment()
    assert {name: found.get(name) for name in recipe.env} == recipe.env


@often
@given(recipes(containers=True))
def test_compose_gets_exactly_the_recipes_arguments(recipe: Recipe) -> None:
    document = yaml.safe_load(shown(catalog_of(recipe), recipe.id, "compose").render(explain=True))
    service = document["services"]["llm-main"]
    assert [interpolated(word) for word in service["command"]] == server_words(recipe)
    assert {name: interpolated(each) for name, each in service["environment"].items()} == {**QUIET, **recipe.env}


@often
@given(recipes(containers=True))
def test_kubernetes_gets_exactly_the_recipes_arguments_and_a_key(recipe: Recipe) -> None:
    documents = list(yaml.safe_load_all(shown(catalog_of(recipe), recipe.id, "kubernetes").render(explain=True)))
    [pod] = [each["spec"]["template"]["spec"] for each in documents if each["kind"] == "Deployment"]
    [server] = pod["containers"]
    words = [expanded(word) for word in server["args"]]
    key = [each for each in server["env"] if "valueFrom" in each]
    if recipe.engine.name == "sglang":
        assert words.pop() == "/run/rigup/key.yaml" and words.pop() == "--config"
        assert [each for each in pod["volumes"] if "secret" in each]
    else:
        assert [each["name"] for each in key] == ["VLLM_API_KEY"]
    assert words == server_words(recipe, host="0.0.0.0")
    plain = {each["name"]: expanded(each["value"]) for each in server["env"] if "value" in each}
    assert plain == {**QUIET, **recipe.env}


@often
@given(recipes(containers=True))
def test_a_unit_and_its_environment_file_hold_exactly_what_the_recipe_says(recipe: Recipe) -> None:
    deployable = recipe.model_copy(update={"not_deployable": None})
    checkpoint = CHECKPOINTS[recipe.checkpoint]
    assert recipe.image
    lock = Lock(
        images={
            recipe.image.tag: ImageLock(digest="sha256:" + "0" * 64, created=datetime(2026, 1, 1, tzinfo=UTC), bytes=1)
        },
        checkpoints={checkpoint.key: CheckpointLock(revision="0" * 40, bytes=1, files=1)},
    )
    published = {f"{checkpoint.repo}@{'0' * 40}": PUBLISHED}
    plan = make_plan("rig1", Settings.from_data({"recipe": recipe.id}), catalog_of(deployable), lock, published)
    endpoint = plan.endpoint("main")
    unit = settings_of(unit_text(endpoint))
    words = exec_words(unit["ExecStart"][0])
    assert words == docker_argv(endpoint)
    template = [patch for patch in recipe.patches if patch.target == "chat-template"]
    wanted = server_words(recipe) + (["--chat-template=/rigup/chat_template.jinja"] if template else [])
    assert words[-len(wanted) :] == wanted
    lines = env_file_text(endpoint).removesuffix("\n").split("\n")
    assert dict(line.split("=", 1) for line in lines) == {**QUIET, **recipe.env}


@often
@given(recipes(containers=True))
def test_only_whole_numbers_stand_without_quotes_where_another_reader_sees_a_number(recipe: Recipe) -> None:
    """YAML 1.2 has `1e3` and `0o17` for numbers, which Python's reader takes for texts."""
    for form in ("compose", "kubernetes"):
        for event in yaml.parse(shown(catalog_of(recipe), recipe.id, form).render(explain=True)):
            if isinstance(event, yaml.ScalarEvent) and event.style is None:
                assert not re.match(r"[-+]?\.?\d|[-+]?\.(inf|nan)", event.value, re.IGNORECASE) or re.fullmatch(
                    r"-?\d+", event.value
                )


@pytest.mark.parametrize("form", sorted(FORMS))
@given(recipe=recipes(containers=True))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_text_that_is_shown_breaks_its_terminal(form: str, recipe: Recipe) -> None:
    text = shown(catalog_of(recipe), recipe.id, form).render(explain=True)
    text.encode("utf-8")
    assert "\0" not in text
