"""The servers that the mirror gets Debian's and Python's packages from: those of this machine's apt and pip."""

import ast
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass

DEBIAN = "http://deb.debian.org/debian"
DEBIAN_SECURITY = "http://deb.debian.org/debian-security"
PYPI = "https://pypi.org/simple"


@dataclass(frozen=True)
class Upstreams:
    """Base URLs without a trailing slash. `pypi` are simple indexes; the first that has a file wins."""

    debian: str
    debian_security: str
    pypi: tuple[str, ...]
    certificates: str | None
    """A file of trusted authorities for https, if pip has one configured."""


def _apt_sources() -> dict[str, str]:
    """Return the http(s) repositories of this machine's apt by suite; empty without apt."""
    try:
        listing = subprocess.run(
            ["apt-get", "update", "--print-uris"], check=True, capture_output=True, text=True
        ).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return {}
    # 'http://host/debian/dists/bookworm/InRelease' host_debian_dists_bookworm_InRelease 0
    found = re.findall(r"^'(https?://[^']+)/dists/([^'/]+)/InRelease'", listing, re.MULTILINE)
    return {suite: base for base, suite in reversed(found)}


def _pip_settings() -> dict[str, str]:
    """Return pip's settings by name; as in pip, the environment overrides configuration files."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    try:
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        listing = ""
    settings: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        for line in listing.splitlines():
            name, _, value = line.partition("=")
            if name.startswith(f"{section}."):
                settings[name.removeprefix(f"{section}.")] = str(ast.literal_eval(value))
    for name in ("index-url", "extra-index-url", "cert"):
        if told := os.environ.get(f"PIP_{name.upper().replace('-', '_')}"):
            settings[name] = told
    return settings


def find() -> Upstreams:
    """Read this machine's apt and pip settings; the defaults are Debian's and PyPI's public servers."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    on_debian = platform.freedesktop_os_release().get("ID") == "debian"
    suites = _apt_sources() if on_debian else {}
    pip = _pip_settings()
    indexes = [pip.get("index-url", PYPI), *pip.get("extra-index-url", "").split()]
    return Upstreams(
        suites.get(codename, DEBIAN),
        suites.get(f"{codename}-security", DEBIAN_SECURITY),
        tuple(index.rstrip("/") for index in indexes),
        pip.get("cert"),
    )
