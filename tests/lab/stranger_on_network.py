"""A machine on the lab's network that no inventory names. It knocks on every port of a host until it is killed.

    python3 stranger_on_network.py LOOT ADDRESS

Appends a JSON object to LOOT for each port that let it in, and after each round how many it has tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path

SSH = 22
# All that rigup uses, and the usual ones of Docker, rsync and engines.
PORTS = (*range(1, 1025), 2375, 2376, 4443, *range(5000, 5100), *range(8000, 9100), *range(30000, 30100))
REQUEST = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
AT_ONCE = 200


async def knock(address: str, port: int, turns: asyncio.Semaphore) -> str | None:
    """Return what a port answered; None if it does not let us in."""
    async with turns:
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(address, port), 2)
        except (OSError, TimeoutError):
            return None
        answer = b""
        with contextlib.suppress(OSError, TimeoutError):
            writer.write(REQUEST)
            answer = await asyncio.wait_for(reader.read(200), 2)
        writer.close()
        return f"{port} answered {answer!r}"


async def main() -> None:
    loot, address, rounds, told = Path(sys.argv[1]), sys.argv[2], 0, set[str]()
    turns = asyncio.Semaphore(AT_ONCE)
    while True:
        answers = await asyncio.gather(*(knock(address, port, turns) for port in PORTS if port != SSH))
        rounds += 1
        entries: list[dict[str, object]] = [{"tried": {"port": rounds * len(PORTS)}}]
        for answer in {each for each in answers if each} - told:
            told.add(answer)
            entries.append({"way": "port", "what": answer})
        with loot.open("a") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)
        await asyncio.sleep(1)


if __name__ == "__main__":
    asyncio.run(main())
