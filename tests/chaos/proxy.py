"""A small TCP proxy between workers and a broker: it passes, delays, or cuts."""

import asyncio
import contextlib
import threading
from typing import Literal

_CHUNK = 64 * 1024
#: Chunks on their way in one direction of one connection; with more, the sender is held back.
_IN_FLIGHT = 256

#: `stall`: packets vanish, so connections hang and what was sent arrives after the cut. `reset`: connections die, new ones are
#: refused.
Cut = Literal["stall", "reset"]


class Proxy:
    """Listens at `port` of this machine and passes on to `target`, in a thread of its own; `with` starts and ends it.

    Args:
        port: where it listens.
        target: the port of the broker's listener that advertises `port`.
    """

    def __init__(self, port: int, target: int) -> None:
        self._port, self._target = port, target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="chaos-proxy", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._delay = 0.0
        self.connections = 0

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self._call(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self._loop.close()

    def cut(self, how: Cut) -> None:
        """Let nothing through, until `heal`."""
        self._call(self._cut(how))

    def heal(self) -> None:
        """Pass again."""
        self._call(self._heal())

    def slow(self, seconds: float) -> None:
        """Delay what is sent from now on, in each direction."""
        self._delay = seconds

    # -- in the proxy's thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, work: "asyncio.Future[None] | object") -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10.0)  # type: ignore[arg-type]

    async def _open(self) -> None:
        self._passing = asyncio.Event()
        self._passing.set()
        await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port)

    async def _cut(self, how: Cut) -> None:
        self._passing.clear()
        if how == "reset":
            await self._end()

    async def _heal(self) -> None:
        self._passing.set()
        if not self._server.is_serving():
            await self._listen()

    async def _end(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        writers = [writer]
        try:
            await self._passing.wait()
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
            writers.append(there_writer)
            ways = [asyncio.ensure_future(self._pass(*way)) for way in ((reader, there_writer), (there_reader, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the broker is away, or the cut: the worker sees its connection end
        finally:
            self._tasks.discard(task)
            for each in writers:
                each.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction: what is read now is written when its delay is over and nothing is cut."""
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_IN_FLIGHT)

        async def deliver() -> None:
            while True:
                due, data = await on_the_way.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                await self._passing.wait()
                if not data:
                    return
                writer.write(data)
                await writer.drain()

        delivering = asyncio.ensure_future(deliver())
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(_CHUNK):
                    await on_the_way.put((self._loop.time() + self._delay, data))
            await on_the_way.put((self._loop.time() + self._delay, b""))
            await delivering
        finally:
            delivering.cancel()
            await asyncio.gather(delivering, return_exceptions=True)
