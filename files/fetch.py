#!/usr/bin/env python3
"""Brings one commit of a checkpoint from the hub to the disk, verifies every byte, and says so in a stamp beside it.

The download goes into a directory beside the final one. Only when `hf cache verify` finds every file as published is it
renamed into place, without the client's own notes, and then the stamp is written. So the final directory holds either
nothing or exactly what was published, and the stamp is never earlier than the bytes it speaks of.

Started again, it goes on: whole files are kept. Files that fail the verification are fetched again, the others not.

The request is a JSON file: endpoint, repo, revision (40 hex digits), dest, bytes, files, venv. A hub token may stand in
the environment as HF_TOKEN; it is never printed.

Exit status: 0 complete, 1 given up after tries without progress, 2 trying again cannot help.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

REVISION = re.compile(r"[0-9a-f]{40}")
MISMATCH = re.compile(r"  - (.+): expected [0-9a-f]+ \([a-z0-9-]+\), got [0-9a-f]+")
# What the hub's client (cli/_errors.py) and the system say when no second try can help, and what to do about it.
HOPELESS = {
    "If the repo is private": "the hub has no such repository, or it is private: check the name and the token",
    "Revision not found in": "the hub has no such commit: `rigup update` resolves it anew",
    "requires approval": "the hub wants its terms accepted first: do that on its site, with the account of the token",
    "Invalid user token": "the hub refuses the token",
    "No space left on device": "the disk is full: make room or choose another model_store",
    "Permission denied": "the downloader may not write there: check who owns the directory",
}
CLIENT_NOTES = Path(".cache") / "huggingface"
TRIES = 6
VERIFICATIONS = 3
POLL_S = 2.0


class Hopeless(Exception):
    """Trying again cannot help."""


class Setback(Exception):
    """This try failed; another may not."""


@dataclass(frozen=True)
class Request:
    """What to fetch, and where to."""

    endpoint: str
    repo: str
    revision: str
    dest: Path
    bytes: int
    files: int
    venv: Path

    @property
    def staging(self) -> Path:
        return self.dest.parent / f".{self.dest.name}.incoming"

    @property
    def stamp(self) -> Path:
        return self.dest.parent / f"{self.dest.name}.verified.json"

    @classmethod
    def read(cls, path: Path) -> Request:
        """Raises Hopeless for a request that makes no sense."""
        try:
            data = json.loads(path.read_text())
            request = cls(
                endpoint=str(data["endpoint"]),
                repo=str(data["repo"]),
                revision=str(data["revision"]),
                dest=Path(data["dest"]),
                bytes=int(data.get("bytes", 0)),
                files=int(data.get("files", 0)),
                venv=Path(data["venv"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Hopeless(f"{path} is no request: {type(error).__name__}: {error}") from error
        if not REVISION.fullmatch(request.revision):
            raise Hopeless(f"{path}: revision {request.revision!r} is no commit of 40 hex digits")
        if not request.dest.is_absolute() or request.dest == Path(request.dest.anchor):
            raise Hopeless(f"{path}: dest {data['dest']!r} is no absolute directory")
        return request


@dataclass
class Findings:
    """What `hf cache verify` complained of: paths inside the checkpoint."""

    wrong: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{label}: {', '.join(paths)}" for label, paths in vars(self).items() if paths]
        return "; ".join(parts)


class Progress:
    """One small JSON file that says how far it is, for whoever waits."""

    def __init__(self, path: Path | None, request: Request) -> None:
        self.path = path
        self.request = request

    def tell(self, step: str, done: int) -> None:
        if self.path is None:
            return
        told = {"step": step, "bytes_done": done, "bytes_total": self.request.bytes, "at": now()}
        write(self.path, json.dumps(told) + "\n")


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    os.umask(0o022)
    try:
        request = Request.read(options.request)
        fetch(request, Progress(options.progress, request), options.pause)
    except (Hopeless, Setback) as error:
        print(f"failed: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, Hopeless) else 1
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fetch and verify one commit of a checkpoint.")
    parser.add_argument("request", type=Path, help="JSON file that says what to fetch")
    parser.add_argument("--progress", type=Path, help="where to say how far it is")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds before the second try; doubled each time")
    return parser.parse_args(argv)


def fetch(request: Request, progress: Progress, pause: float) -> None:
    """Make the checkpoint complete. Raises Hopeless or Setback."""
    if is_stamped(request):
        say(f"{request.repo} at {request.revision} is complete and verified already")
        return
    if request.dest.is_dir():
        # A run that was stopped before the stamp, or a file that was lost since: all of it is looked at anew.
        request.stamp.unlink(missing_ok=True)
        progress.tell("verifying", tree(request.dest)[1])
        findings = verify(request, request.dest)
        if findings is None:
            stamp(request)
            return
        say(f"{request.dest} is not as published ({findings}); fetching what differs")
        shutil.rmtree(request.staging, ignore_errors=True)
        request.dest.rename(request.staging)
        discard(request, findings)
    download_until_verified(request, progress, pause)
    publish(request)
    stamp(request)


def download_until_verified(request: Request, progress: Progress, pause: float) -> None:
    """Fill the staging directory until it verifies. A try that brought new bytes does not count against the limit."""
    tries = verifications = 0
    best = 0
    while True:
        try:
            download(request, progress)
            progress.tell("verifying", tree(request.staging)[1])
            findings = verify(request, request.staging)
            if findings is None:
                return
            verifications += 1
            if verifications >= VERIFICATIONS:
                raise Hopeless(f"after {VERIFICATIONS} downloads still not as published: {findings}")
            say(f"not as published ({findings}); fetching these again")
            discard(request, findings)
        except Setback as error:
            done = tree(request.staging)[1]
            tries = 1 if done > best else tries + 1
            best = max(best, done)
            if tries >= TRIES:
                raise Setback(f"{TRIES} tries without progress, the last: {error}") from error
            wait = min(300.0, pause * 2 ** (tries - 1))
            say(f"{error}; next try in {wait:.0f} s")
            progress.tell("waiting before the next try", done)
            time.sleep(wait)


def download(request: Request, progress: Progress) -> None:
    """One run of `hf download`, watched. Raises Setback, or Hopeless where its complaint says so."""
    request.staging.mkdir(parents=True, exist_ok=True)
    say(f"downloading {request.repo} at {request.revision} from {request.endpoint}")
    arguments = ["download", request.repo, "--revision", request.revision, "--local-dir", str(request.staging)]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(client(request, arguments), stdout=output, stderr=output, env=environment(request))
        try:
            while process.poll() is None:
                progress.tell("downloading", tree(request.staging)[1])
                try:
                    process.wait(POLL_S)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                process.kill()
        output.seek(0)
        said = output.read()
    progress.tell("downloading", tree(request.staging)[1])
    if process.returncode:
        raise complaint("hf download", process.returncode, said)


def verify(request: Request, directory: Path) -> Findings | None:
    """None when every file is as published and there is no other; raises Setback when that cannot be told."""
    say(f"verifying {directory}")
    arguments = ["cache", "verify", request.repo, "--revision", request.revision, "--local-dir", str(directory)]
    arguments += ["--fail-on-missing-files", "--fail-on-extra-files", "--format", "human"]
    answer = subprocess.run(client(request, arguments), capture_output=True, text=True, env=environment(request))
    if answer.returncode == 0:
        return None
    findings = parse_findings(answer.stdout)
    if not str(findings):
        raise complaint("hf cache verify", answer.returncode, answer.stdout + answer.stderr)
    return findings


def parse_findings(text: str) -> Findings:
    """The paths under the three headings of `hf cache verify`."""
    findings = Findings()
    into: list[str] | None = None
    for line in text.splitlines():
        if "Checksum verification failed" in line:
            into = findings.wrong
        elif "Missing files" in line:
            into = findings.missing
        elif "Extra files" in line:
            into = findings.extra
        elif line.startswith("  - ") and into is not None:
            match = MISMATCH.fullmatch(line)
            into.append(match[1] if match and into is findings.wrong else line[4:])
    return findings


def discard(request: Request, findings: Findings) -> None:
    """Remove what is wrong or foreign, and the client's notes on it: by these it would take the file for whole."""
    for path in (*findings.wrong, *findings.extra):
        (request.staging / path).unlink(missing_ok=True)
        (request.staging / CLIENT_NOTES / "download" / f"{path}.metadata").unlink(missing_ok=True)


def publish(request: Request) -> None:
    """Rename the verified directory into place, with nothing in it but the published files."""
    shutil.rmtree(request.staging / CLIENT_NOTES, ignore_errors=True)
    for directory in sorted((path for path in request.staging.rglob("*") if path.is_dir()), reverse=True):
        if not any(directory.iterdir()):
            directory.rmdir()
    # 240 GB may still stand in memory only; the stamp must not outlive them.
    os.sync()
    request.staging.rename(request.dest)


def stamp(request: Request) -> None:
    files, size = tree(request.dest)
    record = {"repo": request.repo, "revision": request.revision, "files": files, "bytes": size, "verified_at": now()}
    write(request.stamp, json.dumps(record, indent=2) + "\n")
    say(f"complete and verified: {size} bytes in {files} files in {request.dest}")


def is_stamped(request: Request) -> bool:
    """Whether the stamp speaks of this commit and the directory still has as many files and bytes."""
    try:
        record = json.loads(request.stamp.read_text())
    except (OSError, ValueError):
        return False
    if not isinstance(record, dict) or (record.get("repo"), record.get("revision")) != (request.repo, request.revision):
        return False
    return (record.get("files"), record.get("bytes")) == tree(request.dest)


def tree(directory: Path) -> tuple[int, int]:
    """Number and bytes of the regular files below, those under way included; (0, 0) where there is no directory."""
    files = size = 0
    for root, _, names in os.walk(directory):
        for name in names:
            try:
                status = os.lstat(os.path.join(root, name))
            except FileNotFoundError:
                continue
            files, size = files + 1, size + status.st_size
    return files, size


def client(request: Request, arguments: list[str]) -> list[str]:
    return [str(request.venv / "bin" / "hf"), *arguments]


def environment(request: Request) -> dict[str, str]:
    """The client's environment: the hub to ask, no progress bars, and time for slow mirrors."""
    return {
        **os.environ,
        "HF_ENDPOINT": request.endpoint,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "60",
        "HF_HUB_ETAG_TIMEOUT": "60",
        "NO_COLOR": "1",
        "PYTHONIOENCODING": "utf-8",
    }


def complaint(what: str, status: int, said: str) -> Exception:
    """What a failed run of the client means, with the most telling of its own words."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("Hint:")]
    telling = [line for line in lines if line.startswith("Error:")] or lines or ["it said nothing"]
    for mark, meaning in HOPELESS.items():
        if mark in said:
            return Hopeless(f"{meaning}. {what} said: {telling[-1]}")
    return Setback(f"{what} ended with {status}: {telling[-1]}")


def say(message: str) -> None:
    print(message, flush=True)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def write(path: Path, text: str) -> None:
    """Write beside and rename, so that no reader ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), 0o644)
    os.replace(beside, path)


if __name__ == "__main__":
    sys.exit(main())
