"""How a running mirror tells what code it was started from."""

import hashlib
from pathlib import Path


def greeting() -> str:
    """What a server made of the present code says at `/`; one that says something else is outdated."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))
    return f"the lab's mirror {digest.hexdigest()[:16]}"
