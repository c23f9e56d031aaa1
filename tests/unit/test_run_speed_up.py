"""What a run is spared, without anybody noticing but the clock."""

from __future__ import annotations

import gc
import inspect
import linecache
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyinfra.api import arguments, util

import rigup
from rigup.run.speed_up import speed_up

DEPLOY = (
    "import pyinfra.api.util as util\n\n\ndef order(state):\n    return util.get_operation_order_from_stack(state)\n"
)


@pytest.fixture
def spared() -> Iterator[Callable[[], None]]:
    """Begins to spare; all is as before after the test."""
    before = (util.stack, util.getframeinfo, arguments.all_global_arguments, gc.get_threshold())  # type: ignore[attr-defined]
    yield speed_up
    util.stack, util.getframeinfo, arguments.all_global_arguments = before[:3]  # type: ignore[attr-defined]
    gc.set_threshold(*before[3])


def test_operations_keep_their_order_and_no_source_is_read_for_it(tmp_path: Path, spared: Callable[[], None]) -> None:
    path = str(tmp_path / "deploy.py")
    Path(path).write_text(DEPLOY)
    names: dict[str, object] = {"__file__": path}
    # As pyinfra runs it.
    exec(compile(DEPLOY, path, "exec"), names)
    order = names["order"]
    assert callable(order)
    state = SimpleNamespace(current_deploy_filename=path, current_op_file_number=0)
    before, read_before = order(state), path in linecache.cache
    spared()
    linecache.clearcache()
    assert order(state) == before == [5]
    assert (read_before, path in linecache.cache) == (True, False)


def test_the_arguments_of_operations_are_the_same_and_worked_out_once(spared: Callable[[], None]) -> None:
    before = arguments.all_global_arguments()
    spared()
    assert arguments.all_global_arguments() == before
    assert arguments.all_global_arguments() is arguments.all_global_arguments()


@pytest.mark.parametrize(("flags", "writes"), [([], True), (["-B"], False)])
def test_modules_are_kept_compiled_where_python_was_not_told_otherwise(flags: list[str], writes: bool) -> None:
    """pyinfra turns it off for all that is imported after it."""
    code = "import sys; sys.dont_write_bytecode = True; import rigup; print(not sys.dont_write_bytecode)"
    argv = [sys.executable, "-E", *flags, "-c", code]
    root = Path(inspect.getfile(rigup)).parent.parent
    assert subprocess.run(argv, capture_output=True, text=True, check=True, cwd=root).stdout == f"{writes}\n"


def test_who_resolves_nothing_reads_no_http_client() -> None:
    code = "import sys, rigup.lock.resolve; print([name for name in ('httpx', 'rich') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
