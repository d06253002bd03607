"""HTTP server on loopback for tests of misbehaving servers: each path has a handler that writes raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import NamedTuple

Handler = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Request(NamedTuple):
    path: str
    host: str
    headers: dict[str, str]
    time: float


def respond(body: bytes = b"", status: str = "200 OK", delay: float = 0.0, **headers: str) -> Handler:
    """Send a valid response. `headers` change it (underscores become hyphens; Content_Length="" omits that header)."""
    lines = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)

    async def handle(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(delay)
        writer.write(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body)
        await writer.drain()

    return handle


def redirect(location: str, status: str = "302 Found") -> Handler:
    return respond(b"", status, Location=location)


def in_turn(*handlers: Handler) -> Handler:
    """Use one handler per request, and the last one for all further requests."""
    remaining = list(handlers)

    async def handle(writer: asyncio.StreamWriter) -> None:
        await (remaining.pop(0) if len(remaining) > 1 else remaining[0])(writer)

    return handle


def raw(*pieces: bytes, pause: float = 0.0, hang_up: bool = False) -> Handler:
    """Send exactly these bytes, with pauses between the pieces."""

    async def handle(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        if hang_up:
            writer.close()

    return handle


async def silent(_: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + bytes(2**16) + b"\r\n")
        await writer.drain()


async def reset(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


def once(condition: Callable[[], bool], handler: Handler) -> Handler:
    """Respond once the condition holds, so that a test depends on the order of events and not on their duration."""

    async def handle(writer: asyncio.StreamWriter) -> None:
        while not condition():
            await asyncio.sleep(0.01)
        await handler(writer)

    return handle


def together(number: int, handler: Handler) -> Handler:
    """Delay responses until `number` requests have arrived, then respond to all; repeat for further requests."""
    arrived: list[asyncio.Event] = []

    async def handle(writer: asyncio.StreamWriter) -> None:
        arrived.append(event := asyncio.Event())
        if len(arrived) == number:
            for waiting in arrived:
                waiting.set()
            arrived.clear()
        await event.wait()
        await handler(writer)

    return handle


class Server:
    """HTTP server that runs in a thread during its `with` block.

    Attributes:
        requests: all requests, in order.
        most_at_once: highest number of simultaneous requests, by Host header without port.
    """

    def __init__(self, routes: Mapping[str, Handler], addresses: tuple[str, ...] = ("127.0.0.1",)) -> None:
        self.requests: list[Request] = []
        self.most_at_once: Counter[str] = Counter()
        self._at_once: Counter[str] = Counter()
        self._routes = routes
        self._addresses = addresses
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="server")

    def url(self, path: str, host: str = "127.0.0.1", user: str = "") -> str:
        return f"http://{user}{host}:{self.port}{path}"

    @property
    def paths(self) -> Counter[str]:
        return Counter(request.path for request in self.requests)

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.port = 0
        servers = []
        for address in self._addresses:
            servers.append(await asyncio.start_server(self._connection, address, self.port, backlog=512))
            self.port = servers[0].sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        for server in servers:
            server.close()
        for _ in range(3):  # repeat for connections that were accepted just now
            connections = asyncio.all_tasks() - {asyncio.current_task()}
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)
            await asyncio.sleep(0.005)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                first = await reader.readexactly(1)
                if first == b"\x16":  # TLS
                    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    return writer.close()
                head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = dict(line.split(": ", 1) for line in head[1:] if line)
                path, host = head[0].split(" ")[1], headers["Host"].rpartition(":")[0]
                self.requests.append(Request(path, host, headers, time.monotonic()))
                self._at_once[host] += 1
                self.most_at_once[host] = max(self.most_at_once[host], self._at_once[host])
                try:
                    handler = self._routes.get(path) or self._routes.get("*") or respond(b"", "404 Not Found")
                    await self._until_gone(handler, reader, writer)
                finally:
                    self._at_once[host] -= 1
                if headers.get("Connection") == "close":
                    return writer.close()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            if not writer.is_closing():
                writer.transport.abort()

    @staticmethod
    async def _until_gone(handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Run a handler until it is done or the client closes the connection."""
        serving = asyncio.ensure_future(handler(writer))
        while not serving.done():
            await asyncio.wait([serving], timeout=0.02)
            if reader.at_eof():
                serving.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                    await serving
                return
        serving.result()
