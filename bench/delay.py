"""Simulate distance with TCP proxies that forward every byte half a round trip later.

The host's own response time adds to the round trip, as over a real distance.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

Address = tuple[str, int]
Pieces = asyncio.Queue[tuple[float, bytes]]


@contextmanager
def delayed(targets: Sequence[Address], round_trip_s: float) -> Iterator[list[Address]]:
    """Yield addresses on loopback, in the order of `targets`, each a proxy to its target over that distance."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    proxies = [_Proxy(target, round_trip_s) for target in targets]
    try:
        yield [asyncio.run_coroutine_threadsafe(proxy.start(), loop).result(10) for proxy in proxies]
    finally:
        for proxy in proxies:
            asyncio.run_coroutine_threadsafe(proxy.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Proxy:
    def __init__(self, target: Address, round_trip_s: float) -> None:
        self._target = target
        self._round_trip_s = round_trip_s
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> Address:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        address: Address = self._server.sockets[0].getsockname()[:2]
        return address

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            # TCP's handshake: the server has the connection one and a half round trips after the client's request.
            await asyncio.sleep(1.5 * self._round_trip_s)
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            try:
                await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))
            finally:
                far_writer.close()
        except (OSError, asyncio.CancelledError):
            # One side has disconnected; closing tells the other.
            pass
        finally:
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one direction: read at once, write when it is due."""
        loop = asyncio.get_running_loop()
        pieces: Pieces = asyncio.Queue()
        deliver = asyncio.create_task(self._deliver(pieces, writer))
        try:
            while True:
                data = await reader.read(1 << 16)
                pieces.put_nowait((loop.time() + self._round_trip_s / 2, data))
                if not data:
                    break
            await deliver
        finally:
            deliver.cancel()

    @staticmethod
    async def _deliver(pieces: Pieces, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await pieces.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
