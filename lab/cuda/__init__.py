"""What stands for CUDA in the lab's images and engines: `torch`, which only `check_cards.py` gets to see."""

from pathlib import Path

TORCH = Path(__file__).with_name("torch.py")
PLACE = "usr/local/lib/lab-cuda"
"""Its directory in an image."""


def path_line(directory: str) -> str:
    """Return the line of a `.pth` file that puts `directory`, a Python expression, first for `check_cards.py` alone."""
    return f"import os, sys; sys.path[:0] = [{directory}] * ('/check_cards.py' in ' '.join(sys.orig_argv))\n"


def image_files() -> dict[str, tuple[bytes, int]]:
    """Return its files in an image of Debian, and their modes."""
    line = path_line(repr(f"/{PLACE}")).encode()
    return {
        f"{PLACE}/torch.py": (TORCH.read_bytes(), 0o644),
        "usr/lib/python3/dist-packages/lab_cuda.pth": (line, 0o644),
    }
