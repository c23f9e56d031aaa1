"""`rigup recipes`, `check` and `show` as a person uses them."""

import pytest

from rigup.cli import main


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(words) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_the_table_hides_what_is_superseded_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    short, full = said(capsys, "recipes"), said(capsys, "recipes", "--all")
    assert "vllm-nvfp4-chisleu" not in short and "vllm-nvfp4-chisleu" in full
    assert "are not shown: --all" in short and "are not shown" not in full


def test_the_table_is_filtered(capsys: pytest.CaptureFixture[str]) -> None:
    table = said(capsys, "recipes", "--engine", "sglang", "--gpus", "4", "--status", "current")
    names = [line.split()[0] for line in table.splitlines()[2:]]
    assert names == ["sglang-awq-cu130", "sglang-nvfp4-b12x-nomtp", "sglang-nvfp4-b12x"]


def test_a_ranking_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    first = said(capsys, "recipes", "--for", "agents", "--gpus", "4").splitlines()[2]
    assert first.startswith("vllm-nvfp4-cu130 ") and "tool calls reliable" in first


def test_check_tells_what_it_judged(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "check", "vllm-nvfp4-cu130", "sglang-nvfp4-b12x")
    assert "vllm-nvfp4-cu130: arguments known to vllm 0.33.0" in text
    assert "sglang-nvfp4-b12x: arguments known to sglang 0.5.23 as voipmonitor builds it" in text
    assert text.endswith("2 recipes: nothing found\n")


def test_check_fails_where_something_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "check", "vllm-fp8-8gpu-mtp2", "--gpus", "4", code=1)
    assert "gpus: needs 8 GPUs where 4 are" in text


def test_show_prints_a_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert "services:" in said(capsys, "show", "vllm-nvfp4-cu130", "--as", "compose")
    assert "did you mean vllm-nvfp4-cu130" in said(capsys, "show", "vllm-nvpf4-cu130", code=1)
