"""The mirror uses the servers of this machine's own apt and pip, which it reads when it starts."""

import platform
from pathlib import Path

import pytest

from lab.mirror import upstreams

CODENAME = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
on_debian = pytest.mark.skipif(
    platform.freedesktop_os_release().get("ID") != "debian", reason="only Debian's apt names Debian's archive"
)


def use_apt_sources(directory: Path, sources: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = directory / "sources"
    parts.mkdir()
    (parts / "test.sources").write_text(sources)
    settings = {"Dir::Etc::sourcelist": "/dev/null", "Dir::Etc::sourceparts": parts}
    configuration = directory / "apt.conf"
    configuration.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    monkeypatch.setenv("APT_CONFIG", str(configuration))


@on_debian
def test_debian_comes_from_where_apt_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stanza = "Types: deb\nURIs: http://{0}/\nSuites: {1}\nComponents: main\n\n"
    third_party = stanza.format("vendor.example/repo", "stable")
    debian = stanza.format("mirror.example/debian", f"{CODENAME} {CODENAME}-updates")
    security = stanza.format("mirror.example/security", f"{CODENAME}-security")
    use_apt_sources(tmp_path, third_party + debian + security, monkeypatch)
    found = upstreams.find()
    assert found.debian == "http://mirror.example/debian"
    assert found.debian_security == "http://mirror.example/security"


@on_debian
def test_debian_comes_from_its_public_server_where_apt_reads_disks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stanza = f"Types: deb\nURIs: file:/srv/debian/\nSuites: {CODENAME}\nComponents: main\n"
    use_apt_sources(tmp_path, stanza, monkeypatch)
    assert upstreams.find().debian == "http://deb.debian.org/debian"


def test_python_packages_come_from_where_pip_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    configuration = tmp_path / "pip.conf"
    configuration.write_text("[global]\nindex-url = https://one.example/simple/\ncert = /etc/ca.pem\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://two.example/simple file:///srv/simple")
    monkeypatch.delenv("PIP_CERT", raising=False)
    found = upstreams.find()
    assert found.pypi == ("https://one.example/simple", "https://two.example/simple", "file:///srv/simple")
    assert found.certificates == "/etc/ca.pem"


def test_the_environment_outdoes_pips_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = tmp_path / "pip.conf"
    configuration.write_text("[global]\nindex-url = https://one.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
    monkeypatch.setenv("PIP_INDEX_URL", "https://other.example/simple")
    assert upstreams.find().pypi[0] == "https://other.example/simple"
