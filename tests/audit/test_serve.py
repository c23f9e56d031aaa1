"""The endpoints' units: what they say, that they run, and what runs in them."""

from __future__ import annotations

from subject import Deviation, Subject, expect, expect_text

from rigup.render import unit_text


def test_serve_unit(rig: Subject) -> None:
    """Each unit is the one that the plan describes, and systemd has read it."""
    for endpoint in rig.plan.endpoints:
        path = endpoint.unit_file
        expect_text(path, unit_text(endpoint), rig.text(path))
        read = rig.unit(endpoint.unit)
        expect(
            {"needs daemon-reload": "no", "unit that was read": path},
            {"needs daemon-reload": read.get("NeedDaemonReload"), "unit that was read": read.get("FragmentPath")},
        )


def test_serve_running(rig: Subject) -> None:
    """Each endpoint serves: its unit is active only while it answers."""
    for endpoint in rig.plan.endpoints:
        expect({endpoint.unit: "active"}, {endpoint.unit: rig.unit(endpoint.unit).get("ActiveState")})


def test_serve_at_boot(rig: Subject) -> None:
    """Each endpoint serves again after a boot."""
    for endpoint in rig.plan.endpoints:
        expect({endpoint.unit: "enabled"}, {endpoint.unit: rig.unit(endpoint.unit).get("UnitFileState")})


def test_serve_container(rig: Subject) -> None:
    """What runs in the unit is what the plan describes: image and mounts, and the plan's own mark."""
    for endpoint in rig.plan.endpoints:
        running = rig.json("docker container inspect %s", endpoint.container)
        if not running:
            raise Deviation(f"expected: the container {endpoint.container}\nfound:    no such container")
        seen = running[0]
        image = (rig.json("docker image inspect --format '{{json .Id}}' %s", endpoint.image)) or "not here"
        mounts = {mount["Destination"]: mount["Source"] for mount in seen.get("Mounts", []) if not mount.get("RW")}
        expect(
            {
                "plan": endpoint.digest[:12],
                "image": image,
                **{f"mount {mount.target}": mount.source for mount in endpoint.mounts},
            },
            {
                "plan": seen.get("Config", {}).get("Labels", {}).get("rigup.plan", "no mark")[:12],
                "image": seen.get("Image", "none"),
                **{f"mount {target}": source for target, source in mounts.items()},
            },
        )
