"""The keys that a login offers: private key files, their certificates, and the keys of the ssh agent."""

from __future__ import annotations

import base64
import binascii
import io
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from paramiko.agent import AgentKey, AgentSSH
from paramiko.pkey import PublicBlob

from rigup.errors import RigupError
from rigup.ssh.login import Login
from rigup.ssh.transport import BROKEN

_CLASSES: Mapping[type, type[paramiko.RSAKey | paramiko.ECDSAKey | paramiko.Ed25519Key]] = {
    rsa.RSAPrivateKey: paramiko.RSAKey,
    ec.EllipticCurvePrivateKey: paramiko.ECDSAKey,
    ed25519.Ed25519PrivateKey: paramiko.Ed25519Key,
}


class UnusableKey(RigupError):
    """A key file cannot be used."""


class NoSuchKey(UnusableKey):
    """A key file does not exist."""


def offers(login: Login) -> tuple[list[paramiko.PKey], list[UnusableKey]]:
    """Return the keys to offer, in order, and why files cannot be used; a file that does not exist counts as one.

    As for ssh, a file's key may be in the agent only, and then the file may be the public key.
    """
    keys, unusable = list[paramiko.PKey](), list[UnusableKey]()
    agent = _agent_keys(login.agent)
    for path in login.keys:
        if held := _held(path, agent):
            keys.append(held)
            continue
        try:
            keys += _with_certificates(path, load(path, login.key_of("key")), login.certificates)
        except UnusableKey as error:
            unusable.append(error)
    return keys + [key for key in agent if key not in keys and not login.only_keys], unusable


def load(path: Path, written: str = "`key`") -> paramiko.PKey:
    """Read a private key without a passphrase: OpenSSH's own format, PEM or PKCS8.

    Raises UnusableKey, whose remedy says where the path is `written`.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise NoSuchKey(
            f"key {path}: no such private key file", f"correct {written}, or remove it to use ssh's usual keys"
        ) from None
    except OSError as error:
        raise UnusableKey(f"key {path} cannot be read: {error.strerror}", f"correct {written}") from error
    if _public(path) is not None:
        raise UnusableKey(f"key {path} is a public key", "name the private key, or load it into the ssh agent")
    try:
        return _converted(data)
    except TypeError:
        # What cryptography raises if it needs a passphrase.
        raise UnusableKey(f"key {path} has a passphrase", f"load it into the ssh agent: `ssh-add {path}`") from None
    except (ValueError, UnsupportedAlgorithm, paramiko.SSHException) as error:
        raise UnusableKey(
            f"key {path} is not a private key that can be read: {error}",
            "convert it to OpenSSH's format, or load it into the ssh agent with `ssh-add`",
        ) from error


def _converted(data: bytes) -> paramiko.PKey:
    """Return a key in any format of cryptography. paramiko itself reads no PKCS8."""
    try:
        loaded = load_ssh_private_key(data, None)
    except ValueError:
        loaded = load_pem_private_key(data, None)  # type: ignore[assignment]
    for kind, made in _CLASSES.items():
        if isinstance(loaded, kind):
            text = loaded.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
            return made.from_private_key(io.StringIO(text))
    raise ValueError("ssh has no keys of this kind")


def _with_certificates(path: Path, key: paramiko.PKey, more: Sequence[Path]) -> list[paramiko.PKey]:
    """Return the key with each of its certificates, and the key alone."""
    found = list[paramiko.PKey]()
    for certificate in (path.with_name(f"{path.name}-cert.pub"), *more):
        try:
            blob = PublicBlob.from_file(str(certificate))
        except (OSError, ValueError, paramiko.SSHException):
            continue
        # A certificate contains the public key's fields, after its own kind and a nonce.
        if key.asbytes()[4 + len(key.get_name()) :] in blob.key_blob:
            certified = load(path)
            certified.load_certificate(str(certificate))
            found.append(certified)
    return [*found, key]


def _held(path: Path, agent: Sequence[AgentKey]) -> AgentKey | None:
    """Return the agent's key for a private or public key file."""
    blobs = {blob for each in (path, path.with_name(f"{path.name}.pub")) if (blob := _public(each)) is not None}
    return next((key for key in agent if key.blob in blobs), None)


def _public(path: Path) -> bytes | None:
    """Return the public key that a file contains; None if it is not a public key."""
    try:
        kind, text, *_ = path.read_text().split(None, 2)
        blob = base64.b64decode(text, validate=True)
    except (OSError, ValueError, binascii.Error):
        return None
    return blob if blob[4 : 4 + len(kind)] == kind.encode() else None


class _Agent(AgentSSH):
    """An agent at a given socket; paramiko's is always that of the environment."""

    def __init__(self, path: str) -> None:
        super().__init__()
        line = socket.socket(socket.AF_UNIX)
        try:
            line.connect(path)
            self._connect(line)  # type: ignore[attr-defined]
        except BaseException:
            line.close()
            raise


def agent_answers(path: str) -> bool:
    """Return whether an agent answers at this socket."""
    try:
        _Agent(path)._close()  # type: ignore[attr-defined]
    except BROKEN:
        return False
    return True


def _agent_keys(path: str | None) -> list[AgentKey]:
    """Return the keys of the agent at this socket; none if there is no agent, as for ssh."""
    try:
        keys = list(_Agent(path).get_keys()) if path else []
    except BROKEN:
        return []
    for key in keys:
        # paramiko does not know the kinds of hardware tokens, and then fails to read this (its issue 2462).
        if key.inner_key is None:  # type: ignore[attr-defined]
            key.public_blob = None
    return keys
