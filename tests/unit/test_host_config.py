"""The proxies of a host: how they are parsed, what preflight checks, and what the steps use."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rigup.config.settings import Settings
from rigup.distros.apt_sources import repositories
from rigup.facts.network import parse_proxies
from rigup.host_config import Proxies, daemon_variables, log_driver, proxy_for, shell_variables, variables
from rigup.lock.lockfile import KeyLock, Lock
from rigup.lock.registry import HUB
from rigup.operations import docker as docker_operations
from rigup.paths import HOST_PROGRAM
from rigup.preflight.network import destinations
from rigup.ssh.environment import VARIABLES
from rigup_host import environment as host_environment
from rigup_host import paths as host_paths
from tasks.context import Context
from tasks.docker import docker
from tasks.model import model
from tests.unit.deploys import Actor, Said
from tests.unit.sample import lock, plan
from tests.unit.test_preflight import BARE, OPEN, Way, changed, only, problems

PROXY = "http://proxy.lan:3128"
EVERYWHERE = {"http_proxy": PROXY, "https_proxy": PROXY}
THERE = ("proxy.lan", 3128)
CLOSED = {place: Way(False, "Network is unreachable") for place in OPEN}

# Output of `grep -Hi _proxy=`, and of `apt-config dump Acquire` (apt 2.6).
SEEN = [
    '/etc/environment:HTTPS_PROXY="http://proxy.lan:3128"',
    "/etc/environment:export no_proxy=localhost,10.0.0.0/8",
    "/etc/environment:# http_proxy=http://old",
    '/etc/systemd/system/docker.service.d/proxy.conf:Environment="HTTP_PROXY=http://d:1" "HTTPS_PROXY=http://d:2"',
    'Acquire::http::Proxy "http://cache:3142/";',
    'Acquire::http::Proxy::repo.lan "DIRECT";',
]


def test_environment_apt_and_docker_have_separate_proxies() -> None:
    found = parse_proxies(SEEN)
    environment = {"https_proxy": "http://proxy.lan:3128", "no_proxy": "localhost,10.0.0.0/8"}
    assert found.environment == environment
    assert found.docker == {"http_proxy": "http://d:1", "https_proxy": "http://d:2"}
    # https uses the option of http, which overrides the environment.
    cache = "http://cache:3142/"
    assert found.apt == {"http_proxy": cache, "https_proxy": cache, "no_proxy": "localhost,10.0.0.0/8,repo.lan"}
    direct = parse_proxies([*SEEN[:1], 'Acquire::HTTPS::Proxy "DIRECT";', 'Acquire::http::Proxy "http://a:1";'])
    assert direct.apt == {"http_proxy": "http://a:1"}
    assert parse_proxies(SEEN[:2]).apt == environment


def test_daemon_json_can_set_proxies_too() -> None:
    text = '{"proxies": {"http-proxy": "http://p:1", "https-proxy": "", "no-proxy": "a,b"}}'
    assert daemon_variables(text) == {"http_proxy": "http://p:1", "no_proxy": "a,b"}
    for odd in (None, "", "{", "[]", "{}", '{"proxies": []}'):
        assert daemon_variables(odd) == {}


@pytest.mark.parametrize(
    ("no_proxy", "url", "proxied"),
    [
        ("", "https://index.test/simple", True),
        ("test", "https://index.test/simple", False),
        ("index.test:443, x", "https://index.test/simple", False),
        (".index.test", "https://files.index.test/", False),
        ("*.index.test", "https://files.index.test/", False),
        ("dex.test", "https://index.test/simple", True),
        ("*", "https://index.test/simple", False),
        ("10.0.0.0/8", "http://10.98.0.1:8000", False),
        ("10.98.0.1", "http://10.98.0.1:8000", False),
        ("10.0.0.0/16", "http://10.98.0.1:8000", True),
        ("::1", "http://10.98.0.1:8000", True),
    ],
)
def test_no_proxy_bypasses_the_proxy(no_proxy: str, url: str, proxied: bool) -> None:
    assert proxy_for(url, {**EVERYWHERE, "no_proxy": no_proxy}) == (PROXY if proxied else None)
    assert proxy_for(url, {}) is None


def test_a_host_behind_a_proxy_needs_no_other_connection() -> None:
    everywhere = Proxies(EVERYWHERE, EVERYWHERE, EVERYWHERE)
    made = plan()
    assert destinations(made, Settings(), everywhere) == {THERE: "cuda_mirror"}
    assert problems(changed(BARE, proxies=everywhere, reachable={**CLOSED, THERE: Way(True)})) == []

    problem = only(problems(changed(BARE, proxies=everywhere, reachable={THERE: Way(False, "refused")})))
    assert problem.found == "the host cannot connect to its proxy proxy.lan:3128: refused"
    assert "cuda_mirror, docker_mirror, hub_endpoint, pypi_index, registry_mirror, toolkit_mirror" in problem.remedy


def test_each_program_goes_by_its_own_proxies() -> None:
    facts = changed(BARE, proxies=Proxies(EVERYWHERE, EVERYWHERE), reachable={**CLOSED, THERE: Way(True)})
    # Docker has been told of none.
    assert (
        only(problems(facts)).found
        == f"the host cannot connect to {HUB.removeprefix('https://')}:443: Network is unreachable"
    )


def test_a_mirror_that_no_proxy_names_must_be_reached_directly() -> None:
    names = {**EVERYWHERE, "no_proxy": "mirror.lan"}
    mirror = {f"{name}_mirror": "http://mirror.lan:8000" for name in ("cuda", "docker", "toolkit")}
    seen = {**OPEN, THERE: Way(True), ("mirror.lan", 8000): Way(False, "refused")}
    problem = only(problems(changed(BARE, proxies=Proxies(names, names, names), reachable=seen), **mirror))
    assert problem.found == "the host cannot connect to mirror.lan:8000: refused"


def test_keys_are_downloaded_through_the_proxy_of_apt() -> None:
    keys = {name: each.key_url for name, each in repositories("debian13", Settings()).items()}
    known = lock().merged(Lock(keys=dict.fromkeys(keys.values(), KeyLock(sha256="a" * 64, fingerprints=("B" * 40,)))))
    context = Context(plan(), Settings(), known, "debian13", gpus=4, proxies=Proxies(apt=EVERYWHERE))

    commands = Actor().walks(docker, context).commands

    proxied = [each for each in commands if each.startswith(f"http_proxy={PROXY} https_proxy={PROXY} ")]
    assert all(any(keys[name] in each for each in proxied) for name in ("docker", "toolkit"))
    assert not any("daemon.json" in each for each in proxied)


def test_the_downloaders_packages_come_by_the_proxy_of_the_environment() -> None:
    context = Context(plan(), Settings(), lock(), "debian13", gpus=4, proxies=Proxies(environment=EVERYWHERE))

    commands = Actor().walks(model, context).commands

    (pip,) = (each for each in commands if "/bin/pip" in each)
    assert pip.startswith(f"http_proxy={PROXY} https_proxy={PROXY} ")


@pytest.mark.parametrize(
    ("daemon", "setting", "driver"),
    [
        ({}, None, "local"),
        ({}, "journald", "journald"),
        ({"log-driver": "fluentd"}, None, "fluentd"),
        ({"log-driver": "fluentd"}, "journald", "journald"),
        ({"log-opts": {"max-size": "10m"}}, None, "json-file"),
    ],
)
def test_the_log_driver_is_the_settings_or_the_owners_or_local(
    daemon: dict[str, object], setting: str | None, driver: str
) -> None:
    assert log_driver(daemon, setting) == driver


GRUB = """\
# GRUB_DEFAULT=9
GRUB_DEFAULT=saved
GRUB_DISTRIBUTOR=`lsb_release -i -s 2> /dev/null || echo Debian`
GRUB_CMDLINE_LINUX_DEFAULT="quiet \\
splash" # as installed
  export GRUB_CMDLINE_LINUX='console=ttyS0 $x'
GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT iommu=pt"
GRUB_TERMINAL=a"b c"\\ 'd'#e
"""


def test_default_files_are_read_as_a_shell_reads_them(tmp_path: Path) -> None:
    later = 'GRUB_CMDLINE_LINUX_DEFAULT="${GRUB_CMDLINE_LINUX_DEFAULT} dyndbg=\\"file x +p\\"$NONE"\n'
    found = shell_variables([GRUB, later])
    assert found == {
        "GRUB_DEFAULT": "saved",
        "GRUB_DISTRIBUTOR": "`lsb_release -i -s 2> /dev/null || echo Debian`",
        "GRUB_CMDLINE_LINUX_DEFAULT": 'quiet splash iommu=pt dyndbg="file x +p"',
        "GRUB_CMDLINE_LINUX": "console=ttyS0 $x",
        "GRUB_TERMINAL": "ab c d#e",
    }
    # The same from a real shell.
    (tmp_path / "a").write_text(GRUB)
    (tmp_path / "b").write_text(later)
    names = [name for name in found if name != "GRUB_DISTRIBUTOR"]
    shown = " ".join(f'"${name}"' for name in names)
    script = f". {tmp_path}/a; . {tmp_path}/b; printf '%s\\0' {shown}"
    said = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True, env={"PATH": "/bin"})
    assert said.stdout.split("\0")[:-1] == [found[name] for name in names]


def test_a_file_that_no_shell_would_read_is_no_error() -> None:
    assert shell_variables(['A="never closed\nB=1\n', "C='\n=\n"]) == {"A": "", "B": "1", "C": ""}


def test_the_host_programs_read_the_same_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
PATH="/opt/x:$PATH"
HF_HUB_OFFLINE=1
export HTTPS_PROXY='http://proxy.lan:3128'
no_proxy=localhost,10.0.0.0/8
# http_proxy=http://old
ftp_http_proxy=http://other
http_proxy=
ssl_cert_file="/etc/ssl/own.pem"
REQUESTS_CA_BUNDLE=/etc/ssl/own.pem
"""
    (tmp_path / "environment").write_text(text)
    monkeypatch.setattr(host_paths, "ENVIRONMENT", tmp_path / "environment")
    expected = {
        "https_proxy": "http://proxy.lan:3128",
        "no_proxy": "localhost,10.0.0.0/8",
        "SSL_CERT_FILE": "/etc/ssl/own.pem",
        "REQUESTS_CA_BUNDLE": "/etc/ssl/own.pem",
    }
    assert variables(text.splitlines()) == expected
    assert host_environment.of_host() == expected
    assert host_environment.FIXED.items() <= VARIABLES.items()


def test_a_unit_takes_proxies_and_certificates_from_the_host_and_nothing_else() -> None:
    lines = ["PATH=/opt/x:$PATH", "HF_HUB_OFFLINE=1", f"http_proxy={PROXY}/$x", "SSL_CERT_FILE=/own.pem"]
    actor = Actor().answers("grep -HiE", [f"/etc/environment:{line}" for line in lines])
    actor.answers("docker image inspect", Said(ok=False), Said())
    actor.answers("systemctl show", ["LoadState=not-found"], ["LoadState=loaded", "ActiveState=active", "Job=0"])
    outcome = actor.does(docker_operations.image, reference="r@sha256:" + "a" * 64, tag="r:1")
    (run,) = (each for each in outcome.commands if "systemd-run" in each)
    assert "-- /usr/bin/env -i PATH=/usr/local/sbin:" in run and "EnvironmentFile" not in run
    # systemd would expand one dollar.
    assert f" HOME=/root 'http_proxy={PROXY}/$$x' SSL_CERT_FILE=/own.pem {HOST_PROGRAM} pull" in run
    assert "HF_HUB_OFFLINE" not in run and "/opt/x" not in run
