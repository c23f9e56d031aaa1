"""The serve step: the endpoints' units, that they run, and what runs in them."""

from __future__ import annotations

import ipaddress
import json
import re

from rigup.audit.check import YOU, check
from rigup.audit.expect import (
    Deviation,
    expect,
    expect_file,
    expect_none,
    expect_open,
    expect_owner,
    expect_units,
    hashed,
)
from rigup.audit.subject import CONFINED, Subject
from rigup.diagnosis.explain import fatal_text
from rigup.paths import (
    APT_UNIT,
    AUDIT_TIMER,
    AUDIT_UNIT,
    CLIENT,
    CLIENT_REQUIREMENTS,
    COMMIT_UNIT,
    ENDPOINTS,
    FATAL_LINES,
    FETCH_STORE_DROP_IN,
    PEERS_DROP_IN,
    PEERS_UNIT,
    SWITCH_UNIT,
    fetch_unit,
)
from rigup.plan.model import EndpointPlan
from rigup.resources import FILES

# The user that runs engines without a container.
USER = "rigup-serve"
# Units that run as root or for all endpoints, those of a deploy included.
OTHER_UNITS = (PEERS_UNIT, COMMIT_UNIT, AUDIT_UNIT, AUDIT_TIMER, APT_UNIT, SWITCH_UNIT)
TIMES = {"w": 604800, "d": 86400, "h": 3600, "min": 60, "s": 1}


def address_of(hexadecimal: str) -> str:
    """Return an address from /proc/net/tcp or tcp6: 32-bit words, each in the host's byte order."""
    words = [bytes.fromhex(hexadecimal[start : start + 8])[::-1] for start in range(0, len(hexadecimal), 8)]
    return str(ipaddress.ip_address(b"".join(words)))


def command(shown: str) -> str:
    """Return the words of a unit's only command from `systemctl show`: without quotes, dollars doubled."""
    words = re.findall(r"argv\[\]=(.*?) ; ignore_errors=", shown, re.DOTALL)
    return words[0].replace("$$", "$") if len(words) == 1 else f"{len(words)} commands"


def record(endpoint: EndpointPlan) -> dict[str, object]:
    """Return what a switch must know about an endpoint, including the command of its verification, run as root."""
    return {
        "name": endpoint.name,
        "generation": endpoint.digest[:12],
        "recipe": endpoint.recipe,
        "gpus": endpoint.gpus if isinstance(endpoint.gpus, str) else list(endpoint.gpus),
        "served_name": endpoint.served_name,
        "address": endpoint.address,
        "port": endpoint.port,
        "ready_path": endpoint.ready_path,
        # A minute more than the readiness check takes.
        "start_seconds": endpoint.ready_timeout + 60,
        "verify": [
            "/usr/local/lib/rigup/client/bin/python",
            "-IB",
            "/usr/local/lib/rigup/host/current/rigup-host",
            "smoke",
            f"--url={endpoint.url}",
            f"--health={endpoint.ready_path}",
            f"--model={endpoint.served_name}",
            "--timeout=600",
            "--within=1800",
            f"--expect={endpoint.smoke.model_dump_json()}",
            f"--out=/run/rigup/verify-endpoint-{endpoint.name}.json",
            f"--unit=llm@{endpoint.name}.service",
            f"--digest={endpoint.digest}",
        ],
    }


def seconds(shown: str) -> int:
    """Return `1h 30min` in seconds; 0 for anything else, such as `infinity`."""
    return sum(int(number) * TIMES[unit] for number, unit in re.findall(r"(\d+)(w|d|h|min|s)\b", shown))


@check("major")
def test_serve_files(rig: Subject) -> None:
    """The readiness check's fatal lines and the unit that completes a switch must be this version's."""
    expect_units(rig, COMMIT_UNIT)
    expect_file(rig, FATAL_LINES, fatal_text())


@check("major", "pypi_index")
def test_serve_client(rig: Subject) -> None:
    """The packages that verify an endpoint must be those of the lock, whose copy is written last."""
    copy = f"{CLIENT}/requirements.lock"
    for path in (copy, CLIENT_REQUIREMENTS):
        expect_file(rig, path, (FILES / "client-requirements.lock").read_text())
    expect_open(rig, CLIENT)


@check("critical", "endpoints", "recipe")
def test_serve_unit(rig: Subject) -> None:
    """Each unit must be the one deployed for this plan, and systemd must have read it."""
    for endpoint in rig.plan.endpoints:
        path = endpoint.unit_file
        # Only a complete copy shows that nothing was added; each generation keeps its own, named in the plan.
        expect_file(rig, path, rig.text(f"{endpoint.directory}/llm.service") or "")
        expect_owner(rig, f"{endpoint.directory}/llm.service")
        read = rig.unit(endpoint.unit)
        expect(
            {"needs daemon-reload": "no", "unit that was read": path},
            {"needs daemon-reload": read["NeedDaemonReload"], "unit that was read": read["FragmentPath"]},
        )


@check("critical", "endpoints", "recipe", repair=("config",))
def test_serve_record(rig: Subject) -> None:
    """What a switch reads about each generation must be the plan's: it has the command of the verification."""
    for endpoint in rig.plan.endpoints:
        text = json.dumps(record(endpoint), sort_keys=True) + "\n"
        expect_file(rig, f"{endpoint.directory}/endpoint.json", text)


@check("major", repair=(YOU,))
def test_serve_drop_ins(rig: Subject) -> None:
    """Drop-ins change units without rigup knowing; no deploy removes them."""
    units = [unit for endpoint in rig.plan.endpoints for unit in (endpoint.unit, endpoint.gateway)]
    units += [fetch_unit(checkpoint.instance) for checkpoint in rig.plan.checkpoints]
    units += OTHER_UNITS
    # Their content is checked with the peers and with the store's disk.
    own = {PEERS_DROP_IN, FETCH_STORE_DROP_IN if rig.settings.model_disk else ""}
    dropped = [(path, unit) for unit in units for path in rig.unit(unit)["DropInPaths"].split() if path not in own]
    expect_none("no drop-in", [f"{path} of {unit}" for path, unit in dropped])


@check("critical", "endpoints", "recipe")
def test_serve_settings(rig: Subject) -> None:
    """systemd must run what is planned: command, environment, confinement, timeouts and restarts."""
    for endpoint in rig.plan.endpoints:
        shown = rig.unit(endpoint.unit)
        words, arguments = command(shown["ExecStart"]), " ".join(endpoint.argv)
        files = re.findall(r"(\S+) \(ignore_errors=no\)", shown["EnvironmentFiles"])
        needed = {"network-online.target", "nvidia-persistenced.service"}
        if endpoint.image:
            options, _, words = words.partition(f" {endpoint.image} ")
            files = re.findall(r"--env-file=(\S+)", options)
            marks = re.findall(r"--(name|label=rigup\.plan)=(\S+)", options)
            expect({"name": endpoint.container, "label=rigup.plan": endpoint.digest}, dict(marks))
            needed |= {"docker.service", "nvidia-cdi-refresh.service"}
        expect(
            {
                **CONFINED,
                "arguments": arguments,
                "environment": [endpoint.env_file],
                "User": USER if endpoint.venv else "",
                "ProtectHome": "tmpfs" if endpoint.venv else "read-only",
                "Restart": "on-failure",
                "starts after": sorted(needed),
                # With Requires=, a restart of Docker would stop the endpoint for good.
                "stops with Docker": False,
            },
            {
                **{name: shown[name] for name in CONFINED},
                "arguments": words,
                "environment": files,
                "User": shown["User"],
                "ProtectHome": shown["ProtectHome"],
                "Restart": shown["Restart"],
                "starts after": sorted(needed & {*shown["After"].split()}),
                "stops with Docker": "docker.service" in shown["Requires"].split(),
            },
        )
        wait = command(shown["ExecStartPost"])
        asked = dict(re.findall(r"--(url|health|timeout)=(\S+)", wait))
        expect({"url": endpoint.url, "health": endpoint.ready_path, "timeout": str(endpoint.ready_timeout)}, asked)
        start, burst = seconds(shown["TimeoutStartUSec"]), int(shown["StartLimitBurst"] or 0)
        if start <= endpoint.ready_timeout:
            raise Deviation(f"a start timeout above {endpoint.ready_timeout} s", shown["TimeoutStartUSec"])
        if not 0 < burst * start <= seconds(shown["StartLimitIntervalUSec"]):
            raise Deviation("a limit on failing starts", f"{burst} within {shown['StartLimitIntervalUSec']}")


@check("critical", "endpoints")
def test_serve_running(rig: Subject) -> None:
    """Each endpoint must serve: its unit is active only while it answers."""
    for endpoint in rig.plan.endpoints:
        expect({endpoint.unit: "active"}, {endpoint.unit: rig.unit(endpoint.unit).get("ActiveState")})


@check("critical", "endpoints")
def test_serve_others(rig: Subject) -> None:
    """An endpoint that the inventory no longer has must not serve: it would occupy GPUs that others need."""
    planned = {endpoint.name for endpoint in rig.plan.endpoints}
    # Units of other origins may have such names, but no files in this directory.
    ours = {*rig.names(f"find {ENDPOINTS}/ -mindepth 1 -maxdepth 1 -printf '%f\\0'")}
    listed = rig.output("systemctl list-units --plain --no-legend --state=active,activating 'llm@*.service'")
    names = [line.split()[0].removeprefix("llm@").removesuffix(".service") for line in listed.splitlines()]
    expect_none("no other endpoint", [f"{name} serves" for name in names if name in ours - planned])


@check("critical", "endpoints")
def test_serve_at_boot(rig: Subject) -> None:
    """Each endpoint must serve again after a reboot, and a reboot must finish a switch that a power cut interrupted."""
    expect({COMMIT_UNIT: "enabled"}, {COMMIT_UNIT: rig.unit(COMMIT_UNIT).get("UnitFileState")})
    for endpoint in rig.plan.endpoints:
        expect({endpoint.unit: "enabled"}, {endpoint.unit: rig.unit(endpoint.unit).get("UnitFileState")})


@check("critical", "endpoints", "recipe", root=True)
def test_serve_process(rig: Subject) -> None:
    """An engine without a container must run with the planned arguments, and not as root."""
    for endpoint in rig.plan.endpoints:
        if endpoint.venv is None:
            continue
        pid = rig.output("systemctl show --value --property=MainPID -- %s", endpoint.unit)
        words = rig.output(f"tr '\\0' '\\n' </proc/{int(pid or 0)}/cmdline").splitlines()
        # A script's interpreter comes first.
        expect(list(endpoint.argv[1:]), words[-len(endpoint.argv) + 1 :])
        expect({"user": USER}, {"user": rig.output("stat -c '%%U' %s", f"/proc/{int(pid or 0)}")})


@check("critical", "endpoints", repair=("serve", "gateway"))
def test_serve_reach(rig: Subject) -> None:
    """Each endpoint must listen on its own addresses and no others, so that only planned clients reach it."""
    for endpoint in rig.plan.endpoints:
        rows = [line.split() for path in ("tcp", "tcp6") for line in (rig.text(f"/proc/net/{path}") or "").splitlines()]
        local = [words[1].split(":") for words in rows if len(words) > 3 and words[3] == "0A"]
        found = sorted({address_of(address) for address, port in local if int(port, 16) == endpoint.port})
        expect(sorted(filter(None, (endpoint.address, endpoint.public_address))), found)


@check("critical", "endpoints", root=True)
def test_serve_gpus(rig: Subject) -> None:
    """The container must still see its GPUs: a reload of systemd since its start can take them away."""
    for endpoint in rig.plan.endpoints:
        if endpoint.image is None:
            continue
        listed = rig.output("docker exec %s nvidia-smi -L", endpoint.container).splitlines()
        count = sum(line.startswith("GPU ") for line in listed)
        expect(f"{endpoint.gpu_count} GPUs in {endpoint.container}", f"{count} GPUs in {endpoint.container}")


@check("critical", "endpoints", "recipe", root=True)
def test_serve_container(rig: Subject) -> None:
    """Docker must run what is planned: image, arguments, environment, GPUs, mounts and privileges."""
    for endpoint in rig.plan.endpoints:
        if endpoint.image is None:
            continue
        running = rig.json("docker container inspect %s", endpoint.container)
        if not running:
            raise Deviation(f"the container {endpoint.container}", "no such container")
        container = running[0]
        config, host = container.get("Config", {}), container.get("HostConfig", {})
        # The image adds its own variables.
        environment = dict(each.split("=", 1) for each in config.get("Env") or [])
        expect(hashed(endpoint.env), hashed({name: environment.get(name, "") for name in endpoint.env}))
        devices = [name for request in host.get("DeviceRequests") or [] for name in request.get("DeviceIDs") or []]
        gpus = ["all"] if endpoint.gpus == "all" else endpoint.gpus
        mounts = {mount["Destination"]: mount["Source"] for mount in container.get("Mounts", []) if not mount.get("RW")}
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
                "plan": config.get("Labels", {}).get("rigup.plan", "no label")[:12],
                "image": config.get("Image", "none"),
                "arguments": config.get("Cmd") or [],
                "GPUs": sorted(devices),
                "privileged": host.get("Privileged"),
                "capabilities dropped": host.get("CapDrop") or [],
                # Docker adds this if a container shares the host's IPC namespace.
                "security options": sorted({*(host.get("SecurityOpt") or ())} - {"label=disable"}),
                **{f"mount {target}": source for target, source in mounts.items()},
            },
        )
