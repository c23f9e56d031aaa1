"""The endpoints' units: what they say, that they run, and what runs in them."""

from __future__ import annotations

import ipaddress

from subject import Deviation, Subject, check, expect, expect_programs, expect_text, veiled

from rigup.render import USER, unit_text


def address_of(hexadecimal: str) -> str:
    """An address of /proc/net/tcp or tcp6: 32-bit words, each in the host's byte order."""
    words = [bytes.fromhex(hexadecimal[start : start + 8])[::-1] for start in range(0, len(hexadecimal), 8)]
    return str(ipaddress.ip_address(b"".join(words)))


@check("major")
def test_serve_programs(rig: Subject) -> None:
    """The programs that run on the host are this version's: they decide what counts as serving."""
    switch = ("switch.py", "switch_record.py", "switch_units.py")
    expect_programs(rig, "judge.py", "prove.py", "smoke.py", *switch, "wait_ready.py")


@check("critical", "endpoints", "recipe")
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


@check("critical", "endpoints")
def test_serve_running(rig: Subject) -> None:
    """Each endpoint serves: its unit is active only while it answers."""
    for endpoint in rig.plan.endpoints:
        expect({endpoint.unit: "active"}, {endpoint.unit: rig.unit(endpoint.unit).get("ActiveState")})


@check("critical", "endpoints")
def test_serve_at_boot(rig: Subject) -> None:
    """Each endpoint serves again after a boot, and a switch that a power cut interrupts is finished by it."""
    commit = "rigup-commit.service"
    expect({commit: "enabled"}, {commit: rig.unit(commit).get("UnitFileState")})
    for endpoint in rig.plan.endpoints:
        expect({endpoint.unit: "enabled"}, {endpoint.unit: rig.unit(endpoint.unit).get("UnitFileState")})


@check("critical", "endpoints", "recipe", root=True)
def test_serve_process(rig: Subject) -> None:
    """Without a container: the process of the unit was started with the plan's arguments, and not as root."""
    for endpoint in rig.plan.endpoints:
        if endpoint.venv is None:
            continue
        pid = rig.said("systemctl show --value --property=MainPID -- %s", endpoint.unit)
        words = rig.said(f"tr '\\0' '\\n' </proc/{int(pid or 0)}/cmdline").splitlines()
        # A script's own interpreter comes first.
        expect(list(endpoint.argv[1:]), words[-len(endpoint.argv) + 1 :])
        expect({"user": USER}, {"user": rig.said("stat -c '%%U' %s", f"/proc/{int(pid or 0)}")})


@check("critical", "endpoints", repair=("serve", "gate"))
def test_serve_reach(rig: Subject) -> None:
    """Each endpoint is reached at its own addresses and no other: who can reach it is what the inventory says."""
    for endpoint in rig.plan.endpoints:
        rows = [line.split() for path in ("tcp", "tcp6") for line in (rig.text(f"/proc/net/{path}") or "").splitlines()]
        local = [words[1].split(":") for words in rows if len(words) > 3 and words[3] == "0A"]
        found = sorted({address_of(address) for address, port in local if int(port, 16) == endpoint.port})
        expect(sorted(filter(None, (endpoint.address, endpoint.public_address))), found)


@check("critical", "endpoints", root=True)
def test_serve_gpus(rig: Subject) -> None:
    """The container that serves sees its GPUs, also after everything that systemd has reloaded since its start."""
    for endpoint in rig.plan.endpoints:
        if endpoint.image is None:
            continue
        listed = rig.said("docker exec %s nvidia-smi -L", endpoint.container).splitlines()
        seen = sum(line.startswith("GPU ") for line in listed)
        expect(f"{endpoint.gpu_count} GPUs in {endpoint.container}", f"{seen} GPUs in {endpoint.container}")


@check("critical", "endpoints", "recipe", root=True)
def test_serve_container(rig: Subject) -> None:
    """What runs is what the plan describes, as Docker tells it: image, arguments, environment, GPUs, mounts, rights."""
    for endpoint in rig.plan.endpoints:
        if endpoint.image is None:
            continue
        running = rig.json("docker container inspect %s", endpoint.container)
        if not running:
            raise Deviation(f"the container {endpoint.container}", "no such container")
        seen = running[0]
        config, host = seen.get("Config", {}), seen.get("HostConfig", {})
        # The image brings variables of its own.
        environment = dict(each.split("=", 1) for each in config.get("Env") or [])
        expect(veiled(endpoint.env), veiled({name: environment.get(name, "") for name in endpoint.env}))
        devices = [name for request in host.get("DeviceRequests") or [] for name in request.get("DeviceIDs") or []]
        gpus = ["all"] if endpoint.gpus == "all" else endpoint.gpus
        mounts = {mount["Destination"]: mount["Source"] for mount in seen.get("Mounts", []) if not mount.get("RW")}
        expect(
            {
                "plan": endpoint.digest[:12],
                "image": endpoint.image,
                "arguments": list(endpoint.argv),
                "GPUs": sorted(f"nvidia.com/gpu={gpu}" for gpu in gpus),
                "privileged": False,
                "capabilities dropped": ["ALL"],
                "security options": sorted(("no-new-privileges", *endpoint.security_opt)),
                **{f"mount {mount.target}": mount.source for mount in endpoint.mounts},
            },
            {
                "plan": config.get("Labels", {}).get("rigup.plan", "no mark")[:12],
                "image": config.get("Image", "none"),
                "arguments": config.get("Cmd") or [],
                "GPUs": sorted(devices),
                "privileged": host.get("Privileged"),
                "capabilities dropped": host.get("CapDrop") or [],
                # Docker adds this where a container shares the host's memory.
                "security options": sorted({*(host.get("SecurityOpt") or ())} - {"label=disable"}),
                **{f"mount {target}": source for target, source in mounts.items()},
            },
        )
