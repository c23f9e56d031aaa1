"""What an endpoint reads, and the image it runs."""

from __future__ import annotations

import json
import re

from subject import Deviation, Subject, check, expect, expect_text, veiled

from rigup.lock.pypi import UV
from rigup.plan.model import PLAN


def flat(value: object, name: str = "") -> dict[str, str]:
    """Every single value of a plan, by its place in it: `settings.driver_branch`, `endpoints.main.port`."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}.{key}".lstrip(".")).items()}
    if isinstance(value, list) and all(isinstance(inner, dict) for inner in value):
        named = {str(inner.get("name") or inner.get("target") or number): inner for number, inner in enumerate(value)}
        return flat(named, name)
    return {name: " ".join(map(str, value)) if isinstance(value, list) else str(value)}


def variables(text: str, quoted: bool) -> dict[str, str]:
    """What an environment file sets: docker takes values as they stand, systemd reads quotes and backslashes."""
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key: re.sub(r"\\(.)", r"\1", value[1:-1]) for key, value in found.items()} if quoted else found


@check("major", root=True, repair=("serve",))
def test_config_plan(rig: Subject) -> None:
    """What was deployed is what the inventory says today: no change waits for a deploy. Root alone reads it."""
    try:
        deployed = dict(json.loads(rig.text(PLAN) or "{}"))
    except ValueError:
        deployed = {}
    today = json.loads(rig.plan.text())
    if deployed == today:
        expect("600 root", rig.said("stat -c '%%a %%U' %s", PLAN))
        return
    if "digest" not in deployed:
        raise Deviation(f"plan {rig.plan.digest[:12]}", "no plan on the host")
    expected, found = (
        values | veiled({key: value for key, value in values.items() if ".env." in key})
        for values in (flat(today), flat(deployed))
    )
    expected.pop("digest", None), found.pop("digest", None)
    expect(expected, found)
    raise Deviation(f"plan {rig.plan.digest[:12]}", f"plan {deployed['digest'][:12]}")


@check("critical", "endpoints", "recipe", root=True)
def test_config_environment(rig: Subject) -> None:
    """Each endpoint's environment, readable to root alone."""
    for endpoint in rig.plan.endpoints:
        text = rig.text(endpoint.env_file) or ""
        expect(veiled(endpoint.env), veiled(variables(text, quoted=endpoint.venv is not None)))
        if text.count("\n") != len(endpoint.env):
            raise Deviation(f"{endpoint.env_file} as planned", "the same variables, written otherwise")
        expect("600 root", rig.said("stat -c '%%a %%U' %s", endpoint.env_file))


@check("critical", "recipe")
def test_config_patches(rig: Subject) -> None:
    """The patched files beside the checkpoint, as the plan has them."""
    for endpoint in rig.plan.endpoints:
        for name, text in endpoint.patched_files.items():
            path = f"{endpoint.directory}/{name}"
            expect_text(path, text, rig.text(path))


@check("major", "recipe", root=True)
def test_config_image(rig: Subject) -> None:
    """The image is here, by its digest."""
    for image in rig.plan.images:
        digests = rig.json("docker image inspect --format '{{json .RepoDigests}}' %s", image) or []
        expect(image, image if image in digests else "not here")


@check("critical", "recipe")
def test_config_venv(rig: Subject) -> None:
    """The packages of an engine without a container are here, each at its locked version."""
    for venv in rig.plan.venvs:
        expect_text(venv.done, venv.text, rig.text(venv.done))
        wanted = dict(line.split(" ")[0].split("==") for line in venv.requirements)
        listed = (
            rig.json(f"{UV}/bin/uv pip list --no-cache --format=json --python=%s", f"{venv.path}/bin/python3") or []
        )
        found = {normal(each["name"]): each["version"] for each in listed}
        expect({normal(name): version for name, version in wanted.items()}, found)


def normal(name: str) -> str:
    """A package's name as indexes have it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
