"""The endpoints' units: what they say, that they run, and what runs in them."""

from __future__ import annotations

from subject import Deviation, Subject, expect, expect_text

from rigup.render import USER, unit_text


def test_serve_unit(rig: Subject) -> None:
    """Each unit is the one that the plan describes, and systemd has read it."""
    for endpoint in rig.plan.endpoints:
        path = f"/etc/systemd/system/{endpoint.unit}"
        expect_text(path, unit_text(endpoint), rig.text(path))
        expect({"needs daemon-reload": "no"}, {"needs daemon-reload": rig.unit(endpoint.unit).get("NeedDaemonReload")})


def test_serve_running(rig: Subject) -> None:
    """Each endpoint serves: its unit is active only while it answers."""
    for endpoint in rig.plan.endpoints:
        expect({endpoint.unit: "active"}, {endpoint.unit: rig.unit(endpoint.unit).get("ActiveState")})


def test_serve_at_boot(rig: Subject) -> None:
    """Each endpoint serves again after a boot."""
    for endpoint in rig.plan.endpoints:
        expect({endpoint.unit: "enabled"}, {endpoint.unit: rig.unit(endpoint.unit).get("UnitFileState")})


def test_serve_process(rig: Subject) -> None:
    """Without a container: the process of the unit was started with the plan's arguments, and not as root."""
    for endpoint in rig.plan.endpoints:
        if endpoint.venv is None:
            continue
        pid = rig.said("systemctl show --value --property=MainPID -- %s", endpoint.unit)
        words = rig.said(f"tr '\\0' '\\n' </proc/{int(pid or 0)}/cmdline").splitlines()
        # A script's own interpreter comes first.
        expect(list(endpoint.argv[1:]), words[-len(endpoint.argv) + 1 :])
        expect({"user": USER}, {"user": rig.said(f"stat -c %%U /proc/{int(pid or 0)}")})


def test_serve_container(rig: Subject) -> None:
    """What runs in the unit is what the plan describes: image and mounts, and the plan's own mark."""
    for endpoint in rig.plan.endpoints:
        if endpoint.image is None:
            continue
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
