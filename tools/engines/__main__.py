"""Read a release of an engine from its wheel into `recipes/engines/`, and show what it changes.

    python -m tools.engines vllm 0.33.0

Maintainers run this when a recipe's version range reaches a new release; recipes are checked against its output. pip
downloads the wheel alone, without its dependencies, into a temporary directory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from rigup.catalog.engine_options import on_file
from tools.engines.compare import DIRECTORY, before, differences, read, refusals
from tools.engines.read_sglang import sglang
from tools.engines.read_vllm import vllm
from tools.engines.source import Wheel

HEADER = "# Written by `python -m tools.engines` from the released wheel; do not edit.\n"
READERS = {"vllm": vllm, "sglang": sglang}


def main() -> None:
    """Download or open the wheel, write its data, and print the differences and what it refuses."""
    parser = argparse.ArgumentParser(prog="python -m tools.engines", description="Bring a release into the catalog.")
    parser.add_argument("engine", choices=sorted(READERS))
    parser.add_argument("version", help="such as 0.33.0")
    parser.add_argument("--wheel", type=Path, help="its wheel, if it is already here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = write(given.wheel or download(given.engine, given.version, Path(directory)))
    print(f"wrote {path}")
    if older := before(given.engine, given.version):
        print(f"differences from {older.stem}:")
        for line in differences(read(older), read(path)):
            print(f"  {line}")
    print("recipes that it refuses:")
    for line in refusals(given.engine, path):
        print(f"  {line}")


def download(engine: str, version: str, directory: Path) -> Path:
    """Download the wheel of a release and return its path."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*pip, "--dest", str(directory), f"{engine}=={version}"], check=True)
    return next(directory.glob("*.whl"))


def write(wheel: Path) -> Path:
    """Write what the catalog keeps of a wheel, and return the file."""
    source = Wheel(wheel)
    data = READERS[source.name](source)
    options = {name: kind for name, kind in sorted(data["options"].items()) if name.startswith("-")}
    document = {"engine": source.name, "version": source.version, "wheel": wheel.name, **data, "options": options}
    path = DIRECTORY / f"{source.name}-{source.version}.yaml"
    path.write_text(HEADER + yaml.safe_dump(document, sort_keys=False, width=120, default_flow_style=None), "utf-8")
    on_file.cache_clear()
    return path


if __name__ == "__main__":
    main()
