"""The wheel is complete: everything works from a project directory, away from any checkout."""

from __future__ import annotations

import getpass
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rigup.lock import lockfile
from rigup.resources import AUDIT, DEPLOY, FILES, REBUILD, RECIPES, ROOT, TEMPLATES
from tests.unit.installed import Installed, installed
from tests.unit.loopback_sshd import OWN_ADDRESS, Sshd, running_sshd
from tests.unit.sample import lock

# What `rigup init` of this version writes. A project keeps it through all upgrades, so it must work with every later
# version: add projects of later versions to this test, and never change this one.
PROJECT = {
    "deploy.py": "from rigup.project import deploy; deploy()\n",
    "rebuild.py": "from rigup.project import rebuild; rebuild()\n",
    "group_data/all.py": "from rigup.project import defaults; globals().update(defaults())\n",
    "inventory/lab.py": "from rigup.project import hosts; lab = hosts(__file__)\n",
}
DATA = [AUDIT, DEPLOY, FILES, REBUILD, RECIPES, ROOT / "tasks", TEMPLATES]
GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Ann",
    "GIT_AUTHOR_EMAIL": "ann@example.org",
    "GIT_COMMITTER_NAME": "Ann",
    "GIT_COMMITTER_EMAIL": "ann@example.org",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return installed(tmp_path_factory)


def contents(path: Path) -> dict[str, bytes]:
    """The content of a file, or of all files below a directory."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return {str(each.relative_to(path)): each.read_bytes() for each in files if "__pycache__" not in each.parts}


@pytest.mark.parametrize("data", DATA, ids=lambda path: path.name)
def test_a_wheel_has_every_data_file_of_the_checkout(wheel: Installed, data: Path) -> None:
    copy = wheel.site / "rigup" / "_data" / data.relative_to(ROOT)
    assert contents(copy) == contents(data) != {}


def test_a_wheel_adds_one_package_and_its_command(wheel: Installed) -> None:
    (record,) = wheel.site.glob("rigup-*.dist-info/RECORD")
    tops = {line.split("/")[0] for line in record.read_text().splitlines()}
    assert {top for top in tops if "dist-info" not in top} == {"..", "rigup"}


def test_the_classifiers_name_the_versions_of_python_that_the_wheel_is_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = {each.rpartition(" ")[2] for each in project["classifiers"] if each.startswith("Programming Language")}
    assert {"3.11", "3.12", "3.13"} <= versions
    assert project["requires-python"] == ">=3.11"


def test_the_catalog_and_the_templates_are_found_from_any_directory(wheel: Installed, tmp_path: Path) -> None:
    listed = wheel.run("rigup", "recipes", "--all", cwd=tmp_path).stdout
    shown = {line.split()[0] for line in listed.splitlines() if line.strip()}
    assert {path.stem for path in RECIPES.glob("*.yaml")} <= shown
    # A unit comes from a template.
    assert "ExecStart=" in wheel.run("rigup", "show", "vllm-nvfp4-cu130", "--as", "systemd", cwd=tmp_path).stdout


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    """A host that ssh's own configuration knows as `box` and as `other`."""
    (tmp_path / "sshd").mkdir()
    with running_sshd(tmp_path / "sshd") as server:
        (server.folder / ".ssh").mkdir()
        (server.folder / ".ssh/config").write_text(
            f"Host box other\nHostName {OWN_ADDRESS}\nPort {server.port}\nUser {getpass.getuser()}\n"
            f"IdentityFile {server.key}\nIdentitiesOnly yes\nUserKnownHostsFile {server.folder}/known_hosts\n"
        )
        server.environment = {**GIT, "HOME": str(server.folder), "PYINFRA_PROGRESS": "off"}
        yield server


@pytest.fixture
def project(sshd: Sshd, tmp_path: Path) -> Path:
    """A project for that host, as this version makes it."""
    directory = tmp_path / "project"
    for name, text in PROJECT.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    hosts = {name: {"address": name, "sudo": False} for name in ("box", "other")}
    (directory / "inventory/lab.yaml").write_text(yaml.safe_dump({"hosts": hosts}))
    return directory


def test_init_writes_these_files(wheel: Installed, sshd: Sshd, tmp_path: Path) -> None:
    said = wheel.run("rigup", "init", "new", "--host", "box=box", cwd=tmp_path, **sshd.environment).stdout
    assert "Next: cd new && rigup plan" in said
    assert {name: (tmp_path / "new" / name).read_text() for name in PROJECT} == PROJECT


def test_a_deploy_runs_the_installed_steps(wheel: Installed, sshd: Sshd, project: Path) -> None:
    # Refused before anything is asked: for a recipe that does not exist.
    deploy = ("--data", "recipe=vllm-nvfp4-cu131", "-y", "-v")
    refusal = "recipe: there is no recipe 'vllm-nvfp4-cu131': did you mean vllm-nvfp4-cu130"
    pyinfra = ("python", "-m", "pyinfra", "inventory/lab.py", "deploy.py")
    both = wheel.run(*pyinfra, *deploy, cwd=project, code=1, **sshd.environment).stderr
    assert f"box: {refusal}" in both and f"other: {refusal}" in both
    # As above, on one host.
    one = wheel.run("rigup", "deploy", "other", *deploy, cwd=project, code=1, **sshd.environment).stderr
    assert f"other: {refusal}" in one and "box" not in one


def test_a_plan_runs_them_too(wheel: Installed, sshd: Sshd, project: Path) -> None:
    (project / "inventory/lab.yaml").write_text(
        (project / "inventory/lab.yaml").read_text() + "defaults: {recipe: vllm-nvfp4-cu131}\n"
    )
    told = json.loads(wheel.run("rigup", "plan", "--json", cwd=project, code=1, **sshd.environment).stdout)
    assert "there is no recipe 'vllm-nvfp4-cu131'" in told["error"]


def test_a_rebuild_runs_on_each_host(wheel: Installed, sshd: Sshd, project: Path) -> None:
    rebuild = ("rigup", "rebuild", "box", "other", "--dry", "--data", "max_unavailable=2")
    said = wheel.run(*rebuild, cwd=project, **sshd.environment).stderr
    for host in ("box", "other"):
        assert f"{host} is already bare" in said


def test_an_audit_has_its_checks(wheel: Installed, sshd: Sshd, project: Path) -> None:
    lockfile.write(project / "inventory/lab.lock", lock())
    done = wheel.run("rigup", "audit", "box", "--step", "base", "--json", cwd=project, code=2, **sshd.environment)
    # This machine, where nothing is deployed.
    assert json.loads(done.stdout)["bare"] == ["box"]


def test_a_recipe_of_the_project_is_in_the_catalog(wheel: Installed, project: Path) -> None:
    text = (
        "id: ours\nextends: vllm-nvfp4-cu130\ntitle: Ours\nworkload: [chat]\nstatus: assembled\ntool_calls: unknown\n"
    )
    (project / "inventory/recipes").mkdir()
    (project / "inventory/recipes/ours.yaml").write_text(text + "evidence: [{source: us, kind: assembled, says: x}]\n")
    assert "\nours " in wheel.run("rigup", "recipes", cwd=project).stdout
