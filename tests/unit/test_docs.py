"""What `tools/docs.py` generates from the code, and that the documentation builds and fetches nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
from mkdocs.exceptions import PluginError

from rigup.catalog.loader import default_catalog
from rigup.config.settings import Endpoint, Settings
from tools import docs, markdown

ROOT = Path(__file__).resolve().parents[2]


def build(source: Path, site: Path, more: str = "") -> subprocess.CompletedProcess[str]:
    """Build the pages in `source` with this project's configuration, and `more` of it."""
    config = site.with_suffix(".yml")
    hooks = f"hooks: [{ROOT / 'tools' / 'docs.py'}]"
    config.write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: {source}\n{hooks}\n{more}")
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", config, "--site-dir", site]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(argv, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("docs") / "site"
    done = build(ROOT / "docs", target)
    assert done.returncode == 0, done.stderr
    return target


def shown(page: Path) -> str:
    """The text of a built page, without markup."""
    article = page.read_text().partition("<article")[2].partition("</article>")[0]
    return unescape(re.sub(r"<[^>]+>", "", article))


def test_nothing_in_the_site_is_fetched_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        text = page.read_text()
        assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//[^"' >]+""", text), page
        # Material fetches the program that draws these from a CDN.
        assert 'class="mermaid"' not in text, page


def test_every_setting_is_on_the_settings_page(site: Path) -> None:
    text = shown(site / "reference/settings/index.html")
    for name in [*Settings.model_fields, *(f"endpoints.NAME.{key}" for key in Endpoint.model_fields)]:
        assert name in text, name


def test_every_recipe_has_a_page_with_all_that_it_says(site: Path) -> None:
    recipes = default_catalog().recipes
    table = (site / "reference/recipes/index.html").read_text()
    for name, recipe in recipes.items():
        assert f'href="{name}/"' in table
        text = " ".join(shown(site / f"reference/recipes/{name}/index.html").split())
        said = [recipe.title, *recipe.caveats, *recipe.argv, *(f"{key}={value}" for key, value in recipe.env.items())]
        said += [each for evidence in recipe.evidence for each in (evidence.source, evidence.says, *evidence.changed)]
        said += [*map(str, recipe.speeds), *recipe.findings, *recipe.findings.values()]
        model = default_catalog().model_of(recipe)
        said += model.traps if model else ()
        for each in said:
            # Spans of code have lost their backticks.
            assert " ".join(each.replace("`", "").split()) in text, (name, each)


def test_every_finding_about_a_recipe_is_listed_and_no_other() -> None:
    listed = re.findall(r"`(recipe-[a-z0-9-]+)`", (ROOT / "docs/reference/recipe-findings.md").read_text())
    code = "".join(path.read_text() for path in (ROOT / "rigup/catalog").glob("*.py"))
    assert sorted(listed) == sorted(set(re.findall(r'"(recipe-[a-z0-9-]+)"', code)))


def test_every_command_has_its_help_and_exit_codes(site: Path) -> None:
    text, codes = shown(site / "reference/commands/index.html"), shown(site / "reference/exit-codes/index.html")
    assert {"rigup plan", "rigup models", "rigup models rm"} <= set(docs.commands())
    for name in docs.commands():
        assert f"usage: {name}" in text
        assert name in codes


def test_every_check_of_the_audit_is_listed_with_its_step(site: Path) -> None:
    text = shown(site / "reference/checks/index.html")
    found = docs.audit_checks()
    assert sum(map(len, found.values())) > 60
    for step, checks in found.items():
        for name in checks:
            assert name.startswith(f"{step}-")
            assert name in text


def test_a_marker_that_nothing_stands_for_is_refused() -> None:
    assert "| `recipe` |" in docs.filled("<!-- generated: settings -->")
    with pytest.raises(PluginError, match="nothing is generated for <!-- generated: setings -->"):
        docs.filled("<!-- generated: setings -->")


@pytest.mark.parametrize(("link", "code"), [("index.md#title", 0), ("gone.md", 1), ("index.md#no-such-heading", 1)])
def test_a_broken_link_fails_the_build(link: str, code: int, tmp_path: Path) -> None:
    source = tmp_path / "pages"
    source.mkdir()
    (source / "index.md").write_text(f"# Title\n\n[a link]({link})\n")
    done = build(source, tmp_path / "site", "nav: [index.md]\nnot_in_nav: /reference/\n")
    assert done.returncode == code, done.stderr
    assert (link in done.stderr) == (code == 1)


def test_text_is_no_markup_but_for_its_spans_of_code() -> None:
    assert markdown.text("a|b *c* <d> [e]\n`f|*g*` h`") == r"a\|b \*c\* &lt;d&gt; \[e\] `f\|*g*` h\`"
