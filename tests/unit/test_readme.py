"""The README says what the project does, on few enough lines that people read it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rigup.distros.table import DISTROS
from tools import docs

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
STEPS = docs.steps()
# What pyinfra says of a host when it begins, and when the host is back.
PYINFRAS_OWN = {"Connected", "Ready: deploy.py"}


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_diagram_has_the_steps_in_their_order() -> None:
    diagram = README.partition("```mermaid\n")[2].partition("```")[0]
    chains = [re.findall(r"\w+", line) for line in diagram.splitlines() if "-->" in line]
    shown = [step for chain in chains for step in chain]
    # The last step of a line begins the next one.
    assert tuple(dict.fromkeys(shown)) == STEPS


def test_the_documentation_has_the_steps_in_their_order() -> None:
    table = (ROOT / "docs/steps.md").read_text().partition("| step | end state |\n|---|---|\n")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"^\| (\w+) \|", table, re.MULTILINE)) == STEPS


def test_the_readme_names_every_distribution_and_command() -> None:
    for distro in DISTROS.values():
        assert distro.name in README
    table = README.partition("## Commands\n")[2].partition("\n## ")[0]
    told = set(re.findall(r"`(rigup [\w-]+)`", table))
    assert told == {" ".join(name.split()[:2]) for name in docs.commands()}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_within_the_repository_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text())
    assert not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.parametrize(
    ("file", "command"),
    [("README.md", "$ pyinfra inventory/lab.py deploy.py -y\n"), ("docs/guides/first-hour.md", "$ rigup deploy\n")],
)
def test_every_operation_in_a_transcript_is_one_of_the_deploy(file: str, command: str) -> None:
    texts = "".join(path.read_text() for path in (ROOT / "tasks").glob("*.py"))
    names = re.findall(r'\bname=f?"((?:[^"\\]|\\.)+)"', texts)
    patterns = [re.sub(r"\\\{.*?\\\}", ".+", re.escape(name)) for name in names]
    transcript = (ROOT / file).read_text().partition(command)[2].partition("rigup: done")[0]
    shown = re.findall(r"^    \[rig1\] (\S.*)", transcript, re.MULTILINE)
    assert len(shown) > 10
    gone = [each for each in shown if not any(re.fullmatch(pattern, each) for pattern in patterns)]
    assert set(gone) <= PYINFRAS_OWN


def test_what_the_readme_has_a_newcomer_type_is_typed_in_the_recorded_first_hour() -> None:
    block = README.partition("## Your own machines\n")[2].partition("\n\nPython 3.11")[0]
    lines = [line.partition("#")[0].strip() for line in block.splitlines()]
    # The first line is for a checkout.
    ours = [line for line in lines if line][1:]
    assert ours[0].startswith("uv tool install ") and "rigup deploy" in ours
    page = (ROOT / "docs/guides/first-hour.md").read_text()
    typed = [line.removeprefix("$ ") for line in page.splitlines() if line.startswith("$ ")]
    rest = iter(typed)
    assert [line for line in ours if line not in rest] == []
