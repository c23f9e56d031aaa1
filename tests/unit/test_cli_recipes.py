"""`rigup recipes`, `check` and `show` as a person uses them."""

import re
from pathlib import Path

import pytest

from rigup.cli.main import main
from rigup.lock.lockfile import write
from tests.unit.sample import DIGEST, REPO, REVISION, lock


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(words) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_the_table_hides_what_is_superseded_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    short, full = said(capsys, "recipes"), said(capsys, "recipes", "--all")
    assert "vllm-nvfp4-chisleu" not in short and "vllm-nvfp4-chisleu" in full
    assert "are hidden; --all shows them" in short and "are hidden" not in full


def test_the_table_is_filtered(capsys: pytest.CaptureFixture[str]) -> None:
    table = said(capsys, "recipes", "--engine", "sglang", "--gpus", "4", "--status", "current")
    names = [line.split()[0] for line in table.splitlines()[1:]]
    assert names == ["sglang-awq-cu130", "sglang-nvfp4-b12x-nomtp", "sglang-nvfp4-b12x"]


def test_a_ranking_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    first = said(capsys, "recipes", "--for", "agents", "--gpus", "4").splitlines()[1]
    assert first.startswith("vllm-nvfp4-cu130 ") and "tool calls reliable" in first


def test_the_table_says_what_a_recipe_is_for_what_it_needs_and_how_fast_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    header, *rows = said(capsys, "recipes", "--gpus", "4", "--engine", "vllm").splitlines()
    assert re.split("  +", header) == ["recipe", "what for", "GPUs", "tok/s", "tool calls"]
    assert ["vllm-nvfp4-cu130", "agents, chat, code", "4", "64", "reliable"] in [re.split("  +", row) for row in rows]


def test_one_recipe_is_shown_with_its_sources_and_caveats(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "recipes", "vllm-nvfp4-chisleu")
    rows = [line.split("  ")[0] for line in text.splitlines()]
    assert rows[0] == "recipe" and {"title", "GPUs", "caveat", "source", "checkpoint"} <= set(rows)
    assert text.endswith("`rigup show vllm-nvfp4-chisleu` prints its command.\n")
    assert "did you mean vllm-nvfp4-cu130" in said(capsys, "recipes", "vllm-nvpf4-cu130", code=1)
    assert "a recipe's name and filters were given" in said(capsys, "recipes", "vllm-nvfp4-cu130", "--gpus=4", code=1)


@pytest.mark.parametrize("more", [["--model=none"], ["--for=benchmark", "--gpus=1"]])
def test_nothing_found_is_said_and_has_its_own_exit_code(capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    assert said(capsys, "recipes", *more, code=2) == "No recipe matches.\n"


def test_check_tells_what_it_judged(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "check", "vllm-nvfp4-cu130", "sglang-nvfp4-b12x")
    assert "vllm-nvfp4-cu130: arguments accepted by vllm 0.17.0, vllm 0.33.0" in text
    assert "sglang-nvfp4-b12x: arguments accepted by sglang 0.5.23 (fork voipmonitor)" in text
    assert text.endswith("2 recipes: no mistakes found\n")


def test_check_fails_where_something_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "check", "vllm-fp8-8gpu-mtp2", "--gpus", "4", code=1)
    assert "gpus: needs 8 GPUs, but there are 4" in text


def test_show_prints_a_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert "services:" in said(capsys, "show", "vllm-nvfp4-cu130", "--as", "compose")
    assert "did you mean vllm-nvfp4-cu130" in said(capsys, "show", "vllm-nvpf4-cu130", code=1)


OWN = """\
id: ours
title: Ours
extends: vllm-nvfp4-cu130
status: assembled
tool_calls: unknown
evidence: [{source: here, kind: assembled, says: a try}]
argv: {add: [--max-model-len=4096]}
"""


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An inventory with a lock and a recipe of its own beside it."""
    path = tmp_path / "lab.yaml"
    path.write_text("hosts: {rig1: {address: 192.0.2.1, recipe: ours}}\n")
    write(path.with_suffix(".lock"), lock())
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "ours.yaml").write_text(OWN)
    monkeypatch.setenv("RIGUP_INVENTORY", str(path))
    return path


def test_show_takes_digests_and_commits_from_the_lock_beside_an_inventory(
    capsys: pytest.CaptureFixture[str], inventory: Path
) -> None:
    text = said(capsys, "show", "vllm-nvfp4-cu130", "--as", "docker", "--inventory", str(inventory))
    assert f"vllm/vllm-openai@{DIGEST}" in text and f"/{REPO}/{REVISION}," in text
    assert "not in a lock" not in text
    without = said(capsys, "show", "vllm-nvfp4-cu130", "--as", "docker")
    assert "# the image is not in a lock" in without and DIGEST not in without


def test_recipes_of_ones_own_are_listed_judged_shown_and_extend_the_catalogs(
    capsys: pytest.CaptureFixture[str], inventory: Path
) -> None:
    assert "ours " in said(capsys, "recipes")
    assert "ours: arguments accepted by vllm 0.17.0, vllm 0.33.0" in said(capsys, "check", "ours")
    text = said(capsys, "show", "ours", "--explain", "--inventory", str(inventory))
    assert "# --max-model-len=4096  <- argv[7] ours.yaml:7" in text
    assert "# --tensor-parallel-size=4  <- parallel.tp vllm-nvfp4-cu130.yaml:" in text


def test_a_wrong_recipe_of_ones_own_is_told_with_its_file_and_line(
    capsys: pytest.CaptureFixture[str], inventory: Path
) -> None:
    file = inventory.parent / "recipes" / "ours.yaml"
    file.write_text(OWN.replace("--max-model-len", "--max-model-lenght"))
    text = said(capsys, "check", "ours", code=1)
    assert f"{file}:7: argv[7]: vllm 0.33.0 has no option --max-model-lenght: did you mean --max-model-len" in text
    file.write_text(OWN.replace("extends: vllm-nvfp4-cu130", "extends: vllm-nvfp4-cu13"))
    assert f"{file}:3: extends: there is no recipe" in said(capsys, "check", code=1)
