"""The storage service of xet: lists the chunks of a file and sends them.

After https://huggingface.co/docs/xet (api, xorb, download-protocol). The real one's chunks vary in size, are
compressed, and shared between files; here they do not, are not, and a xorb is fifteen chunks of one file.
"""

import hashlib
import re
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from lab.hub.answers import Answer, Refused, as_json, byte_range
from lab.hub.repository import Entry

CHUNK = 64 << 10
# An odd number: faults in the middle of a xorb hit content, not a header.
XORB = 15 * CHUNK
HEADER_BYTES = 8
TOKEN, TOKEN_S = "xet_of_the_lab", 3600
_RECONSTRUCTION = re.compile(r"/v1/reconstructions/(?P<file>[0-9a-f]{64})")
_XORB = re.compile(r"/xorbs/(?P<file>[0-9a-f]{64})/(?P<number>\d+)")


def file_id(entry: Entry) -> str:
    """Return xet's id of a file; any 64 hex digits do, since a downloading client does not verify it."""
    return hashlib.sha256(f"xet {entry.sha256}".encode()).hexdigest()


class Cas:
    """The storage service for some files."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = {file_id(entry): entry for entry in entries}

    def connection(self, base: str) -> Answer:
        """Return the hub's answer to a request for the storage service's address and token."""
        until = int(time.time()) + TOKEN_S
        headers = {"X-Xet-Cas-Url": base, "X-Xet-Access-Token": TOKEN, "X-Xet-Token-Expiration": str(until)}
        return as_json({"casUrl": base, "accessToken": TOKEN, "exp": until}, headers=headers)

    def answer(self, path: str, base: str, token: str | None, wanted: str | None) -> Answer:
        """Answer a GET of `path` below `base`. `wanted` is the Range header. Raises Refused."""
        if match := _XORB.fullmatch(path):
            # Like a signed URL, this needs no token.
            return self._xorb(self._entry(match), int(match["number"]), wanted)
        if match := _RECONSTRUCTION.fullmatch(path):
            if token != TOKEN:
                raise Refused(HTTPStatus.UNAUTHORIZED, "the token is not one of this service")
            return self._reconstruction(self._entry(match), base, wanted)
        # This includes version 2 of the reconstructions: clients then request version 1.
        raise Refused(HTTPStatus.NOT_FOUND, "no such route")

    def _entry(self, match: re.Match[str]) -> Entry:
        entry = self._entries.get(match["file"])
        if entry is None:
            raise Refused(HTTPStatus.NOT_FOUND, "no such file")
        return entry

    def _reconstruction(self, entry: Entry, base: str, wanted: str | None) -> Answer:
        start, end = byte_range(wanted, entry.size) or (0, entry.size - 1)
        if start > end:
            raise Refused(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "the file ends before that")
        terms, fetch_info = [], {}
        for number in range(start // XORB, end // XORB + 1):
            size = min(XORB, entry.size - number * XORB)
            count = -(-size // CHUNK)
            chunks = {"start": 0, "end": count}
            name = f"{number:016x}{file_id(entry)[16:]}"
            terms.append({"hash": name, "unpacked_length": size, "range": chunks})
            place: dict[str, Any] = {"range": chunks, "url": f"{base}/xorbs/{file_id(entry)}/{number}"}
            fetch_info[name] = [{**place, "url_range": {"start": 0, "end": size + count * HEADER_BYTES - 1}}]
        found = {"offset_into_first_range": start % XORB, "terms": terms, "fetch_info": fetch_info}
        answer = as_json(found)
        answer.about = "/cas"
        return answer

    def _xorb(self, entry: Entry, number: int, wanted: str | None) -> Answer:
        with entry.source.open("rb") as file:
            file.seek(number * XORB)
            packed = _packed(file.read(XORB))
        start, end = byte_range(wanted, len(packed)) or (0, len(packed) - 1)
        body = packed[start : end + 1]
        headers = {"Content-Type": "application/octet-stream", "Content-Range": f"bytes {start}-{end}/{len(packed)}"}
        about = f"xet:{entry.path}"
        return Answer(HTTPStatus.PARTIAL_CONTENT, headers, body, entry, length=len(body), about=about)


def _packed(content: bytes) -> bytes:
    """Return the content as a xorb: each chunk after HEADER_BYTES of version, stored size, compression, size."""
    packed = bytearray()
    for at in range(0, len(content), CHUNK):
        chunk = content[at : at + CHUNK]
        size = len(chunk).to_bytes(3, "little")
        packed += b"\0" + size + b"\0" + size + chunk
    return bytes(packed)
