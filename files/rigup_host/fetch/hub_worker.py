"""Transfer files from one hub with the hub's own client. `fetch` starts this in the client's virtual environment.

Each line on standard input is a JSON object with `path`, `size`, `to` and `xet`: the file `path` is written to `to`,
after the bytes that are already there. Each line on standard output is a JSON object too: `{"done": PATH}`,
`{"waiting": SECONDS}`, `{"in_memory": BYTES}` (received and not yet written), or `failed` (the path) with `why`,
`hopeless`, `wait` and `xet`. Nothing is verified here. The program ends as soon as its standard input is closed.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import re
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import huggingface_hub.constants as constants
from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url
from huggingface_hub.file_download import http_get, xet_get
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._runtime import is_xet_available

# The client holds a piece in memory until it is complete; a broken connection loses what it holds.
PIECE = 64 * 1024
RECORDS = 1 << 26
LONGEST_WAIT_S = 3600
NAP = re.compile(r"Waiting ([0-9.]+)s before retry")
# Failures that no second try can change, and what to do about them.
REMEDIES = {
    errors.GatedRepoError: "the model's terms must be accepted first: do that on the hub's site, as the token's owner",
    errors.RepositoryNotFoundError: "the hub has no such repository, or it is private: check the name and the token",
    errors.RevisionNotFoundError: "the hub has no such commit: run `rigup update checkpoints` to resolve it again",
    errors.RemoteEntryNotFoundError: "the hub has no such file: run `rigup update checkpoints` to resolve it again",
}
DISK = {
    errno.ENOSPC: "the disk is full: free some space or choose another model_store",
    errno.EDQUOT: "the disk quota is exceeded: free some space or choose another model_store",
    errno.EACCES: "the downloader may not write to the store: check the owner of the directory",
    errno.EROFS: "the disk is mounted read-only: check the kernel's log",
}


class XetFailed(Exception):
    """xet failed; plain HTTP may succeed."""


class StorageFailed(Exception):
    """The storage that the hub redirects to refused; its signed URL may have expired, and a new one may work."""

    def __init__(self, error: errors.HfHubHTTPError) -> None:
        super().__init__(f"the hub's storage answered {status_of(error)}")
        self.response = error.response


def main(argv: list[str]) -> int:
    """Transfer files until standard input is closed."""
    parser = argparse.ArgumentParser(prog="rigup-host hub-worker", description="Transfer files from a hub.")
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--repo", required=True)
    parser.add_argument("--revision", required=True)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--largest", type=int, required=True, help="bytes of the largest published file")
    options = parser.parse_args(argv)
    # The client's own records need a little; what it writes beyond that fails with "File too large".
    largest = max(options.largest, RECORDS)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    constants.DOWNLOAD_CHUNK_SIZE = PIECE
    logger = logging.getLogger("huggingface_hub")
    logger.setLevel(logging.WARNING)
    logger.addHandler(Listener())
    pool = ThreadPoolExecutor(options.workers)
    for line in sys.stdin:
        pool.submit(attempt, options, json.loads(line))
    # The download that asked for these files has ended; its successor must not meet a second writer.
    os._exit(0)


class Listener(logging.Handler):
    """Reports when the client waits because the hub asked for it, which is not a stall."""

    def emit(self, record: logging.LogRecord) -> None:
        """Report a pause that the client logs."""
        if match := NAP.search(record.getMessage()):
            say(waiting=float(match[1]))


class Meter:
    """Takes the place of the client's progress bar: xet holds up to hundreds of megabytes before it writes."""

    kept: ClassVar[dict[int, int]] = {}

    def __init__(self, **_: object) -> None:
        self.kept[id(self)] = 0

    def update_transfer(self, count: int) -> None:
        """Count bytes that were received."""
        self._keep(count)

    def update(self, count: int) -> None:
        """Count bytes that were written."""
        self._keep(-count)

    def _keep(self, more: int) -> None:
        # Received bytes may be compressed, and so fewer than the written ones.
        self.kept[id(self)] += more
        say(in_memory=sum(max(0, count) for count in list(self.kept.values())))

    def set_postfix_str(self, *_: object, **__: object) -> None:
        """Ignore the rate, which is for terminals."""

    set_transfer_postfix_str = set_postfix_str

    def close(self) -> None:
        """Forget the file."""
        del self.kept[id(self)]


def attempt(options: argparse.Namespace, order: dict[str, str | int]) -> None:
    """Transfer one file and report the result."""
    path = str(order["path"])
    try:
        transfer(options, path, int(order["size"]), Path(str(order["to"])), xet=bool(order["xet"]))
    except Exception as error:
        hopeless, why = explain(error)
        xet = isinstance(error, XetFailed)
        say(failed=path, why=why, hopeless=hopeless, wait=asked_to_wait(error), xet=xet)
    else:
        say(done=path)


def transfer(options: argparse.Namespace, path: str, size: int, to: Path, *, xet: bool) -> None:
    """Transfer one file; continue where an earlier try stopped."""
    token = os.environ.get("HF_TOKEN") or False
    url = hf_hub_url(options.repo, path, revision=options.revision, endpoint=options.endpoint)
    found = get_hf_file_metadata(url, token=token, timeout=60, endpoint=options.endpoint)
    headers = build_hf_headers(token=token)
    # xet always starts at the beginning. What it leaves is the file's beginning, and plain HTTP continues there.
    if xet and found.xet_file_data and is_xet_available() and not (to.exists() and to.stat().st_size):
        try:
            xet_get(
                incomplete_path=to,
                xet_file_data=found.xet_file_data,
                headers=headers,
                expected_size=size,
                tqdm_class=Meter,
            )
        except Exception as error:
            raise XetFailed(f"xet: {first_line(error)}") from error
        return
    if urlsplit(found.location)[:2] != urlsplit(options.endpoint)[:2]:
        # The token is only for the hub itself: not for the storage it redirects to, nor for an address without TLS.
        headers.pop("authorization", None)
    with to.open("ab") as file:
        there = file.tell()
        if there > size:
            there = file.truncate(0)
        try:
            http_get(found.location, file, resume_size=there, headers=headers, expected_size=size)
        except errors.HfHubHTTPError as error:
            raise StorageFailed(error) from error


def explain(error: Exception) -> tuple[bool, str]:
    """Return whether another try is hopeless, and what happened."""
    message = first_line(error)
    if isinstance(error, StorageFailed):
        return False, message
    for kind, remedy in REMEDIES.items():
        if isinstance(error, kind):
            return True, f"{remedy}. The hub's client reports: {message}"
    status = status_of(error)
    if status in (401, 403):
        return True, f"the hub refuses the token: check HF_TOKEN. The hub's client reports: {message}"
    if status is not None:
        return False, f"the hub answered {status}"
    if isinstance(error, OSError) and error.errno in DISK:
        return True, DISK[error.errno]
    return False, message


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def status_of(error: Exception) -> int | None:
    """Return the HTTP status that an error is about, if any."""
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def asked_to_wait(error: Exception) -> float | None:
    """Return the seconds of a Retry-After header, also of a date, by the hub's clock; at most an hour."""
    response = getattr(error, "response", None)
    if response is None:
        return None
    value = response.headers.get("Retry-After", "").strip()
    try:
        if value.isdigit():
            return float(min(int(value), LONGEST_WAIT_S))
        then, now = (parsedate_to_datetime(each) for each in (value, response.headers.get("Date", "")))
        return max(0.0, min((then - now).total_seconds(), LONGEST_WAIT_S))
    except (ValueError, TypeError):
        # There is no such header, or it has an unknown form.
        return None


def say(**event: object) -> None:
    """Write one event to standard output."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()
