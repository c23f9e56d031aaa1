"""`python -m tools.gpu_host DIR`: pack what is tried on a GPU host."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rigup.errors import RigupError
from tools.gpu_host.pack import Target, normalized, pack


def main() -> int:
    """Pack, and say how to go on."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_host", description="Pack a trial for a GPU host.")
    parser.add_argument("folder", type=Path, help="where to write the parts")
    parser.add_argument("--engine", default="0.25.1", help="the version of vLLM")
    parser.add_argument("--python", default=Target.python, help="the version of the GPU host's Python")
    parser.add_argument("--has", type=Path, help="what the GPU host has: the output of `pip freeze`, or a name a line")
    parser.add_argument("--omit", action="append", default=[], metavar="PATTERN", help="leave files out")
    parser.add_argument("--part-bytes", type=int, default=60_000_000, help="the size of a part")
    options = parser.parse_args()
    names = options.has.read_text().split("\n") if options.has else []
    target = Target(python=options.python, has={normalized(name.partition("=")[0]) for name in names if name.strip()})
    try:
        parts = pack(options.folder, options.engine, target, options.omit, options.part_bytes)
    except RigupError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(parts)} parts, {sum(part.stat().st_size for part in parts)} bytes, in {options.folder}")
    print("On the GPU host: cat part.* | tar xz -C ROOT && python3 ROOT/project/tools/gpu_host/host.py ROOT OUT")
    return 0


if __name__ == "__main__":
    sys.exit(main())
