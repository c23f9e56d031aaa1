"""Build the lab's checkpoint: `nvidia/Qwen3.5-397B-A17B-NVFP4` in miniature, the same bytes every time."""

import hashlib
import shutil
import tempfile
from pathlib import Path

from lab.checkpoint.config import write_configs
from lab.checkpoint.tensors import write_shards
from lab.checkpoint.tokenizer import TEXT, write_tokenizer
from lab.settings import CACHE

REPOSITORY = "nvidia/Qwen3.5-397B-A17B-NVFP4"


def write_checkpoint(folder: Path, repaired: bool = False) -> None:
    """Write all files of the checkpoint into an existing empty folder; `repaired` as in `build_repaired`."""
    write_shards(folder)
    write_tokenizer(folder)
    write_configs(folder, repaired)
    shutil.copyfile(TEXT / "README.md", folder / "README.md")
    shutil.copyfile(TEXT / "gitattributes", folder / ".gitattributes")


def content_key() -> str:
    """Return 16 hex digits of a hash over this package's files, which names what they build."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted(path for path in here.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        digest.update(f"{path.relative_to(here)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def build() -> Path:
    """Return the folder with the checkpoint's files; build it if the cache lacks it."""
    return _build(content_key(), repaired=False)


def build_repaired() -> Path:
    """Return the same as a later export: the ignore list contains the routers and `mtp.fc`."""
    return _build(f"{content_key()}-repaired", repaired=True)


def _build(name: str, repaired: bool) -> Path:
    folder = CACHE / "checkpoint" / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
            made = Path(beside) / "made"
            made.mkdir()
            write_checkpoint(made, repaired)
            try:
                made.rename(folder)
            except OSError:
                # Another process has built the same folder meanwhile; it is complete.
                if not folder.exists():
                    raise
    return folder
