"""Pull an image through Docker's API, which counts the bytes: `docker pull` shows them only on a terminal.

Every few seconds a line says how many bytes have arrived or are unpacked, how fast, and how long the rest takes. As
with `docker pull`, logins of `docker login` are used, errors are in Docker's words, and the pull ends with the program.

Exit status: 0 the image is there, 1 it is not; the last line says why.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from rigup_host import files

SOCKET = "/run/docker.sock"
SAY_EVERY_S = 5.0
RATE_OVER_S = 30.0
# Docker's names for its own registry: in references and in config.json.
HUB, HUB_LOGIN = "docker.io", "https://index.docker.io/v1/"


class Failed(Exception):
    """The image was not pulled; the message is Docker's."""


def main(argv: list[str]) -> int:
    """Pull; return the exit status."""
    parser = argparse.ArgumentParser(prog="rigup-host pull", description="Pull an image, and say how far it is.")
    parser.add_argument("reference", help="the image, as REPOSITORY@sha256:...")
    parser.add_argument("--bytes", type=int, default=0, help="compressed size of the image; 0 if it is not known")
    parser.add_argument("--socket", default=SOCKET, help="Docker's socket")
    parser.add_argument("--config", type=Path, default=Path.home() / ".docker/config.json", help="Docker's logins")
    options = parser.parse_args(argv)
    try:
        pull(options)
    except (Failed, OSError, http.client.HTTPException) as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    print(f"pulled {options.reference}", flush=True)
    return 0


def pull(options: argparse.Namespace) -> None:
    """Ask Docker for the image and print how far it is until it is there. Raise Failed if it cannot be pulled."""
    name, _, digest = options.reference.partition("@")
    headers = {"Content-Length": "0"}
    if login := login_for(registry_of(name), options.config):
        headers["X-Registry-Auth"] = base64.urlsafe_b64encode(json.dumps(login).encode()).decode()
    connection = Connection(options.socket)
    try:
        # ImageCreate in Docker's API.
        query = urlencode({"fromImage": name, "tag": digest})
        connection.request("POST", f"/images/create?{query}", headers=headers)
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            said = read(answer.read())
            raise Failed(f"Error response from daemon: {said.get('message') or answer.reason}")
        follow(answer, Progress(options.bytes), lambda line: print(line, flush=True))
    finally:
        connection.close()


class Connection(http.client.HTTPConnection):
    """A connection to a server behind a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.connect(self._path)
        except OSError as error:
            raise Failed(f"Cannot connect to the Docker daemon at {self._path}: {error.strerror}") from error


# Progress


@dataclass
class Layer:
    """A layer of the image: what Docker does with it, and its compressed bytes as far as they are known."""

    state: str
    downloaded: int = 0
    unpacked: int = 0
    total: int = 0


class Progress:
    """How far the layers are. `expected` is the compressed size of the image in bytes, 0 if it is not known."""

    def __init__(self, expected: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._expected = expected
        self._clock = clock
        self._layers: dict[str, Layer] = {}
        self._step = "downloading"
        self._seen = deque([(clock(), 0)])

    def note(self, event: Mapping[str, Any]) -> None:
        """Take in one message of Docker."""
        name, state = event.get("id"), event.get("status")
        if not isinstance(name, str) or not isinstance(state, str) or state.startswith("Pulling from "):
            return
        layer = self._layers.setdefault(name, Layer(state))
        layer.state = state
        detail = _object(event.get("progressDetail"))
        # With containerd's image store, unpacking is counted in seconds.
        current = count(detail.get("current")) if not detail.get("units") else 0
        if state == "Downloading":
            layer.downloaded = max(layer.downloaded, current)
            layer.total = max(layer.total, count(detail.get("total")), layer.downloaded)
        elif state == "Extracting":
            layer.unpacked = max(layer.unpacked, min(current, layer.total))
        if state in ("Download complete", "Extracting", "Pull complete"):
            layer.downloaded = layer.total
        if state == "Pull complete":
            layer.unpacked = layer.total

    def line(self) -> str:
        """Return how far the pull is, as text for the log; the rate is that of the last RATE_OVER_S seconds."""
        moment, layers = self._clock(), self._layers.values()
        waiting = any(layer.state in ("Pulling fs layer", "Waiting") for layer in layers)
        total = sum(layer.total for layer in layers)
        downloaded = sum(layer.downloaded for layer in layers)
        if waiting or not layers:
            # Docker tells the size of a layer when its download begins.
            total = max(total, self._expected)
        step = "downloading" if waiting or downloaded < total or not layers else "unpacking"
        done = downloaded if step == "downloading" else sum(layer.unpacked for layer in layers)
        if step != self._step:
            self._seen.clear()
        self._step = step
        self._seen.append((moment, done))
        while moment - self._seen[0][0] > RATE_OVER_S:
            self._seen.popleft()
        since, before = self._seen[0]
        rate = (done - before) / (moment - since) if moment > since else 0.0
        parts = [step]
        if total:
            parts.append(f"{size(done)} of {size(total)}")
        if rate > 0 and done < total:
            parts += [f"{size(rate)}/s", f"about {duration((total - done) / rate)} left"]
        complete = sum(layer.state in ("Pull complete", "Already exists") for layer in layers)
        return ", ".join([*parts, f"{complete} of {len(layers)} layers complete"])


def follow(
    messages: Iterable[bytes],
    progress: Progress,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Read Docker's messages to the end, one in each line, and say now and then how far it is. Raise Failed."""
    spoke = clock()
    for message in messages:
        event = read(message)
        if error := event.get("error"):
            raise Failed(str(error))
        progress.note(event)
        if clock() - spoke >= SAY_EVERY_S:
            spoke = clock()
            say(progress.line())


def read(message: bytes) -> dict[str, Any]:
    """Return a JSON object; an empty one for anything else."""
    try:
        found = files.from_json(message)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def count(value: object) -> int:
    """Return a number of bytes; 0 for anything else."""
    return value if isinstance(value, int) and value > 0 else 0


# Logins


def registry_of(repository: str) -> str:
    """Return the registry of a repository: its first word if that looks like a host, else Docker's own."""
    first, slash, _ = repository.partition("/")
    return first if slash and (first == "localhost" or "." in first or ":" in first) else HUB


def login_for(registry: str, config: Path) -> dict[str, str]:
    """Return what `docker login` has kept for a registry, as the API takes it; an empty object without a login.

    It is in the configuration, or a helper that the configuration names has it.
    """
    try:
        known = read(config.read_bytes())
    except OSError:
        return {}
    server = HUB_LOGIN if registry == HUB else registry
    helper = _object(known.get("credHelpers")).get(server) or known.get("credsStore")
    if isinstance(helper, str):
        return _from_helper(helper, server)
    kept = _object(_object(known.get("auths")).get(server))
    if token := kept.get("identitytoken"):
        return {"identitytoken": str(token), "serveraddress": server}
    try:
        user, _, password = base64.b64decode(str(kept.get("auth", ""))).decode().partition(":")
    except ValueError:
        return {}
    return {"username": user, "password": password, "serveraddress": server} if user else {}


def _from_helper(helper: str, server: str) -> dict[str, str]:
    """Ask a helper of docker-credential-helpers: the server on standard input, an object on standard output."""
    try:
        done = subprocess.run([f"docker-credential-{helper}", "get"], input=server.encode(), capture_output=True)
    except OSError:
        return {}
    found = read(done.stdout) if done.returncode == 0 else {}
    user, secret = str(found.get("Username", "")), str(found.get("Secret", ""))
    if user == "<token>":
        return {"identitytoken": secret, "serveraddress": server}
    return {"username": user, "password": secret, "serveraddress": server} if user else {}


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


# Text


def size(count: float) -> str:
    """Return a number of bytes as text: `18 MB`, `1.2 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """Return a length of time as text: `45 s`, `3 min 20 s`, `1 h 05 min`."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02} min"
