"""rigup-host pull: an image comes through Docker's API, with its bytes, its rate and the time left."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from rigup_host import pull
from tests.unit.host_world import program, run_program

DIGEST = f"sha256:{'a' * 64}"
REFERENCE = f"vllm/vllm-openai@{DIGEST}"
# Docker 28.5.2 with overlay2; one of the two layers was there.
RECORDED = (Path(__file__).parents[1] / "data/docker-pull.jsonl").read_text().splitlines()


def message(layer: str, status: str, current: int = 0, total: int = 0, **more: Any) -> dict[str, Any]:
    """A message as Docker writes it."""
    detail = {"current": current, "total": total, **more} if current else {}
    return {"status": status, "progressDetail": detail, "id": layer}


class Docker(HTTPServer):
    """Answers one kind of request on a Unix socket, as Docker does."""

    address_family = socket.AF_UNIX

    def __init__(self, path: Path, status: int, body: bytes) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        answers, seen = (status, body), self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                seen.append((self.path, dict(self.headers)))
                self.send_response(answers[0])
                self.end_headers()
                self.wfile.write(answers[1])

            def address_string(self) -> str:
                return "unix"

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

        super().__init__(str(path), Handler)  # type: ignore[arg-type]

    def server_bind(self) -> None:
        # HTTPServer would look up the name of an address.
        self.socket.bind(self.server_address)  # type: ignore[arg-type]


@contextmanager
def docker(directory: Path, messages: Sequence[str], status: int = 200) -> Iterator[Docker]:
    body = "".join(f"{line}\r\n" for line in messages).encode()
    with Docker(directory / "docker.sock", status, body) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def pulled(directory: Path, messages: Sequence[str], status: int = 200) -> tuple[int, str, str, Docker]:
    """Run the program as a unit does; return its exit status, its output and errors, and what was asked."""
    with docker(directory, messages, status) as server:
        done = run_program("pull", f"--socket={directory}/docker.sock", "--bytes=100", REFERENCE, HOME=str(directory))
    return done.returncode, done.stdout, done.stderr, server


def test_an_image_is_asked_for_by_its_digest(tmp_path: Path) -> None:
    code, out, err, server = pulled(tmp_path, RECORDED)
    assert (code, out, err) == (0, f"pulled {REFERENCE}\n", "")
    ((path, headers),) = server.requests
    assert path == f"/images/create?fromImage=vllm%2Fvllm-openai&tag=sha256%3A{'a' * 64}"
    assert "X-Registry-Auth" not in headers


@pytest.mark.parametrize(
    ("messages", "status", "words"),
    [
        (['{"message": "manifest for x not found"}'], 404, "Error response from daemon: manifest for x not found\n"),
        (["no JSON"], 500, "Error response from daemon: Internal Server Error\n"),
        (
            [*RECORDED[:4], '{"errorDetail": {"message": "no space left"}, "error": "no space left on device"}'],
            200,
            "no space left on device\n",
        ),
    ],
)
def test_a_failure_is_told_in_dockers_words(messages: list[str], status: int, words: str, tmp_path: Path) -> None:
    code, out, err, _ = pulled(tmp_path, messages, status)
    assert (code, out, err) == (1, "", words)


def test_a_docker_that_is_down_is_named(tmp_path: Path) -> None:
    done = run_program("pull", f"--socket={tmp_path}/none", REFERENCE)
    assert done.returncode == 1
    assert done.stderr == f"Cannot connect to the Docker daemon at {tmp_path}/none: No such file or directory\n"


# Lines


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(expected: int, *steps: tuple[float, dict[str, Any]]) -> list[str]:
    """What is printed if each message arrives at its second."""
    clock, said = Clock(), list[str]()

    def arriving() -> Iterator[bytes]:
        for moment, each in steps:
            clock.now = moment
            yield json.dumps(each).encode()

    pull.follow(arriving(), pull.Progress(expected, clock), said.append, clock)
    return said


def test_a_line_has_the_bytes_the_rate_and_the_time_left() -> None:
    told = lines(
        12_000_000_000,
        (0, {"status": "Pulling from vllm/vllm-openai", "id": DIGEST}),
        (0, message("1" * 12, "Pulling fs layer")),
        (0, message("2" * 12, "Pulling fs layer")),
        (0, message("3" * 12, "Already exists")),
        (1, message("1" * 12, "Downloading", 100_000_000, 4_000_000_000)),
        # The second layer waits for its turn: the size of the image is that of the lock.
        (5, message("1" * 12, "Downloading", 500_000_000, 4_000_000_000)),
        (6, message("2" * 12, "Downloading", 1, 6_000_000_000)),
        (10, message("2" * 12, "Downloading", 500_000_000, 6_000_000_000)),
        (20, message("1" * 12, "Download complete")),
        (60, message("2" * 12, "Downloading", 4_000_000_000, 6_000_000_000)),
        (70, message("2" * 12, "Download complete")),
        (70, message("1" * 12, "Extracting", 1_000_000_000, 4_000_000_000)),
        (80, message("1" * 12, "Extracting", 3_000_000_000, 4_000_000_000)),
        (90, message("1" * 12, "Pull complete")),
        (99, message("2" * 12, "Pull complete")),
    )
    assert told == [
        "downloading, 500 MB of 12.0 GB, 100 MB/s, about 1 min 55 s left, 1 of 3 layers complete",
        "downloading, 1.0 GB of 10.0 GB, 100 MB/s, about 1 min 30 s left, 1 of 3 layers complete",
        "downloading, 4.5 GB of 10.0 GB, 225 MB/s, about 24 s left, 1 of 3 layers complete",
        "downloading, 8.0 GB of 10.0 GB, 1 of 3 layers complete",
        "unpacking, 0 MB of 10.0 GB, 1 of 3 layers complete",
        "unpacking, 3.0 GB of 10.0 GB, 300 MB/s, about 23 s left, 1 of 3 layers complete",
        "unpacking, 4.0 GB of 10.0 GB, 200 MB/s, about 30 s left, 2 of 3 layers complete",
        "unpacking, 10.0 GB of 10.0 GB, 3 of 3 layers complete",
    ]


def test_containerd_counts_the_seconds_of_unpacking_which_are_no_bytes() -> None:
    told = lines(
        0,
        (0, message("1" * 12, "Downloading", 1_000_000_000, 2_000_000_000)),
        (1, message("1" * 12, "Download complete")),
        (9, message("1" * 12, "Extracting", 8, units="s")),
    )
    assert told == ["unpacking, 0 MB of 2.0 GB, 0 of 1 layers complete"]


def test_what_docker_does_not_say_is_left_out() -> None:
    assert lines(0, (9, {"status": "Digest: sha256:1"})) == ["downloading, 0 of 0 layers complete"]


def test_a_recorded_pull_arrives_completely() -> None:
    clock = Clock()
    progress = pull.Progress(0, clock)
    for line in RECORDED:
        progress.note(pull.read(line.encode()))
    assert progress.line() == "unpacking, 0 MB of 0 MB, 2 of 2 layers complete"


@pytest.mark.parametrize("line", ["[]", '{"id": 1}', "\xff", "[" * 3000])
def test_a_message_of_another_form_is_passed_by(line: str) -> None:
    progress = pull.Progress(0, Clock())
    progress.note(pull.read(line.encode("latin-1")))
    assert progress.line() == "downloading, 0 of 0 layers complete"


# Logins


@pytest.mark.parametrize(
    ("repository", "registry"),
    [
        ("vllm/vllm-openai", "docker.io"),
        ("debian", "docker.io"),
        ("ghcr.io/x/y", "ghcr.io"),
        ("mirror.lan:5000/x", "mirror.lan:5000"),
        ("localhost/x", "localhost"),
    ],
)
def test_the_registry_of_a_repository(repository: str, registry: str) -> None:
    assert pull.registry_of(repository) == registry


def test_a_login_of_root_is_used(tmp_path: Path) -> None:
    (tmp_path / ".docker").mkdir()
    kept = {"auths": {"https://index.docker.io/v1/": {"auth": base64.b64encode(b"ann:pass:word").decode()}}}
    (tmp_path / ".docker/config.json").write_text(json.dumps(kept))
    code, *_, server = pulled(tmp_path, RECORDED)
    sent = json.loads(base64.urlsafe_b64decode(server.requests[0][1]["X-Registry-Auth"]))
    assert code == 0
    assert sent == {"username": "ann", "password": "pass:word", "serveraddress": "https://index.docker.io/v1/"}


@pytest.mark.parametrize(
    ("kept", "login"),
    [
        ({}, {}),
        ([], {}),
        ({"auths": {"ghcr.io": {}}}, {}),
        ({"auths": {"ghcr.io": {"auth": "%%%"}}}, {}),
        (
            {"auths": {"ghcr.io": {"auth": "", "identitytoken": "t"}}},
            {"identitytoken": "t", "serveraddress": "ghcr.io"},
        ),
        (
            {"credHelpers": {"ghcr.io": "box"}},
            {"username": "ann", "password": "secret", "serveraddress": "ghcr.io"},
        ),
        ({"credsStore": "box"}, {"username": "ann", "password": "secret", "serveraddress": "ghcr.io"}),
        ({"credsStore": "none"}, {}),
        ({"credsStore": "failing"}, {}),
        ({"credsStore": "token"}, {"identitytoken": "t", "serveraddress": "ghcr.io"}),
    ],
)
def test_logins_are_read_as_docker_keeps_them(
    kept: object, login: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(
        tmp_path,
        "docker-credential-box",
        """[ "$(cat)" = ghcr.io ] && echo '{"Username": "ann", "Secret": "secret"}'""",
    )
    program(tmp_path, "docker-credential-token", """echo '{"Username": "<token>", "Secret": "t"}'""")
    program(tmp_path, "docker-credential-failing", "echo credentials not found; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(kept))
    assert pull.login_for("ghcr.io", config) == login
    assert pull.login_for("ghcr.io", tmp_path / "missing.json") == {}
