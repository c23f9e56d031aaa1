"""The config step: the files that an endpoint reads, and the image or packages that it runs."""

from __future__ import annotations

import json
import re

from rigup.audit.check import check
from rigup.audit.expect import Deviation, expect, expect_file, expect_open, hashed
from rigup.audit.subject import Subject
from rigup.paths import PLAN, PYTHONS, UV
from rigup.resources import FILES


def flat(value: object, name: str = "") -> dict[str, str]:
    """Return every value of a plan by its key: `settings.driver_branch`, `endpoints.main.port`."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}.{key}".lstrip(".")).items()}
    if isinstance(value, list) and all(isinstance(inner, dict) for inner in value):
        named = {str(inner.get("name") or inner.get("target") or number): inner for number, inner in enumerate(value)}
        return flat(named, name)
    return {name: " ".join(map(str, value)) if isinstance(value, list) else str(value)}


def variables(text: str, quoted: bool) -> dict[str, str]:
    """Return what an environment file sets: docker takes values literally, systemd unquotes them."""
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key: re.sub(r"\\(.)", r"\1", value[1:-1]) for key, value in found.items()} if quoted else found


@check("major", root=True, repair=("serve",))
def test_config_plan(rig: Subject) -> None:
    """What was deployed must be what the inventory says today, and only root may read it."""
    try:
        deployed = dict(json.loads(rig.text(PLAN) or "{}"))
    except ValueError:
        deployed = {}
    today = json.loads(rig.plan.text())
    if deployed == today:
        expect("600 root", rig.output("stat -c '%%a %%U' %s", PLAN))
        return
    if "digest" not in deployed:
        raise Deviation(f"plan {rig.plan.digest[:12]}", "no plan on the host")
    expected, found = (
        values | hashed({key: value for key, value in values.items() if ".env." in key})
        for values in (flat(today), flat(deployed))
    )
    expected.pop("digest", None), found.pop("digest", None)
    expect(expected, found)
    raise Deviation(f"plan {rig.plan.digest[:12]}", f"plan {deployed['digest'][:12]}")


@check("critical", "endpoints", "recipe", root=True)
def test_config_environment(rig: Subject) -> None:
    """Each endpoint's environment must be as planned and readable by root only: it may contain secrets."""
    for endpoint in rig.plan.endpoints:
        text = rig.text(endpoint.env_file) or ""
        expect(hashed(endpoint.env), hashed(variables(text, quoted=endpoint.venv is not None)))
        if text.count("\n") != len(endpoint.env):
            raise Deviation(f"{endpoint.env_file} as planned", "the same variables in another format")
        expect("600 root", rig.output("stat -c '%%a %%U' %s", endpoint.env_file))


@check("critical", "recipe")
def test_config_patches(rig: Subject) -> None:
    """The engine reads the patched files instead of the published ones: they must be as planned."""
    for endpoint in rig.plan.endpoints:
        for name, text in endpoint.patched_files.items():
            path = f"{endpoint.directory}/{name}"
            expect_file(rig, path, text)


@check("major", "recipe", root=True)
def test_config_image(rig: Subject) -> None:
    """The image must be present with its locked digest, or the next start has to pull it."""
    for image in rig.plan.images:
        digests = rig.json("docker image inspect --format '{{json .RepoDigests}}' %s", image) or []
        expect(image, image if image in digests else "not present")


@check("critical", "recipe")
def test_config_venv(rig: Subject) -> None:
    """The packages of an engine without a container must be installed, each at its locked version."""
    for venv in rig.plan.venvs:
        expect_file(rig, venv.done, venv.text)
        expect_file(rig, f"{venv.path}.lock", venv.text)
        expect_open(rig, UV)
        for path in (PYTHONS, venv.path):
            expect_open(rig, path, 1)
        expect_file(rig, f"{UV}.lock", (FILES / "uv-requirements.lock").read_text())
        expected = dict(line.split(" ")[0].split("==") for line in venv.requirements)
        listed = (
            rig.json(f"{UV}/bin/uv pip list --no-cache --format=json --python=%s", f"{venv.path}/bin/python3") or []
        )
        found = {normal(each["name"]): each["version"] for each in listed}
        expect({normal(name): version for name, version in expected.items()}, found)


def normal(name: str) -> str:
    """Return a package's name in its normal form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
