"""Whatever a person writes into a YAML file gets the file, the line and a remedy, at once."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rigup.catalog.loader import load_catalog
from rigup.config.inventory import load_inventory
from rigup.config.yaml_file import MAX_BYTES, read_document
from rigup.errors import InputError, RigupError
from rigup.lock import lockfile

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{','.join([f'*{before}'] * 10)}]}}\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
WAIVER = "hosts:\n  rig1:\n    address: 10.0.0.1\n    waivers:\n      base-x: {{reason: r, until: {}}}\n"

# What is written, the line that is named, and words of the message.
ODD = {
    "a day that does not exist": (WAIVER.format("2027-02-30"), 5, "'2027-02-30' is not a valid timestamp"),
    "a month that does not exist": ("hosts: 2027-13-01\n", 1, "is not a valid timestamp"),
    "such a day as a key": ("hosts:\n  2027-02-30: {}\n", 2, "is a key that YAML reads as a date"),
    "a time that does not exist": ("hosts:\n  a: 2027-02-03 25:00:00\n", 2, "is not a valid timestamp"),
    "an alias of itself": ("hosts: &a\n  rig1: *a\n", 1, "is an alias that contains itself"),
    "a list in itself": ("hosts: &a [*a]\n", 1, "is an alias that contains itself"),
    "an alias bomb": (BOMB, None, "aliases repeat more than"),
    "a bomb of merges": (MERGES, None, "aliases repeat more than"),
    "a list as a key": ("hosts:\n  ? [a]\n  : b\n", 2, "has a key that is not text"),
    "a bomb as a key": (BOMB + "? *j\n: b\n", None, ""),
    "a number without end": (f"hosts: {'9' * 5000}\n", 1, "is not a valid int"),
    "half a number": ("hosts: !!int x\n", 1, "is not a valid int"),
    "a tag of Python": ("hosts: !!python/object:os.system x\n", 1, "has the tag python/object:os.system"),
    "depth": ("hosts: " + "[" * 100_000, 1, "is nested more than"),
    "depth in lines": ("\n".join(" " * at + "a:" for at in range(1900)), 65, "is nested more than"),
    "control characters": ("hosts: \x00\n", 1, "has the control character U+0000"),
    "no YAML": ("hosts: [\n", 1, "has a [ that is not closed"),
    "nothing but size": ("#" * (MAX_BYTES + 1), None, f"has more than {MAX_BYTES} bytes"),
}


@pytest.mark.parametrize(("text", "line", "words"), ODD.values(), ids=ODD)
def test_the_mistake_is_named_with_its_line_at_once(tmp_path: Path, text: str, line: int | None, words: str) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(text)
    for read in (load_inventory, lockfile.read, lambda path: load_catalog(path.parent)):
        began = time.process_time()
        with pytest.raises(RigupError) as caught:
            read(path)
        assert time.process_time() - began < 5
        if read is load_inventory:
            assert f"{path}:{line}:" in str(caught.value) if line else str(path) in str(caught.value)
            assert words in str(caught.value)
            assert len(str(caught.value)) < 10_000


def test_anchors_and_merges_stay_possible(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("base: &base {a: 1, b: [1]}\none: {<<: *base, c: 2}\ntwo: *base\n")
    assert read_document(path).data == {
        "base": {"a": 1, "b": [1]}, "one": {"a": 1, "b": [1], "c": 2}, "two": {"a": 1, "b": [1]},
    }  # fmt: skip


WORDS = ["hosts", ":", " ", "\n", "- ", "[", "]", "{", "}", "&a ", "*a", "<<: ", "? ", "2027-02-30", "!!", "int ", "'",
         "~", "|\n", ",", "0x", ".nan", "\t", "#", "---\n", "..."]  # fmt: skip


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=12))
def test_no_text_ends_in_another_error(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes("".join(parts).encode("utf-8", errors="surrogatepass"))
    try:
        read_document(path)
    except InputError:
        return


def test_no_other_module_reads_yaml_of_a_person() -> None:
    """`diagnosis`, `engine_options` and `parsers` read files of ours, `clients` those of other programs."""
    root = Path(__file__).parents[2] / "rigup"
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith(("yaml.load", "yaml.safe_load")):
                ours = path.parent.name in ("diagnosis", "clients") or path.name in ("engine_options.py", "parsers.py")
                assert ours, path
