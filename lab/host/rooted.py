"""Paths inside another system's root directory, where a symbolic link to /etc/x means /etc/x of that root."""

from pathlib import Path, PurePosixPath

_LINKS_FOLLOWED = 40


def resolve(root: Path, name: str) -> Path:
    """Return the path under `root` of what that system calls `name`; follow symbolic links inside the root.

    The result need not exist. A loop of links resolves to one of them, which does not exist as a file.
    """
    pending = [part for part in PurePosixPath(name).parts if part != "/"][::-1]
    here: list[str] = []
    budget = _LINKS_FOLLOWED
    while pending:
        part = pending.pop()
        if part == "..":
            here = here[:-1]
            continue
        path = root.joinpath(*here, part)
        if path.is_symlink() and budget:
            budget -= 1
            target = PurePosixPath(path.readlink())
            if target.is_absolute():
                here = []
            pending.extend([piece for piece in target.parts if piece != "/"][::-1])
        else:
            here.append(part)
    return root.joinpath(*here)
