"""What serving depends on: a verified checkpoint, and what was verified on this host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.facts import FactBase

from rigup.facts.reading import Value, read_object, reading
from rigup.paths import HOST_PROGRAM

SIZES, ARRIVING, MACHINE = "--- sizes", "--- arriving", "--- machine"
STATE = "--- state"


@dataclass(frozen=True)
class ModelStampValue(Value):
    """The stamp next to a checkpoint (`repo`, `revision`, `files`, `bytes`), and the files that are present now.

    `newest` is when a file was last written, in nanoseconds; `machine` and `present_machine` are machine IDs.
    `arriving_bytes` is the size of an unfinished download. `revision` is empty if there is no stamp.
    """

    repo: str = ""
    revision: str = ""
    files: int = 0
    bytes: int = 0
    verified_at: str = ""
    newest: int = 0
    machine: str = ""
    present_files: int = 0
    present_bytes: int = 0
    present_newest: int = 0
    present_machine: str = ""
    arriving_bytes: int = 0

    @property
    def complete(self) -> bool:
        """Whether this installation verified it, and files, bytes and times are the same since."""
        stamped = (self.files, self.bytes, self.newest, self.machine)
        present = (self.present_files, self.present_bytes, self.present_newest, self.present_machine)
        return bool(self.revision) and stamped == present


@dataclass(frozen=True)
class VerificationValue(Value):
    """`record` is what the verification wrote last (empty: nothing), `invocation` the unit's present invocation."""

    record: Mapping[str, Any] = field(default_factory=dict)
    invocation: str = ""

    @property
    def passed_since_start(self) -> bool:
        """Whether all checks passed since the unit was started."""
        invocation = self.record.get("invocation")
        return bool(self.record.get("passed") and self.invocation and invocation == self.invocation)

    def holds(self, digest: str) -> bool:
        """Return whether they passed for this `digest` as well."""
        return self.passed_since_start and self.record.get("digest") == digest


def parse_model_stamp(lines: list[str]) -> ModelStampValue:
    """Parse the stamp's JSON, and after separators the size and time of each file, the KiB of each arriving file, and
    the machine ID."""
    ends = [lines.index(mark) for mark in (SIZES, ARRIVING, MACHINE)]
    stamp = read_object("\n".join(lines[: ends[0]]))
    files = [line.split() for line in lines[ends[0] + 1 : ends[1]]]
    return ModelStampValue(
        repo=str(stamp.get("repo", "")),
        revision=str(stamp.get("revision", "")),
        files=int(stamp.get("files", 0)),
        bytes=int(stamp.get("bytes", 0)),
        verified_at=str(stamp.get("verified_at", "")),
        newest=int(stamp.get("newest", 0)),
        machine=str(stamp.get("machine", "")),
        present_files=len(files),
        present_bytes=sum(int(size) for size, _ in files),
        present_newest=max((_nanoseconds(time) for _, time in files), default=0),
        present_machine="".join(lines[ends[2] + 1 :]).strip(),
        arriving_bytes=sum(int(size) * 1024 for size in lines[ends[1] + 1 : ends[2]]),
    )


def _nanoseconds(time: str) -> int:
    """Convert seconds as find(1) prints them, with ten decimal places."""
    seconds, _, fraction = time.partition(".")
    return int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, "0"))


def parse_verification(lines: list[str]) -> VerificationValue:
    """Parse the JSON of the verification, a separator, and the invocation ID."""
    split = lines.index(STATE)
    text = "\n".join(lines[:split])
    return VerificationValue(read_object(text), "".join(lines[split + 1 :]).strip())


@dataclass(frozen=True)
class LoadValue(Value):
    """What an endpoint said of itself. None: it does not say that, or does not answer.

    `health` is the HTTP status of its health check, 0 without an answer. `tokens_per_s` is of generated tokens,
    `kv_cache` the used share of the cache from 0 to 1, `last_start_s` how many seconds its last start took.
    """

    health: int = 0
    tokens_per_s: float | None = None
    running: int | None = None
    waiting: int | None = None
    kv_cache: float | None = None
    last_start_s: int | None = None


def parse_loads(lines: list[str]) -> dict[str, LoadValue]:
    """Parse what `rigup-host load` prints, by endpoint."""
    return {name: LoadValue(**load) for name, load in read_object("\n".join(lines)).items()}


class Loads(FactBase[dict[str, LoadValue]]):
    """What each endpoint with files on the host says of itself; empty if the host has no such program yet."""

    @staticmethod
    def default() -> dict[str, LoadValue]:
        return {}

    def command(self) -> str:
        return f"{HOST_PROGRAM} load 2>/dev/null || true"

    @reading
    def process(self, output: list[str]) -> dict[str, LoadValue]:
        return parse_loads(output)


class ModelStamp(FactBase[ModelStampValue]):
    """The stamp of the checkpoint in the directory `path`, stored next to it, and the files that are present."""

    @staticmethod
    def default() -> ModelStampValue:
        return ModelStampValue()

    def command(self, path: str) -> StringCommand:
        return StringCommand(
            "cat --",
            QuoteString(stamp_path(path)),
            f"2>/dev/null; echo; echo '{SIZES}'; find",
            QuoteString(path),
            f"-type f -printf '%s %T@\\n' 2>/dev/null; echo '{ARRIVING}'; find",
            QuoteString(incoming_path(path)),
            f"-type f -printf '%k\\n' 2>/dev/null; echo '{MACHINE}'; cat /etc/machine-id 2>/dev/null || true",
        )

    @reading
    def process(self, output: list[str]) -> ModelStampValue:
        return parse_model_stamp(output)


def stamp_path(path: str) -> str:
    """Return the path of a checkpoint's stamp: outside its directory `path`, which has exactly the published files."""
    return f"{path.rstrip('/')}.verified.json"


def shared_path(path: str) -> str:
    """Return the file that tells peers which files of the checkpoint directory `path` they can copy."""
    return f"{path.rstrip('/')}.shared.json"


def incoming_path(path: str) -> str:
    """Return the directory that holds the files of the checkpoint directory `path` until all are complete."""
    parent, _, name = path.rstrip("/").rpartition("/")
    return f"{parent}/.{name}.incoming"


class Verification(FactBase[VerificationValue]):
    """The verification in the file `path`, and the present invocation of `unit`, which it must have been made for."""

    @staticmethod
    def default() -> VerificationValue:
        return VerificationValue()

    def command(self, path: str, unit: str) -> StringCommand:
        return StringCommand(
            "cat --",
            QuoteString(path),
            f"2>/dev/null; echo; echo '{STATE}'; systemctl show --value --property=InvocationID --",
            QuoteString(unit),
            "2>/dev/null || true",
        )

    @reading
    def process(self, output: list[str]) -> VerificationValue:
        return parse_verification(output)
