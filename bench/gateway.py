"""Measure what clients without the key cost those that have it: `make bench`, or `python -m bench.gateway --help`.

A real HAProxy with a gateway's configuration, on loopback, in front of an engine that answers at once. The flood keeps
more connections open than the gateway has, most of them with an unfinished request, and asks without the key.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any

from bench.timing import ROOT, BenchError
from rigup.paths import GATEWAY_LUA, engine_listener
from rigup.plan.model import EndpointPlan
from rigup.render.gateway import config_text
from rigup.resources import FILES

RESULTS = ROOT / "bench" / "results" / "gateway.json"
KEY = "0123456789abcdef" * 4
HERE, FLOOD = "127.0.0.1", "127.0.0.2"
CONNECTIONS, CLIENTS = 6000, 4
ALLOWED = 2.0
"""How much longer the slowest of a hundred keyed requests may take during the flood."""


class Engine(BaseHTTPRequestHandler):
    """Answers every request at once."""

    protocol_version = "HTTP/1.1"
    # Header and body in one packet: between two of them the kernel would wait 40 ms.
    wbufsize = -1

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gateway", description=__doc__)
    parser.add_argument("--requests", type=int, default=4000, help="keyed requests in each measurement (default: 4000)")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"where to write (default: {RESULTS})")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with tempfile.TemporaryDirectory(prefix="rigup-bench-") as name, gateway(Path(name)) as port:
            found = measure(port, options.requests)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return int(found["ratio"] > ALLOWED)


def measure(port: int, requests: int) -> dict[str, Any]:
    """Return the 99th percentiles of keyed requests without and with the flood, in ms, in turns; and their ratio."""
    load, alone, flooded = os.getloadavg()[0], list[float](), list[float]()
    keyed(port, requests // 10)
    for _ in range(5):
        alone.append(keyed(port, requests))
        with flood(port):
            flooded.append(keyed(port, requests))
    return {
        "load_before": round(load, 1),
        "requests": requests,
        "alone_p99_ms": [round(each, 2) for each in alone],
        "flooded_p99_ms": [round(each, 2) for each in flooded],
        "ratio": round(statistics.median(flooded) / statistics.median(alone), 2),
    }


def keyed(port: int, requests: int) -> float:
    """Return the 99th percentile of keyed requests of several clients, in ms. Raises BenchError if one fails."""
    taken = list[float]()

    def ask() -> None:
        for _ in range(requests // CLIENTS):
            began = time.perf_counter()
            # A new one each time: the flood takes connections.
            connection = HTTPConnection(HERE, port, timeout=60)
            connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {KEY}"})
            answer = connection.getresponse()
            answer.read()
            if answer.status == 200:
                taken.append(time.perf_counter() - began)
            connection.close()

    threads = [Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(taken) != requests // CLIENTS * CLIENTS:
        raise BenchError(f"only {len(taken)} of {requests} keyed requests were answered")
    return statistics.quantiles(taken, n=100)[98] * 1000


@contextmanager
def flood(port: int) -> Iterator[None]:
    """Send what clients without the key can send, from a process of its own."""
    process = get_context("fork").Process(target=_flood, args=(port,), daemon=True)
    process.start()
    # Until the gateway has as many of its connections as it admits.
    time.sleep(3)
    try:
        yield
    finally:
        process.kill()
        process.join()


def _flood(port: int) -> None:
    held: list[socket.socket] = []
    unfinished, refused = b"GET /health HTTP/1.1\r\nUnfinished: ", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n"
    for number in range(sys.maxsize):
        connection = socket.socket()
        connection.bind((FLOOD, 0))
        connection.setblocking(False)
        connection.connect_ex((HERE, port))
        held.append(connection)
        if len(held) >= CONNECTIONS:
            with suppress(OSError):
                held.pop(0).close()
            # A thousand a second: more would measure how this machine shares its processors.
            time.sleep(0.001)
        with suppress(OSError):
            held[-2 if len(held) > 1 else -1].send(unfinished if number % 8 else refused)


@contextmanager
def gateway(directory: Path) -> Iterator[int]:
    """Run a gateway and an engine; yield the gateway's port. Raises BenchError without HAProxy."""
    program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        raise BenchError("haproxy is not installed")
    with socket.create_server((HERE, 0)) as probe:
        port = int(probe.getsockname()[1])
    listening = socket.create_server((HERE, 0), backlog=128)
    engine = get_context("fork").Process(target=_serve, args=(listening,), daemon=True)
    engine.start()
    (directory / "key").write_text(f"{KEY}\n")
    (directory / "listener").write_text(f"{os.geteuid()} {os.fstat(listening.fileno()).st_ino}\n")
    endpoint = EndpointPlan.model_construct(
        name="main", address=HERE, port=listening.getsockname()[1], public_address="192.0.2.20",
        allowed_networks=("127.0.0.0/8",), ready_path="/health",
    )  # fmt: skip
    text = config_text(endpoint).replace("    user haproxy\n    group haproxy\n", "")
    text = text.replace(f"192.0.2.20:{endpoint.port}", f"{HERE}:{port}")
    for ours, here in {
        endpoint.key_file: directory / "key",
        engine_listener("main"): directory / "listener",
        GATEWAY_LUA: FILES / "gateway.lua",
    }.items():
        text = text.replace(ours, str(here))
    (directory / "gateway.cfg").write_text(text)
    argv = [program, "-db", "-f", str(directory / "gateway.cfg")]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
        try:
            while socket.socket().connect_ex((HERE, port)):
                if process.poll() is not None:
                    raise BenchError("haproxy does not start")
                time.sleep(0.02)
            yield port
        finally:
            process.kill()
            engine.kill()
            engine.join()


class Server(ThreadingHTTPServer):
    """Says nothing of connections that the gateway gives up."""

    def handle_error(self, *_: object) -> None:
        pass


def _serve(listening: socket.socket) -> None:
    server = Server((HERE, 0), Engine, bind_and_activate=False)
    server.socket = listening
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
