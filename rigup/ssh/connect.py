"""Connect to a host and log in: one way for deploys and all commands."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import paramiko

from rigup.ssh import host_keys, identities, tcp
from rigup.ssh.login import Login
from rigup.ssh.probe import AsksForPassword, probe
from rigup.ssh.transport import BROKEN, CONNECT_S, NoConnection, Transport, reason, silence_paramiko, tune, words


def connect(login: Login, sudo: bool, say: Callable[[str], None], may_ask: bool = False) -> Transport:
    """Return a connection that runs commands, with `sudo` also as root; `may_ask` permits a sudo with a password.

    Calls `say` with warnings. Raises NoConnection.
    """
    keys, unusable = identities.offers(login)
    if not keys and unusable and login.only_keys:
        raise NoConnection("; ".join(each.message for each in unusable), unusable[0].remedy)
    known = host_keys.load(login.known_hosts, say)
    with _opened(login, known.types(login.known_as)) as transport:
        host_keys.check(login, known, transport.get_remote_server_key())
        _authenticate(transport, login, keys, unusable)
        tune(transport)
        try:
            probe(transport, login, sudo, say)
        except AsksForPassword:
            if not may_ask:
                raise
        return transport


def presented(login: Login) -> paramiko.PKey:
    """Return the key that the host presents now. Raises NoConnection."""
    with _opened(login) as transport:
        key = transport.get_remote_server_key()
        transport.close()
        return key


@contextmanager
def _opened(login: Login, types: Sequence[str] = ()) -> Iterator[Transport]:
    """Open a transport and exchange keys. If anything fails, it is closed, and BROKEN becomes NoConnection."""
    silence_paramiko()
    proxy = tcp.Proxy(login.proxy) if login.proxy else None
    transport: Transport | None = None
    try:
        line = proxy.line if proxy else tcp.connect(login.address, login.port, CONNECT_S, login.family)
        transport = Transport(line)
        if proxy:
            transport.hang_up = proxy.end
        transport.banner_timeout = transport.auth_timeout = CONNECT_S
        options = transport.get_security_options()
        # A host of which a key is known must present that one.
        options.key_types = sorted(options.key_types, key=lambda kind: kind not in types)
        transport.start_client(timeout=CONNECT_S)
        yield transport
    except BaseException as error:
        farewell = transport.farewell if transport is not None else ""
        complaint = words(proxy.complaint()) if proxy else ""
        if transport is not None:
            transport.close()
        if not isinstance(error, BROKEN):
            raise
        why, remedy = words(farewell) or reason(error), "" if proxy else _remedy(error, login)
        if isinstance(error, socket.gaierror):
            why = f"the name does not resolve: {why}"
        if complaint:
            why = f"{complaint} (from `{' '.join(login.proxy)}`)"
        raise NoConnection(f"no connection to {login.place}: {why}", remedy) from error


def _remedy(error: BaseException, login: Login) -> str:
    """Return what to do about a host to which there is no direct connection."""
    if isinstance(error, socket.gaierror):
        return f"correct {login.key_of('address')}, or the name in ssh's configuration"
    if isinstance(error, ConnectionRefusedError):
        return f"start sshd on the host, or correct {login.key_of('port')}"
    if isinstance(error, TimeoutError) or getattr(error, "errno", None) in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return f"see whether the host is on and no firewall is between, or correct {login.key_of('address')}"
    return ""


def _authenticate(
    transport: Transport, login: Login, keys: list[paramiko.PKey], unusable: list[identities.UnusableKey]
) -> None:
    """Log in with the first key that the host accepts. Raises NoConnection, and BROKEN if the host hangs up."""
    methods = ["publickey"]
    for key in keys:
        try:
            if not (methods := transport.auth_publickey(login.user, key)):
                return
        except paramiko.BadAuthenticationType as error:
            methods = error.allowed_types
        except paramiko.AuthenticationException:
            if not transport.is_active():
                raise
    banner = words((transport.get_banner() or b"").decode(errors="replace"))
    names = ", ".join(dict.fromkeys(f"{key.get_name()} {key.fingerprint}" for key in keys))
    why = f"the host accepts none of the keys offered ({names})" if keys else "there is no key to offer"
    if "publickey" not in methods:
        why = f"the host wants {' or '.join(methods)}"
    notes = [each.message for each in unusable if login.only_keys or not isinstance(each, identities.NoSuchKey)]
    put = f"put the public key into ~{login.user}/.ssh/authorized_keys on the host, or set `user` or `key` for it"
    raise NoConnection(
        "; ".join((f"authentication failed: no login as {login.place}: {why}", *notes, *([banner] if banner else []))),
        put if keys or notes else f"make a key with `ssh-keygen -t ed25519` and {put}",
    )
