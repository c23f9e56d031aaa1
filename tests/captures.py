"""Output of real tools on real machines, kept beside the checkout and not in it; tests skip where it is absent."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

CAPTURES = Path(os.environ.get("RIGUP_CAPTURES", Path(__file__).parent.parent.parent / "shared/captures"))


@dataclass(frozen=True)
class Recorded:
    """One command and what it did. `before` is the file it worked on, where the record tells one."""

    command: str
    stdout: str
    stderr: str
    status: int
    before: str | None = None


def capture(name: str) -> str:
    """The text of a capture; the test is skipped where there are none."""
    path = CAPTURES / name
    if not path.is_file():
        pytest.skip(f"no captures of real tools here: {path} is absent (RIGUP_CAPTURES names another folder)")
    return path.read_text(errors="replace")


def recorded(name: str) -> list[Recorded]:
    """The commands of a capture whose sections are `##### COMMAND`, output, `##### rc=N`."""
    commands: list[Recorded] = []
    before: str | None = None
    command, streams = "", {"stdout": "", "stderr": ""}
    stream = "stdout"
    for line in capture(name).splitlines(keepends=True):
        # A file that ends without a newline runs into the next section's head.
        rest, mark, head = line.rstrip("\n").partition("##### ")
        streams[stream] += rest if mark else line
        if not mark:
            continue
        if head.startswith("daemon.json before: "):
            before = head.removeprefix("daemon.json before: ")
        elif head == "stderr":
            stream = "stderr"
        elif match := re.fullmatch(r"rc=(\d+)", head):
            commands.append(Recorded(command, streams["stdout"], streams["stderr"], int(match[1]), before))
        else:
            command, streams, stream = head, {"stdout": "", "stderr": ""}, "stdout"
    return commands


def section(name: str, title: str) -> list[str]:
    """The lines below `##### TITLE` of a capture, up to the next such line."""
    lines = capture(name).splitlines()
    start = lines.index(f"##### {title}") + 1
    end = next((at for at, line in enumerate(lines[start:], start) if line.startswith("##### ")), len(lines))
    return lines[start:end]
