"""Fingerprints of key files, as gpg prints them."""

from __future__ import annotations

import base64
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from lab.mirror import keys
from lab.mirror.keys import Key
from rigup.lock.openpgp import fingerprints

pytestmark = pytest.mark.skipif(not shutil.which("gpg"), reason="needs gpg")


def armored(packets: bytes) -> bytes:
    lines = base64.encodebytes(packets).decode()
    return f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n{lines}-----END PGP PUBLIC KEY BLOCK-----\n".encode()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return keys.ensure("other", "other <other@rigup.invalid>", tmp_path_factory.mktemp("keys"))


def test_a_key_has_the_fingerprint_that_gpg_prints(key: Key) -> None:
    assert fingerprints(key.armored.read_bytes()) == (key.fingerprint,)
    assert fingerprints(armored(key.keyring.read_bytes())) == (key.fingerprint,)


def test_a_key_with_subkeys_and_long_packets_has_one_fingerprint(tmp_path: Path) -> None:
    gpg = ["gpg", "--homedir", str(tmp_path), "--batch", "--quiet", "--passphrase", "", "--pinentry-mode", "loopback"]
    tmp_path.chmod(0o700)
    subprocess.run([*gpg, "--quick-generate-key", "long <long@rigup.invalid>", "rsa2048"], check=True)
    listed = subprocess.run([*gpg, "--with-colons", "--list-keys"], check=True, capture_output=True, text=True).stdout
    export = subprocess.run([*gpg, "--armor", "--export"], check=True, capture_output=True).stdout
    subprocess.run(["gpgconf", "--homedir", str(tmp_path), "--kill", "gpg-agent"], check=False)
    lines = [line.split(":") for line in listed.splitlines()]
    assert fingerprints(export) == (next(fields[9] for fields in lines if fields[0] == "fpr"),)


def test_every_key_in_a_file_is_seen_also_in_a_second_block(key: Key, other: Key) -> None:
    both = key.keyring.read_bytes() + other.keyring.read_bytes()
    assert fingerprints(armored(both)) == (key.fingerprint, other.fingerprint)
    # apt would read the keys of all blocks.
    one, two = key.armored.read_bytes(), other.armored.read_bytes()
    for content in (one + two, b"text\n" + one, one + b"text", key.keyring.read_bytes(), b"", b"\n"):
        with pytest.raises(ValueError, match="not a single armored"):
            fingerprints(content)


def test_a_key_that_is_cut_or_damaged_anywhere_has_another_fingerprint_or_none(key: Key) -> None:
    packets = key.keyring.read_bytes()
    body = 2 + packets[1]
    dice = random.Random(15)
    for at in range(len(packets)):
        for damaged in (packets[:at], packets[:at] + bytes([packets[at] ^ dice.randrange(1, 256)]) + packets[at + 1 :]):
            try:
                found = fingerprints(armored(damaged))
            except ValueError:
                continue
            # Behind the key itself are only signatures, which apt verifies.
            assert found[0] != key.fingerprint or at >= body
            assert len(found) == 1
