"""A deploy file is no module to Python; `inspect` shall find it all the same, and at once."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rigup.quick import as_module


@pytest.fixture
def deploy_file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "deploy.py"
    path.write_text("import inspect\n\n\ndef here():\n    return inspect.currentframe()\n")
    before = set(sys.modules)
    yield path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_frame_of_a_deploy_file_belongs_to_a_module(deploy_file: Path) -> None:
    names: dict[str, object] = {"__file__": str(deploy_file)}
    # As pyinfra runs it.
    exec(compile(deploy_file.read_text(), str(deploy_file), "exec"), names)
    here = names["here"]
    assert callable(here)
    assert inspect.getmodule(here()) is None
    as_module(str(deploy_file))
    found = inspect.getmodule(here())
    assert found and found.__file__ == str(deploy_file)
