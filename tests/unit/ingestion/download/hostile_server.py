"""A web server on loopback that does what it likes: each path has a handler that writes raw bytes."""

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
    at: float


def respond(body: bytes = b"", status: str = "200 OK", delay: float = 0.0, **headers: str) -> Handler:
    """Well-behaved, but for what `headers` say (underscores become hyphens; Content_Length="" leaves it out)."""
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
    """One after the other, and then the last for ever."""
    left = list(handlers)

    async def handle(writer: asyncio.StreamWriter) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(writer)

    return handle


def raw(*pieces: bytes, pause: float = 0.0, hang_up: bool = False) -> Handler:
    """These bytes and no others, with pauses between them."""

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


class Server:
    """Serves in a thread while its `with` block lasts.

    Attributes:
        requests: what was asked, in order.
        most_at_once: by Host header without its port.
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
        for _ in range(3):  # also what was accepted a moment ago
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
        """A client that hangs up ends the request, also where its handler only sleeps."""
        serving = asyncio.ensure_future(handler(writer))
        while not serving.done():
            await asyncio.wait([serving], timeout=0.02)
            if reader.at_eof():
                serving.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                    await serving
                return
        serving.result()
