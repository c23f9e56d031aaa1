"""The shown forms before the real programs that read them: docker compose, systemd, docker, the hub's client."""

from __future__ import annotations

import base64
import json
import shlex
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lab.checkpoint import REPOSITORY
from lab.registry.image import NAME, TAG
from lab.settings import HUB_URL
from rigup.catalog.apply_patches import TEMPLATE
from rigup.catalog.loader import Catalog, default_catalog
from rigup.catalog.patch import YarnPatch
from rigup.catalog.recipe import Recipe
from rigup.config.settings import Settings
from rigup.lock.lockfile import CheckpointLock, ImageLock, Lock, read
from rigup.paths import DOCKER, FILES_MOUNT, HOST_PROGRAM
from rigup.plan.build import make_plan
from rigup.plan.model import EndpointPlan
from rigup.render.docker import docker_argv
from rigup.render.export import shown
from rigup.render.kubernetes import FETCH
from rigup.render.systemd import env_file_text, unit_text
from tests.lab.one_rig.rig import OneRig
from tests.unit.generated_recipes import PUBLISHED, catalog_of, generated

PLACE = "/run/rigup-forms"
GENERATED = 25

# The first word says whose arguments these are; each ends in NUL.
DUMP = """\
#!/bin/sh
[ "$1" = run ] || exit 0
for word; do case $word in --name=*) name=${word#--name=} ;; esac; done
printf '%s\\0' "$@" >"$0.$name"
"""


def planned(recipe: Recipe, name: str) -> EndpointPlan:
    """The endpoint of that name as a deploy would serve this recipe."""
    catalog = default_catalog()
    checkpoint = catalog.checkpoint(recipe.checkpoint)
    assert recipe.image
    image = ImageLock(digest="sha256:" + "0" * 64, created=datetime(2026, 1, 1, tzinfo=UTC), bytes=1)
    commit = CheckpointLock(revision="0" * 40, bytes=1, files=1)
    commits = {each.key: commit for each in catalog.checkpoints_of(recipe)}
    lock = Lock(images={recipe.image.tag: image}, checkpoints=commits)
    # Each patch of a rope repeats that of its own checkpoint.
    ropes = [patch.rope for patch in recipe.patches if isinstance(patch, YarnPatch)]
    config = json.loads(PUBLISHED["config.json"])
    config["text_config"]["rope_parameters"] = ropes[0] if ropes else {}
    published = {f"{checkpoint.repo}@{commit.revision}": {**PUBLISHED, "config.json": json.dumps(config)}}
    settings = Settings.from_data({"recipe": recipe.id, "endpoints": {name: {}}})
    only = Catalog({recipe.id: recipe.model_copy(update={"not_deployable": None})}, catalog.checkpoints)
    return make_plan("rig", settings, only, lock, published).endpoint(name)


def write(rig: OneRig, files: dict[str, str]) -> None:
    """Puts files into a directory of the host, all in one go."""
    script = "import json, pathlib, sys\nfor path, text in json.load(sys.stdin).items():\n"
    script += "    path = pathlib.Path(path); path.parent.mkdir(parents=True, exist_ok=True)\n"
    script += "    path.write_text(text, encoding='utf-8', newline='')\n"
    rig.host.shell(f"python3 -c {shlex.quote(script)}", stdin=json.dumps(files))


@pytest.fixture(scope="module")
def every() -> dict[str, Recipe]:
    """Return the catalog's containers and invented ones."""
    found = {f"c{n}": recipe for n, recipe in enumerate(default_catalog().recipes.values()) if recipe.image}
    return found | {f"g{n}": recipe for n, recipe in enumerate(generated(GENERATED))}


def test_docker_compose_reads_every_recipe_and_hands_on_every_argument(
    one_rig: OneRig, every: dict[str, Recipe]
) -> None:
    files = {
        f"{PLACE}/{name}.yaml": shown(catalog_of(recipe), recipe.id, "compose").text for name, recipe in every.items()
    }
    write(one_rig, files)
    # A variable that compose would put in, were one not quoted.
    loop = (
        f"cd {PLACE} && for f in *.yaml; do HOST=wrong docker compose -f $f config --format json >$f.json || exit; done"
    )
    said = one_rig.host.shell(f"{loop}; tail -n +1 -q *.json | cat", timeout=300)
    assert said.stderr == ""
    decoder, text, found = json.JSONDecoder(), said.stdout, []
    while text.strip():
        document, end = decoder.raw_decode(text.lstrip())
        found.append(document["services"]["llm-main"])
        text = text.lstrip()[end:]
    assert len(found) == len(every)
    for (name, recipe), service in zip(sorted(every.items()), found, strict=True):
        endpoint = planned(recipe, "main")
        # Patched files are the deploy's to make, and with them goes the argument that names one.
        argv = [word for word in endpoint.argv if word != f"--chat-template={FILES_MOUNT}/{TEMPLATE}"]
        # What it prints is a compose file again: `$` is doubled.
        assert [word.replace("$$", "$") for word in service["command"]] == argv, name
        env = {key: value.replace("$$", "$") for key, value in service["environment"].items()}
        assert env == endpoint.env, name


def test_systemd_finds_nothing_wrong_with_any_unit(one_rig: OneRig, every: dict[str, Recipe]) -> None:
    units = {f"{PLACE}/verify/llm@{name}.service": unit_text(planned(recipe, name)) for name, recipe in every.items()}
    write(one_rig, units)
    said = one_rig.host.shell(f"systemd-analyze verify --man=no {PLACE}/verify/*.service", check=False, timeout=300)
    assert (said.returncode, said.stderr) == (0, "")


def test_systemd_starts_docker_with_exactly_the_arguments_of_any_recipe(
    one_rig: OneRig, every: dict[str, Recipe]
) -> None:
    dump = f"{PLACE}/dump"
    files = {dump: DUMP}
    endpoints = {name: planned(recipe, name) for name, recipe in every.items() if name.startswith("g")}
    for name, endpoint in endpoints.items():
        text = unit_text(endpoint).replace(DOCKER, dump).replace(HOST_PROGRAM, "/bin/true")
        files[f"/run/systemd/system/forms@{name}.service"] = text
    write(one_rig, files)
    names = " ".join(f"forms@{name}.service" for name in endpoints)
    host = one_rig.host
    try:
        host.shell(f"chmod 755 {dump} && systemctl daemon-reload && systemctl start {names}", timeout=300)
        for name, endpoint in endpoints.items():
            # Not as text: a carriage return must stay one.
            got = base64.b64decode(host.shell(f"base64 {dump}.llm-{name}").stdout).decode().split("\0")[:-1]
            assert got == docker_argv(endpoint)[1:], name
    finally:
        host.shell(f"systemctl stop {names}; rm -f /run/systemd/system/forms@*; systemctl daemon-reload", check=False)


def test_docker_reads_every_value_of_an_environment_file_as_it_was_written(
    one_rig: OneRig, every: dict[str, Recipe]
) -> None:
    endpoint = planned(every["g0"], "main")
    values = [value for recipe in every.values() for value in recipe.env.values()]
    env = {f"V{n}": value for n, value in enumerate(dict.fromkeys(values))}
    assert len(env) > 20
    write(one_rig, {f"{PLACE}/env": env_file_text(endpoint.model_copy(update={"env": env}))})
    run = f"docker run --rm --pull=never --network=none --env-file={PLACE}/env --entrypoint=env {image_of(one_rig)} -0"
    got = dict(line.split("=", 1) for line in one_rig.host.shell(run).stdout.split("\0")[:-1])
    assert {name: got.get(name) for name in env} == env


def test_the_download_job_fetches_the_commit_with_what_the_image_has(one_rig: OneRig) -> None:
    checkpoint = read(one_rig.rigs.lock).checkpoints[f"{REPOSITORY}@main"]
    target = f"{PLACE}/model"
    words = ["docker", "run", "--rm", "--pull=never", "--network=host", f"--env=HF_ENDPOINT={HUB_URL}"]
    words += [f"--volume={target}:/model", "--entrypoint=python3", image_of(one_rig), "-c", FETCH]
    words += [REPOSITORY, checkpoint.revision, "/model"]
    one_rig.host.shell(shlex.join(words), timeout=300)
    files = one_rig.host.shell(f"find {target} -type f -not -path '*/.cache/*'").stdout.splitlines()
    assert len(files) == checkpoint.files
    assert {"config.json", "tokenizer.json"} <= {Path(file).name for file in files}
    one_rig.host.shell(f"rm -rf {PLACE}")


def image_of(rig: OneRig) -> str:
    """The image that the host serves with, by digest."""
    return f"{NAME}@{read(rig.rigs.lock).images[f'{NAME}:{TAG}'].digest}"
