"""Serve repositories until SIGTERM: `python -m lab.hub`."""

import argparse
import signal
import sys
from pathlib import Path

from lab.hub.faults import Faults
from lab.hub.protocol import Hub
from lab.hub.repository import Repository
from lab.hub.server import HubServer
from lab.hub.throttle import Throttle, read_rate


def _repository(text: str) -> Repository:
    place, separator, folder = text.partition("=")
    name, _, commit = place.partition("@")
    if not separator or name.count("/") != 1 or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not OWNER/NAME[@COMMIT]=FOLDER with an existing folder")
    return Repository(name, Path(folder), pinned=commit or None)


def main() -> None:
    """Parse the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m lab.hub", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--repository", type=_repository, action="append", required=True, metavar="OWNER/NAME[@COMMIT]=FOLDER"
    )
    parser.add_argument("--rate", type=int, default=0, metavar="BYTES/S", help="0: no limit")
    parser.add_argument("--rate-file", type=Path, help="overrides --rate while it exists and contains a number")
    parser.add_argument("--faults-file", type=Path, help="the faults to simulate (lab.hub.faults)")
    parser.add_argument("--journal", type=Path, help="gets one JSON line per answer")
    parser.add_argument("--xet", action="store_true", help="also announce LFS files as stored by xet")
    parser.add_argument("--version", default="", help="sent in the Server header; tells a starter what runs")
    arguments = parser.parse_args()

    def rate() -> int:
        return (read_rate(arguments.rate_file) if arguments.rate_file else 0) or arguments.rate

    address = (arguments.host, arguments.port)
    faults = Faults(arguments.faults_file)
    hub = Hub(arguments.repository, arguments.xet)
    server = HubServer(address, hub, Throttle(rate), arguments.version, faults, arguments.journal)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server.serve_forever()


if __name__ == "__main__":
    main()
