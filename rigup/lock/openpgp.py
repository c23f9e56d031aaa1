"""Read the fingerprints of the public keys in a key file, without gpg on the control machine.

Formats: RFC 9580. Strict, because apt must not find a key in the file that was not seen here.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator

_ARMOR = re.compile(
    rb"\s*-----BEGIN PGP PUBLIC KEY BLOCK-----[ \t]*\r?\n(?:[A-Za-z]+: [^\r\n]*\r?\n)*[ \t]*\r?\n"
    rb"([A-Za-z0-9+/=\s]+?)(?:\n=[A-Za-z0-9+/]{4}\s*)?-----END PGP PUBLIC KEY BLOCK-----\s*"
)
_PUBLIC_KEY = 6
# Signature, subkey, user ID, user attribute: what belongs to the key before them.
_PARTS = (2, 14, 13, 17)


def fingerprints(content: bytes) -> tuple[str, ...]:
    """Return the fingerprint of each primary key in a key file, in upper-case hex digits.

    The file is one ASCII-armored block. Raises ValueError for anything else.
    """
    match = _ARMOR.fullmatch(content)
    if match is None:
        raise ValueError("it is not a single armored public key block")
    found = []
    for tag, body in _packets(base64.b64decode(b"".join(match[1].split()), validate=True)):
        if tag == _PUBLIC_KEY:
            found.append(_fingerprint(body))
        elif tag not in _PARTS or not found:
            raise ValueError(f"it contains a packet of type {tag}, which does not belong in a key file")
    if not found:
        raise ValueError("it contains no key")
    return tuple(found)


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each packet. Raises ValueError for a packet that is cut off or of unknown length."""
    at = 0
    while at < len(data):
        head = data[at]
        if head & 0xC0 == 0xC0:
            tag = head & 0x3F
            first = _number(data, at + 1, 1)
            if first < 192:
                size, at = first, at + 2
            elif first < 224:
                size, at = ((first - 192) << 8) + _number(data, at + 2, 1) + 192, at + 3
            elif first == 255:
                size, at = _number(data, at + 2, 4), at + 6
            else:
                raise ValueError("it contains a packet in parts")
        elif head & 0x80 and head & 3 != 3:
            tag, width = head >> 2 & 0x0F, 1 << (head & 3)
            size, at = _number(data, at + 1, width), at + 1 + width
        else:
            raise ValueError("it contains something other than OpenPGP packets")
        if at + size > len(data):
            raise ValueError("it is cut off")
        yield tag, data[at : at + size]
        at += size


def _number(data: bytes, at: int, width: int) -> int:
    if at + width > len(data):
        raise ValueError("it is cut off")
    return int.from_bytes(data[at : at + width], "big")


def _fingerprint(body: bytes) -> str:
    version = body[0] if body else 0
    if version == 4 and len(body) < 1 << 16:
        return hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body).hexdigest().upper()
    if version == 6:
        return hashlib.sha256(b"\x9b" + len(body).to_bytes(4, "big") + body).hexdigest().upper()
    raise ValueError(f"it contains a key of version {version}")
