"""Commands on a host of the inventory without pyinfra: for the audit, and for what `rigup` itself looks at."""

from __future__ import annotations

import os
import shlex
import threading

import paramiko

from rigup.config.inventory import Host
from rigup.errors import RigupError
from rigup.ssh import host_keys
from rigup.ssh.batch import Answer, Ask
from rigup.ssh.transport import silence_paramiko, tune

__all__ = ["Unreachable", "connect", "execute"]

CONNECT_S = 15


class Unreachable(RigupError):
    """A host does not take commands."""

    def __init__(self, host: Host, why: str) -> None:
        self.why = why
        super().__init__(f"{host.name}: {why}")


def connect(host: Host) -> paramiko.SSHClient:
    """A connection to a host of the inventory. Raises Unreachable."""
    silence_paramiko()
    way = host.connection
    client = paramiko.SSHClient()
    # As the deploy: a host that is not known yet is taken at its word, one that has changed is refused.
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    known = host_keys.known_file(way)
    if known.exists():
        client.load_host_keys(str(known))
    try:
        client.connect(
            way.address,
            port=way.port,
            username=way.user,
            key_filename=os.path.expanduser(way.key) if way.key else None,
            look_for_keys=way.key is None,
            allow_agent=way.key is None,
            timeout=CONNECT_S,
            banner_timeout=CONNECT_S,
            auth_timeout=CONNECT_S,
        )
    except paramiko.BadHostKeyException as error:
        raise Unreachable(host, host_keys.changed(host.name)) from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        where = f"{way.user}@{way.address}, port {way.port}"
        raise Unreachable(host, f"no connection to {where}: {error or type(error).__name__}") from error
    transport = client.get_transport()
    if transport is not None:
        tune(transport)
    return client


def execute(transport: paramiko.Transport, ask: Ask) -> Answer:
    """Run one command to its end. Raises SSHException, OSError or EOFError where the connection breaks."""
    channel = transport.open_session(timeout=CONNECT_S)
    words = [ask.shell, "-c", ask.command]
    channel.exec_command(shlex.join(["sudo", "-H", "-n", *words] if ask.sudo else words))
    channel.shutdown_write()
    # Side by side: a stream that nobody reads fills its window, and the command waits for ever.
    errors: list[bytes] = []
    reader = threading.Thread(target=lambda: errors.append(channel.makefile_stderr("rb").read()), daemon=True)
    reader.start()
    stdout = channel.makefile("rb").read()
    reader.join()
    code = channel.recv_exit_status()
    if code == -1 and not transport.is_active():
        raise EOFError("while a command ran")
    return Answer(code, stdout, errors[0] if errors else b"")
