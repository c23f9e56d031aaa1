"""The audit of units and gateways, whose files its own code has never written; the host's answers are given."""

from __future__ import annotations

import hashlib
import importlib.util
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rigup.audit.expect import Deviation
from rigup.audit.subject import Subject
from rigup.config.inventory import load_inventory
from rigup.config.settings import Settings
from rigup.diagnosis.explain import fatal_text
from rigup.paths import FETCH_REQUIREMENTS, FETCH_STORE_DROP_IN, FETCH_VENV
from rigup.plan.model import Plan
from rigup.render.docker import docker_argv
from rigup.render.gateway import config_text, opening
from rigup.render.peers import daemon_config
from rigup.render.systemd import fetch_store_text, mount_text, unit_text, wait_argv
from rigup.render.verify import record_text
from rigup.templates import filled
from tests.unit.host_world import FILES
from tests.unit.sample import plan
from tests.unit.test_plan_venv import endpoint as bare_endpoint

AUDIT = Path(__file__).resolve().parents[2] / "tests/audit"
TEMPLATES = Path(__file__).resolve().parents[2] / "templates"
PROGRAMS, UNITS = "/usr/local/lib/rigup/host/current", "/etc/systemd/system"
UNIT = "/usr/local/lib/systemd/system/llm@main.service"
GATEWAY = "/etc/rigup/gateways/main"
LINES, CLIENT = "/usr/local/lib/rigup/fatal.json", "/usr/local/lib/rigup/client/requirements.lock"
REQUIREMENTS = "/usr/local/lib/rigup/client-requirements.lock"
OPEN = {"main": {"listen": "192.0.2.20", "allowed_networks": ["192.0.2.0/24", "198.51.100.7"]}}
OPEN_6 = {"main": {"listen": "2001:db8::20", "allowed_networks": ["2001:db8::/32", "fd00::/8"]}}

# As systemd 252 showed a rendered unit, but for the commands.
SHOWN = """\
Restart=on-failure
TimeoutStartUSec=46min
ExecStart={{ path={program} ; argv[]={start} ; ignore_errors=no ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }}
ExecStartPost={{ path=/usr/local/lib/rigup/host/current/rigup-host ; argv[]={wait} ; ignore_errors=no ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }}
CapabilityBoundingSet=
User={user}
{environment}PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
ProtectHome={home}
ProtectSystem=strict
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
Requires=system-llm.slice sysinit.target
After=basic.target nvidia-cdi-refresh.service network-online.target nvidia-persistenced.service docker.service
ActiveState=active
FragmentPath=/usr/local/lib/systemd/system/llm@main.service
DropInPaths=
UnitFileState=enabled
NeedDaemonReload=no
StartLimitIntervalUSec=3h 12min
StartLimitBurst=4
"""  # noqa: E501


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def units() -> dict[str, str]:
    """The units that are this version's."""
    names = [path.name.removesuffix(".j2") for kind in ("service", "timer") for path in TEMPLATES.glob(f"*.{kind}.j2")]
    # `rigup-status` is for the control machine.
    static = [name for name in names if not name.startswith(("llm", "rigup-status"))]
    return {f"{UNITS}/{name}": filled(f"{name}.j2") for name in static}


def programs() -> str:
    """What sha256sum and find say of host programs that are this version's."""
    files = [FILES / "rigup-host", *FILES.glob("check_*.py"), *(FILES / "rigup_host").rglob("*.py")]
    listed = [f"{sha256(path.read_bytes())}  ./{path.relative_to(FILES)}" for path in files]
    listed += [f"{755 if path.suffix == '' else 644} root:root f ./{path.relative_to(FILES)}" for path in files]
    listed += [f"755 root:root d ./rigup_host{below}" for below in ("", "/bench", "/fetch", "/switch")]
    return "".join(f"{line}\0" for line in listed)


@dataclass
class Told:
    """Stands for testinfra's host: files by their path, units by their name, other commands by their first words."""

    files: dict[str, str]
    units: dict[str, str]
    commands: dict[str, str]
    owners: dict[str, str] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)

    def run(self, command: str, *arguments: str) -> SimpleNamespace:
        line = command % tuple(map(shlex.quote, arguments)) if arguments else command
        words = shlex.split(line)
        self.asked |= {*words}
        if words[0] in ("stat", "find") and words[1 if words[0] == "find" else -1] in self.files:
            path = words[1 if words[0] == "find" else -1]
            mode, user = self.owners.get(path, "644 root").split()
            found = f"{mode} {user}" if words[0] == "stat" else f"{mode} {user}:{user} f"
            if "root only" in words:
                found = "root only" * ((mode, user) == ("644", "root"))
        elif words[0] == "cat":
            found = self.files.get(words[-1])
        elif words[:2] == ["systemctl", "show"]:
            found = self.units.get(words[-1], "")
        else:
            found = next((said for start, said in self.commands.items() if line.startswith(start)), None)
        return SimpleNamespace(rc=int(found is None), stdout=found or "", stderr="")


class Audited:
    """A host that is as its plan says, until a test changes what it tells."""

    def __init__(self, directory: Path, due: Plan) -> None:
        (endpoint,) = due.endpoints
        argv = list(endpoint.argv) if endpoint.venv else docker_argv(endpoint)
        start, wait = (" ".join(words).replace("$", "$$") for words in (argv, wait_argv(endpoint)))
        shown = SHOWN.format(
            program=argv[0],
            start=start,
            wait=wait,
            user="rigup-serve" if endpoint.venv else "",
            environment=f"EnvironmentFiles={endpoint.env_file} (ignore_errors=no)\n" if endpoint.venv else "",
            home="tmpfs" if endpoint.venv else "read-only",
        )
        self.told = Told(
            {
                UNIT: unit_text(endpoint),
                f"{endpoint.directory}/llm.service": unit_text(endpoint),
                LINES: fatal_text(),
                CLIENT: (FILES / "client-requirements.lock").read_text(),
                REQUIREMENTS: (FILES / "client-requirements.lock").read_text(),
                FETCH_REQUIREMENTS: (FILES / "fetch-requirements.lock").read_text(),
                f"{FETCH_VENV}/requirements.lock": (FILES / "fetch-requirements.lock").read_text(),
                f"{endpoint.directory}/endpoint.json": record_text(endpoint),
                **units(),
            },
            {endpoint.unit: shown, endpoint.gateway: shown},
            {
                "find /etc/rigup/gateways/": "main.cfg\0main.nft\0" if endpoint.public_address else "",
                f"cd {PROGRAMS}/ && find": programs(),
            },
        )
        if endpoint.public_address:
            self.told.files |= checks_of("gateway").shared_files()
            self.told.files |= {f"{GATEWAY}.cfg": config_text(endpoint), f"{GATEWAY}.nft": opening(endpoint).text}
        inventory = directory / "lab.yaml"
        inventory.write_text("hosts: {rig1: {address: 192.0.2.1}}\n")
        self.rig: Any = Subject(load_inventory(inventory).host("rig1"))
        self.rig.host, self.rig.plan, self.rig.balancer = self.told, due, None

    def finding(self, step: str, check: str) -> str:
        """What a check has found; nothing where all is as planned."""
        try:
            getattr(checks_of(step), f"test_{step}_{check}")(self.rig)
        except Deviation as deviation:
            return str(deviation)
        return ""


def checks_of(step: str) -> ModuleType:
    """The audit's file of checks for a step; a test here has the same name."""
    spec = importlib.util.spec_from_file_location(f"audit_{step}", AUDIT / f"test_{step}.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(params=["container", "environment"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Audited:
    """A host whose endpoint is on loopback, in a container and without one."""
    due = plan()
    if request.param == "environment":
        due = due.model_copy(update={"endpoints": (bare_endpoint(),)})
    return Audited(tmp_path, due)


@pytest.fixture(params=[OPEN, OPEN_6], ids=["ipv4", "ipv6"])
def gated(request: pytest.FixtureRequest, tmp_path: Path) -> Audited:
    """A host whose endpoint has a gateway."""
    return Audited(tmp_path, plan(endpoints=request.param))


# Units


def test_a_unit_as_planned_is_no_finding(served: Audited) -> None:
    assert [served.finding("serve", check) for check in ("unit", "drop_ins", "settings")] == ["", "", ""]


def test_a_line_more_in_a_unit_file_is_found(served: Audited) -> None:
    served.told.files[UNIT] += "# mine\n"
    assert "the end\nfound:    # mine" in served.finding("serve", "unit")


def test_a_unit_without_its_generations_copy_is_found(served: Audited) -> None:
    del served.told.files[f"{served.rig.plan.endpoint('main').directory}/llm.service"]
    assert "the end" in served.finding("serve", "unit")


def test_the_drop_in_that_names_the_peers_is_rigups_own(served: Audited) -> None:
    path = "/etc/systemd/system/rigup-peers.service.d/allow.conf"
    served.told.units["rigup-peers.service"] = f"DropInPaths={path}"
    assert served.finding("serve", "drop_ins") == ""
    served.told.units["rigup-peers.service"] += " /etc/systemd/system/rigup-peers.service.d/x.conf"
    assert "x.conf of rigup-peers.service" in served.finding("serve", "drop_ins")


@pytest.mark.parametrize(
    ("check", "line", "instead", "said"),
    [
        ("unit", "NeedDaemonReload=no", "NeedDaemonReload=yes", "needs daemon-reload: yes"),
        ("unit", f"FragmentPath={UNIT}", "FragmentPath=/run/systemd/system/llm@main.service", "was read: /run/"),
        ("drop_ins", "DropInPaths=", "DropInPaths=/etc/systemd/system/llm@main.service.d/x.conf", "x.conf of llm@main"),
        ("settings", "Restart=on-failure", "Restart=no", "Restart: no"),
        ("settings", "ProtectSystem=strict", "ProtectSystem=no", "ProtectSystem: no"),
        ("settings", "CapabilityBoundingSet=", "CapabilityBoundingSet=cap_sys_admin", "cap_sys_admin"),
        ("settings", " ; ignore_errors=no", " --one-more=1 ; ignore_errors=no", "--one-more=1"),
        ("settings", "User=", "User=nobody-", "User: nobody-"),
        ("settings", "ProtectHome=", "ProtectHome=no", "ProtectHome: no"),
        ("settings", "network-online.target ", "", "nvidia-persistenced.service"),
        ("settings", "Requires=", "Requires=docker.service ", "stops with Docker: True"),
        ("settings", "/endpoints/main/", "/endpoints/other/", "/endpoints/other/"),
        ("settings", "--url=http://127.0.0.1:8000", "--url=http://127.0.0.1:8001", "url: http://127.0.0.1:8001"),
        ("settings", "TimeoutStartUSec=46min", "TimeoutStartUSec=44min 59s", "44min 59s"),
        ("settings", "StartLimitIntervalUSec=3h 12min", "StartLimitIntervalUSec=3h", "4 within 3h"),
        ("settings", "StartLimitBurst=4", "StartLimitBurst=0", "0 within 3h 12min"),
    ],
)  # fmt: skip
def test_what_systemd_has_in_effect_otherwise_is_found(
    served: Audited, check: str, line: str, instead: str, said: str
) -> None:
    told = served.told.units["llm@main.service"]
    assert line in told
    served.told.units["llm@main.service"] = told.replace(line, instead, 1)
    assert said in served.finding("serve", check).partition("\nfound:    ")[2]


def test_a_unit_that_starts_another_generations_container_is_found(tmp_path: Path) -> None:
    host = Audited(tmp_path, plan())
    digest = host.rig.plan.endpoint("main").digest
    host.told.units["llm@main.service"] = host.told.units["llm@main.service"].replace(digest, "0" * 64)
    assert "label=rigup.plan: 0000" in host.finding("serve", "settings")


def test_an_endpoint_that_the_inventory_no_longer_has_is_found_and_units_of_others_are_not(served: Audited) -> None:
    served.told.commands["find /etc/rigup/endpoints/"] = "main\0old\0"
    units = "llm@main.service loaded active running x\nllm@webui.service loaded active running x\n"
    served.told.commands["systemctl list-units"] = units
    assert served.finding("serve", "others") == ""
    served.told.commands["systemctl list-units"] = units + "llm@old.service loaded activating start x\n"
    assert served.finding("serve", "others").endswith("old serves")


# Gateways


def test_a_gateway_as_planned_is_no_finding(gated: Audited) -> None:
    assert gated.finding("gateway", "files") == ""


@pytest.mark.parametrize(
    ("kind", "line", "instead", "said"),
    [
        ("cfg", "    bind ipv", "    bind ipv4@*:9000\n    bind ipv", "*:9000"),
        ("cfg", "    server engine ", "    server other 192.0.2.9:8000\n    server engine ", "192.0.2.9"),
        ("cfg", " unless known ||", " unless TRUE ||", "unless TRUE"),
        ("cfg", "    http-request return", "    http-request allow if health\n    http-request return", "allow if"),
        ("cfg", "endpoints/main/key", "endpoints/other/key", "endpoints/other/key"),
        ("cfg", "    default_backend", "    stats enable\n    default_backend", "stats enable"),
        ("cfg", "    default_backend", "    use_backend other if health\n    default_backend", "use_backend other"),
        ("cfg", "reject unless { src ", "reject unless { src 203.0.113.0/24 ", "203.0.113.0/24"),
        ("cfg", "    tcp-request connection reject", "    # tcp-request connection reject", "connection track-sc0"),
        ("nft", "saddr != { ", "saddr != { 203.0.113.0/24, ", "203.0.113.0/24"),
        ("nft", " drop comment", " accept comment", "accept comment"),
        ("nft", " drop comment", ' drop comment "x"; add rule inet rigup endpoint-main accept comment', "accept"),
        ("nft", "dport 8000", "dport 8001", "8001"),
        ("nft", "add rule", "add rule inet rigup endpoint-main accept\nadd rule", "accept"),
        ("nft", "hook input", "hook output", "hook output"),
    ],
)  # fmt: skip
def test_a_gateway_that_lets_in_others_is_found(tmp_path: Path, kind: str, line: str, instead: str, said: str) -> None:
    host = Audited(tmp_path, plan(endpoints=OPEN))
    text = host.told.files[f"{GATEWAY}.{kind}"]
    assert line in text
    host.told.files[f"{GATEWAY}.{kind}"] = text.replace(line, instead, 1)
    assert said in host.finding("gateway", "files").partition("\nfound:    ")[2]


def test_a_gateway_that_no_plan_names_is_found(gated: Audited) -> None:
    gated.told.commands["find /etc/rigup/gateways/"] += "old.cfg\0"
    assert "old.cfg" in gated.finding("gateway", "files")


def test_what_gateways_share_is_compared(gated: Audited) -> None:
    for path in checks_of("gateway").shared_files():
        right = gated.told.files[path]
        gated.told.files[path] = f"{right}# changed\n"
        assert path in gated.finding("gateway", "files")
        gated.told.files[path] = right


def test_a_gateway_that_does_not_run_or_does_not_take_its_key_is_found(gated: Audited) -> None:
    gated.told.commands["sed 's/^/Authorization: Bearer /' "] = "401"
    assert "401" in gated.finding("gateway", "opens")
    gated.told.units["rigup-gateway@main.service"] = SHOWN.replace("=active", "=failed")
    assert "failed" in gated.finding("gateway", "files")


# Peers


def test_what_the_rsync_daemon_says_is_read_and_another_module_is_seen() -> None:
    text = daemon_config("/srv/models", 8730, ["192.0.2.2", "192.0.2.1"], ["/srv/models/a/b/c"])
    found = checks_of("model").rsyncd(text + "[all]\npath = /\n")
    assert (found["hosts allow"], found["models path"], found.pop("all path")) == (
        "192.0.2.1 192.0.2.2",
        "/srv/models",
        "/",
    )
    assert found == checks_of("model").rsyncd(text)


# Files of this version, the store's disk, the hub's token


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("  ./rigup_host/fetch/store.py", "  ./rigup_host/fetch/other.py", "rigup_host/fetch/store.py: 644 root:root"),
        ("644 root:root f ./check_args.py", "666 root:root f ./check_args.py", "check_args.py: 666 root:root"),
        ("755 root:root f ./rigup-host", "755 ops:ops f ./rigup-host", "rigup-host: 755 ops:ops"),
        ("755 root:root d ./rigup_host\0", "", "rigup_host: nothing"),
        (
            "755 root:root d ./rigup_host\0",
            "755 root:root d ./rigup_host\x00644 root:root l ./os.py\0",
            "os.py: 644 root:root l",
        ),
    ],
)
def test_a_host_program_that_is_not_this_versions_is_found(served: Audited, before: str, after: str, said: str) -> None:
    assert served.finding("base", "programs") == ""
    command = f"cd {PROGRAMS}/ && find"
    assert before in served.told.commands[command]
    served.told.commands[command] = served.told.commands[command].replace(before, after)
    assert said in served.finding("base", "programs")
    del served.told.commands[command]
    assert "rigup-host: nothing" in served.finding("base", "programs")


@pytest.mark.parametrize(
    ("step", "check", "name"),
    [
        ("serve", "files", "rigup-commit.service"),
        ("model", "unit", "model-fetch@.service"),
        ("gateway", "files", "rigup-gateway@.service"),
    ],
)
def test_a_unit_of_another_version_is_found(gated: Audited, step: str, check: str, name: str) -> None:
    assert gated.finding(step, check) == ""
    gated.told.files[f"{UNITS}/{name}"] += "# other\n"
    assert f"{name}, line" in gated.finding(step, check)
    del gated.told.files[f"{UNITS}/{name}"]
    assert f"{name}\nfound:    no such file" in gated.finding(step, check)


@pytest.mark.parametrize(("check", "path"), [("files", LINES), ("client", CLIENT), ("client", REQUIREMENTS)])
def test_what_verification_works_with_is_found_where_it_differs(served: Audited, check: str, path: str) -> None:
    assert served.finding("serve", check) == ""
    served.told.files[path] += "more\n"
    assert f"{path}, line" in served.finding("serve", check)
    del served.told.files[path]
    assert served.finding("serve", check).split() == ["expected:", path, "found:", "no", "such", "file"]


@pytest.mark.parametrize(
    ("disk", "mounted", "at_boot", "said"),
    [
        ("7:1", "7:1", "enabled", ""),
        ("7:1", "8:2", "enabled", "mounted: 8:2"),
        ("7:1", "", "enabled", "mounted: nothing"),
        ("", "", "enabled", "mounted: nothing"),
        ("7:1", "7:1", "disabled", "at boot: disabled"),
    ],
)
def test_a_store_that_does_not_lie_on_its_disk_is_found(
    served: Audited, disk: str, mounted: str, at_boot: str, said: str
) -> None:
    assert served.finding("model", "disk") == ""
    served.rig.settings = Settings.from_data({"model_disk": "models"})
    served.told.commands |= {
        "systemd-escape --path --suffix=mount -- /srv/models": "srv-models.mount\n",
        "mountpoint -x /dev/disk/by-label/models": disk,
        "mountpoint -d /srv/models": mounted,
    }
    served.told.units["srv-models.mount"] = f"UnitFileState={at_boot}\n"
    served.told.files |= {
        f"{UNITS}/srv-models.mount": mount_text("/srv/models", "models"),
        FETCH_STORE_DROP_IN: fetch_store_text("/srv/models"),
    }
    assert served.finding("model", "disk").partition("\nfound:    ")[2] == said


@pytest.mark.parametrize("found", ["644 root", "600 ops"])
def test_a_hub_token_that_others_can_read_is_found(served: Audited, found: str) -> None:
    assert served.finding("model", "token") == ""
    served.told.commands["stat -c '%a %U' /etc/rigup/hub-token"] = "600 root"
    assert served.finding("model", "token") == ""
    served.told.commands["stat -c '%a %U' /etc/rigup/hub-token"] = found
    assert served.finding("model", "token").endswith(found)


# Packages


def test_packages_that_the_downloader_cannot_read_are_found(served: Audited) -> None:
    served.told.commands |= {
        "getent passwd rigup-fetch": "rigup-fetch:x:990:990::/var/lib/rigup-fetch:/usr/sbin/nologin\n",
        f"{FETCH_VENV}/bin/python": "1.2.3\n",
    }
    assert served.finding("model", "user") == ""
    served.told.commands[f"find {FETCH_VENV} -maxdepth 99 "] = f"{FETCH_VENV}/bin\0"
    assert f"found:    {FETCH_VENV}/bin is not" in served.finding("model", "user")
    assert served.finding("serve", "client") == ""
    served.told.commands[f"find {CLIENT.rpartition('/')[0]} -maxdepth 99 "] = "/a\0/b\0/c\0/d\0"
    assert "found:    /a is not, /b is not, /c is not" in served.finding("serve", "client")
