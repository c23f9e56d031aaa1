"""What an endpoint reads, and the image it runs."""

from __future__ import annotations

import json

from subject import Deviation, Subject, check, expect, expect_text

from rigup.render import env_file_text


def flat(value: object, name: str = "") -> dict[str, str]:
    """Every single value of a plan, by its place in it: `settings.driver_branch`, `endpoints.main.port`."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}.{key}".lstrip(".")).items()}
    if isinstance(value, list) and all(isinstance(inner, dict) for inner in value):
        named = {str(inner.get("name") or inner.get("target") or number): inner for number, inner in enumerate(value)}
        return flat(named, name)
    return {name: " ".join(map(str, value)) if isinstance(value, list) else str(value)}


@check("major")
def test_config_plan(rig: Subject) -> None:
    """What was deployed is what the inventory says today: no change waits for a deploy."""
    try:
        deployed = dict(json.loads(rig.text("/etc/rigup/plan.json") or "{}"))
    except ValueError:
        deployed = {}
    today = json.loads(rig.plan.text())
    if deployed == today:
        return
    if "digest" not in deployed:
        raise Deviation(f"plan {rig.plan.digest[:12]}", "no plan on the host")
    expected, found = flat(today), flat(deployed)
    for key in ("digest", *(key for key in {*expected, *found} if key.endswith("image_created"))):
        expected.pop(key, None), found.pop(key, None)
    expect(expected, found)
    raise Deviation(f"plan {rig.plan.digest[:12]}", f"plan {deployed['digest'][:12]}")


@check("critical", "endpoints", "recipe", root=True)
def test_config_environment(rig: Subject) -> None:
    """Each endpoint's environment, readable to root alone."""
    for endpoint in rig.plan.endpoints:
        expect_text(endpoint.env_file, env_file_text(endpoint), rig.text(endpoint.env_file))
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
    for endpoint in rig.plan.endpoints:
        digests = rig.json("docker image inspect --format '{{json .RepoDigests}}' %s", endpoint.image) or []
        expect(endpoint.image, endpoint.image if endpoint.image in digests else "not here")
