"""check_args.py: an engine's own parser checks a command line; where there is no engine, nothing is refused.

The real vLLM checks in the lab; here are modules that have what is asked of SGLang's and vLLM's, where those have it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.host_world import FILES

SGLANG = """
class ServerArgs:
    @staticmethod
    def add_cli_args(parser):
        parser.add_argument("--model-path", required=True)
        parser.add_argument("--tool-call-parser", choices=["qwen3_coder"])
"""
VLLM = {
    "vllm/entrypoints/cli/serve.py": """
class ServeSubcommand:
    def subparser_init(self, subparsers):
        parser = subparsers.add_parser("serve")
        for name in ("--model", "--tool-call-parser", "--reasoning-parser"):
            parser.add_argument(name)
        parser.add_argument("--enable-auto-tool-choice", action="store_true")
    def validate(self, parsed):
        if parsed.enable_auto_tool_choice and not parsed.tool_call_parser:
            raise TypeError("Error: --enable-auto-tool-choice requires --tool-call-parser")
""",
    "vllm/utils.py": "from argparse import ArgumentParser as FlexibleArgumentParser",
    "vllm/tool_parsers.py": "class ToolParserManager:\n    list_registered = staticmethod(lambda: ['qwen3_coder'])",
    "vllm/reasoning.py": "class ReasoningParserManager:\n    list_registered = staticmethod(lambda: ['qwen3'])",
}


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    for name, text in {**VLLM, "sglang/srt/server_args.py": SGLANG}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def check(modules: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(FILES / "check_args.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(modules)}
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.parametrize(
    "arguments",
    [
        ("sglang", "--model-path=/model", "--tool-call-parser=qwen3_coder"),
        ("vllm", "--model=/model", "--enable-auto-tool-choice", "--tool-call-parser=qwen3_coder"),
        ("vllm", "--model=/model", "--reasoning-parser=qwen3"),
    ],
)
def test_what_the_engine_takes_is_well(modules: Path, arguments: tuple[str, ...]) -> None:
    result = check(modules, *arguments)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sglang", "--model-path=/model", "--tool-call-parser=qwen35_coder"), "invalid choice: 'qwen35_coder'"),
        (("sglang", "--model-path=/model", "--no-such"), "unrecognized arguments: --no-such"),
        (("vllm", "--model=/model", "--no-such=1"), "unrecognized arguments: --no-such=1"),
        (("vllm", "--enable-auto-tool-choice"), "--enable-auto-tool-choice requires --tool-call-parser"),
        (("vllm", "--tool-call-parser=qwen35_coder"), "invalid tool call parser: qwen35_coder"),
        (("vllm", "--reasoning-parser=qwen35"), "invalid reasoning parser: qwen35"),
    ],
)
def test_what_the_engine_refuses_is_told_in_its_words(modules: Path, arguments: tuple[str, ...], said: str) -> None:
    result = check(modules, *arguments)
    assert result.returncode != 0
    assert said in result.stderr


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_engine_that_is_not_where_it_was_is_not_checked(tmp_path: Path, engine: str) -> None:
    result = check(tmp_path, engine, "--whatever")
    assert result.returncode == 0
    assert result.stdout.startswith("not checked: no ")


def test_a_parser_that_cannot_work_in_a_throwaway_container_refuses_nothing(modules: Path) -> None:
    path = modules / "sglang/srt/server_args.py"
    path.write_text("class ServerArgs:\n    def add_cli_args(parser):\n        raise RuntimeError('no GPU')")
    result = check(modules, "sglang", "--model-path=/model")
    assert (result.returncode, result.stdout) == (0, "not checked: RuntimeError: no GPU\n")
