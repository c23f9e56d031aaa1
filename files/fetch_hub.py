"""Transfers files from one hub with the hub's own client; `fetch.py` starts it in the client's virtual environment.

Each line on standard input is a JSON object with `path`, `size`, `to` and `xet`. The bytes go to `to`, after those that
are there already. Each line on standard output is one too: `{"done": PATH}`, `{"waiting": SECONDS}`, `in_memory` (bytes
that have come and are not written yet), or `failed` (the path) with `why`, `hopeless`, `wait` and whether it was `xet`.
Nothing is verified here. It ends at once when its input does.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import huggingface_hub.constants as constants
from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url
from huggingface_hub.file_download import http_get, xet_get
from huggingface_hub.utils import build_hf_headers
from huggingface_hub.utils._runtime import is_xet_available

# The client keeps a piece in memory until it is whole, and what a broken connection leaves of it is lost.
PIECE = 64 * 1024
LONGEST_WAIT_S = 3600
NAP = re.compile(r"Waiting ([0-9.]+)s before retry")
# What no second try can mend, and what to do about it.
REMEDIES = {
    errors.GatedRepoError: "the hub wants its terms accepted first: do that on its site, with the account of the token",
    errors.RepositoryNotFoundError: "the hub has no such repository, or it is private: check the name and the token",
    errors.RevisionNotFoundError: "the hub has no such commit: `rigup update checkpoints` resolves it anew",
    errors.RemoteEntryNotFoundError: "the hub has no such file: `rigup update checkpoints` resolves it anew",
}
DISK = {
    errno.ENOSPC: "the disk is full: make room or choose another model_store",
    errno.EDQUOT: "the disk quota is used up: make room or choose another model_store",
    errno.EACCES: "the downloader may not write there: check who owns the directory",
    errno.EROFS: "the disk is mounted read-only: check the kernel's log",
}


class XetFailed(Exception):
    """Whatever it was, plain HTTP may fare better."""


class StorageFailed(Exception):
    """The hub named a place for the file, and that place refused: its signed URL may have run out, a new one not."""

    def __init__(self, error: errors.HfHubHTTPError) -> None:
        super().__init__(f"the hub's storage answered {status_of(error)}")
        self.response = error.response


def main() -> None:
    parser = argparse.ArgumentParser(description="Transfer files from a hub.")
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--repo", required=True)
    parser.add_argument("--revision", required=True)
    parser.add_argument("--workers", type=int, default=8)
    options = parser.parse_args()
    constants.DOWNLOAD_CHUNK_SIZE = PIECE
    logger = logging.getLogger("huggingface_hub")
    logger.setLevel(logging.WARNING)
    logger.addHandler(Listener())
    pool = ThreadPoolExecutor(options.workers)
    for line in sys.stdin:
        pool.submit(attempt, options, json.loads(line))
    # Whoever wanted these files is gone; the next one must not find a second writer.
    os._exit(0)


class Listener(logging.Handler):
    """Hears when the client waits because the hub asked for it: that is no stall."""

    def emit(self, record: logging.LogRecord) -> None:
        if match := NAP.search(record.getMessage()):
            say(waiting=float(match[1]))


class Meter:
    """Stands where the client draws its progress of a file: xet keeps up to hundreds of megabytes before it writes."""

    kept: ClassVar[dict[int, int]] = {}

    def __init__(self, **_: object) -> None:
        self.kept[id(self)] = 0

    def update_transfer(self, count: int) -> None:
        self._keep(count)

    def update(self, count: int) -> None:
        self._keep(-count)

    def _keep(self, more: int) -> None:
        # What comes may be compressed, and so less than what is written.
        self.kept[id(self)] += more
        say(in_memory=sum(max(0, count) for count in list(self.kept.values())))

    def set_postfix_str(self, *_: object, **__: object) -> None:
        """The rate, which is for a person at a terminal."""

    set_transfer_postfix_str = set_postfix_str

    def close(self) -> None:
        del self.kept[id(self)]


def attempt(options: argparse.Namespace, order: dict[str, str | int]) -> None:
    path = str(order["path"])
    try:
        transfer(options, path, int(order["size"]), Path(str(order["to"])), xet=bool(order["xet"]))
    except Exception as error:
        hopeless, why = judge(error)
        xet = isinstance(error, XetFailed)
        say(failed=path, why=why, hopeless=hopeless, wait=asked_to_wait(error), xet=xet)
    else:
        say(done=path)


def transfer(options: argparse.Namespace, path: str, size: int, to: Path, *, xet: bool) -> None:
    """One file, from where an earlier try left off."""
    token = os.environ.get("HF_TOKEN") or False
    url = hf_hub_url(options.repo, path, revision=options.revision, endpoint=options.endpoint)
    found = get_hf_file_metadata(url, token=token, timeout=60, endpoint=options.endpoint)
    headers = build_hf_headers(token=token)
    # xet begins a file anew. What it leaves is the file's beginning: plain HTTP goes on in it.
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
    if urlsplit(found.location).netloc != urlsplit(options.endpoint).netloc:
        # The token is for the hub that was named, not for whoever stores its files.
        headers.pop("authorization", None)
    with to.open("ab") as file:
        there = file.tell()
        if there > size:
            there = file.truncate(0)
        try:
            http_get(found.location, file, resume_size=there, headers=headers, expected_size=size)
        except errors.HfHubHTTPError as error:
            raise StorageFailed(error) from error


def judge(error: Exception) -> tuple[bool, str]:
    """Whether a second try cannot help, and what happened."""
    said = first_line(error)
    if isinstance(error, StorageFailed):
        return False, said
    for kind, remedy in REMEDIES.items():
        if isinstance(error, kind):
            return True, f"{remedy}. The hub's client said: {said}"
    status = status_of(error)
    if status in (401, 403):
        return True, f"the hub refuses the token. The hub's client said: {said}"
    if status is not None:
        return False, f"the hub answered {status}"
    if isinstance(error, OSError) and error.errno in DISK:
        return True, DISK[error.errno]
    return False, said


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def status_of(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def asked_to_wait(error: Exception) -> float | None:
    """Seconds of a Retry-After header, also where it is a date: by the hub's clock, and an hour at most."""
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
        # Not said, or in no known form.
        return None


def say(**event: object) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
