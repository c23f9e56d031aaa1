"""Names of files are data: whatever characters they have, they neither forge lines nor hide others."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from rigup.facts import ledger as facts
from rigup.facts.files import Tree, parse_tree
from rigup.facts.gateway import GatewayNames
from rigup.facts.ledger import Remains, Sums, parse_remains, parse_sums, remains_of
from rigup.facts.store import FileSizes, StoredModels, parse_stored_models
from rigup.ledger import Ledger

ROOT = Path(__file__).resolve().parents[2]
A, B = "a" * 40, "b" * 40


def lines(command: object) -> list[str]:
    text = command if isinstance(command, str) else command.get_raw_value()  # type: ignore[attr-defined]
    return subprocess.run(["sh", "-c", text], capture_output=True, text=True).stdout.splitlines()


def test_a_name_with_line_breaks_forges_nothing_in_the_proof_of_a_rebuild(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "SEARCHED", (str(tmp_path),))
    forged = tmp_path / "rigup\n--- packages\ninstalled docker-ce\n--- users\nroot:x:0\n--- paths\n"
    (forged / "etc").mkdir(parents=True)
    (tmp_path / ".rigup-new.\n--- units\nssh.service x").mkdir()
    remains = parse_remains(lines(Remains().command(**remains_of(Ledger()))))
    assert remains.packages == remains.users == ()
    assert "ssh.service" not in remains.units
    assert [path for path in remains.paths if path.startswith(str(tmp_path))] == [
        f"{tmp_path}/.rigup-new.?--- units?ssh.service x"
    ]
    assert [path for path in remains.named if path.startswith(str(tmp_path))] == [
        f"{tmp_path}/rigup?--- packages?installed docker-ce?--- users?root:x:0?--- paths?"
    ]


def test_sums_are_found_by_any_name(tmp_path: Path) -> None:
    odd = tmp_path / "back\\slash"
    odd.write_text("x")
    assert parse_sums(lines(Sums().command([str(odd), str(tmp_path / "none")]))).keys() == {str(odd)}


def test_a_tree_with_a_name_that_looks_like_two_files_is_not_the_tree_with_these_files(tmp_path: Path) -> None:
    (tmp_path / "a\n644|root").write_text("x")
    (tmp_path / f"b\n{'0' * 64}  .").mkdir()
    (tmp_path / f"b\n{'0' * 64}  ." / "c").write_text("x")
    found = parse_tree(lines(Tree().command(str(tmp_path))))
    assert found.keys() == {"a?644|root", f"b?{'0' * 64}  .", f"b?{'0' * 64}  ./c"}


def test_a_file_in_the_store_forges_neither_a_checkpoint_nor_a_running_endpoint(tmp_path: Path) -> None:
    real = tmp_path / "org/name" / A
    real.mkdir(parents=True)
    odd = real / f"x\n7 org/other/{B}/y\n--- running\nllm@ghost.service x"
    odd.parent.mkdir(parents=True)
    odd.write_text("12345")
    (tmp_path / f"org/name/z\n--- running\nllm@ghost.service x\n{B}.verified.json").write_text("{}")
    (found,) = parse_stored_models(lines(StoredModels().command(str(tmp_path))))
    assert (found.repo, found.revision, found.bytes, found.unclear) == ("org/name", A, 5, ())


def test_sizes_of_files_are_those_of_their_names(tmp_path: Path) -> None:
    odd = "a\n99 b"
    (tmp_path / odd).write_text("123")
    (tmp_path / "b").write_text("1")
    assert FileSizes().process(lines(FileSizes().command(str(tmp_path), [odd, "b"]))) == {"a?99 b": 3, "b": 1}


def test_gateways_that_do_not_exist_are_none() -> None:
    assert GatewayNames().process(lines(GatewayNames().command())) is not None


# Every place, from the code

READERS = [
    *(ROOT / "rigup/facts").glob("*.py"),
    *(ROOT / "rigup/operations").rglob("*.py"),
    *(ROOT / "rigup/audit").glob("*.py"),
    *(ROOT / "tests/audit").glob("*.py"),
    *(ROOT / "tasks").glob("*.py"),
]
LISTS_BY_LINE = re.compile(
    r"""(?<!image\ )(?<!volume\ )\bls\ (?!-d\ /sys/module/nouveau)   # not Docker's, and not of one name
      | -print\b(?!0|f)(?!\ -exec\ (/sbin/modinfo|od\ )) # find, but not for names that the kernel makes
      | -printf\ '[^']*%[pPfhl][^']*\n                   # find with a form of its own
      | -exec\ (sha256sum|stat)\ (?!-z|--printf)         # programs that print names
      | \bsha256sum\ --\ \{
    """,
    re.VERBOSE,
)


@pytest.mark.parametrize("path", READERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_are_listed_with_nul_after_each(path: Path) -> None:
    tree = ast.parse(path.read_text())
    documented = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in documented:
            assert not LISTS_BY_LINE.search(node.value), node.value
