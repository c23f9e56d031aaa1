"""The keys that sign the lab's apt repositories, generated once with gpg and kept in the cache."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError


@dataclass(frozen=True)
class Key:
    """A signing key: its fingerprint and its files."""

    fingerprint: str
    directory: Path

    @property
    def armored(self) -> Path:
        """The public key as text, as Docker and the container toolkit publish theirs."""
        return self.directory / "public.asc"

    @property
    def keyring(self) -> Path:
        """The public key as a binary keyring, as the cuda-keyring package installs it."""
        return self.directory / "public.gpg"

    @property
    def secret(self) -> Path:
        """The private key as text, readable only by its owner."""
        return self.directory / "secret.asc"


def _gpg(home: Path, *arguments: str) -> bytes:
    command = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--no-tty", "--pinentry-mode", "loopback"]
    command += ["--passphrase", "", "--digest-algo", "SHA512", "--cert-digest-algo", "SHA512", *arguments]
    try:
        return subprocess.run(command, check=True, capture_output=True).stdout
    except FileNotFoundError as error:
        raise LabError("the lab's mirror needs gpg to sign its repositories: apt-get install gnupg") from error
    except subprocess.CalledProcessError as error:
        raise LabError(f"gpg failed: {error.stderr.decode(errors='replace').strip()}") from error


@contextlib.contextmanager
def _home() -> Iterator[Path]:
    # A short path: gpg-agent's socket is in this directory, and socket paths are limited to 107 bytes (unix(7)).
    with tempfile.TemporaryDirectory(prefix="rigup-gpg-", dir="/tmp") as name:
        home = Path(name)
        try:
            yield home
        finally:
            subprocess.run(["gpgconf", "--homedir", name, "--kill", "gpg-agent"], check=False, capture_output=True)


def ensure(name: str, owner: str, directory: Path) -> Key:
    """Return the key of this name below `directory`; generate it if missing. Raises LabError when gpg fails."""
    place = directory / name
    record = place / "fingerprint"
    if record.exists():
        return Key(record.read_text().strip(), place)
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _home() as home:
        _gpg(home, "--quick-generate-key", owner, "ed25519", "sign", "never")
        listing = _gpg(home, "--with-colons", "--list-keys").decode()
        fingerprint = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))
        key = Key(fingerprint, place)
        key.secret.touch(mode=0o600)
        key.secret.write_bytes(_gpg(home, "--armor", "--export-secret-keys"))
        key.armored.write_bytes(_gpg(home, "--armor", "--export"))
        key.keyring.write_bytes(_gpg(home, "--export"))
    # Written last: only a complete key has a fingerprint.
    record.write_text(f"{fingerprint}\n")
    return key


def sign(key: Key, release: Path) -> None:
    """Write `InRelease` and `Release.gpg` next to an apt repository's Release file."""
    with _home() as home:
        _gpg(home, "--import", str(key.secret))
        user = ("--local-user", key.fingerprint, "--yes")
        _gpg(home, *user, "--output", str(release.with_name("InRelease")), "--clearsign", str(release))
        detached = str(release.with_name("Release.gpg"))
        _gpg(home, *user, "--output", detached, "--armor", "--detach-sign", str(release))
