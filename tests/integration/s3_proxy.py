"""A TCP proxy in front of an S3 server that counts the bytes it sends and can fail. It runs as a process:

    python s3_proxy.py UPSTREAM_PORT

It prints its port. Each line of its standard input is a command, answered by one line: `pass`, `refuse` (as if the
server had died: connections are reset, new ones refused), `hang` (accept and never answer), `deny` (403 to every
request), `hold` (answer after the next command), `delay SECONDS` (before each answer) and `sent` (the bytes from server
to client since the last `sent`, then the number of requests).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

_DENIED = (
    b'<?xml version="1.0"?><Error><Code>InvalidAccessKeyId</Code><Message>The AWS Access Key Id you provided does not '
    b"exist in our records.</Message></Error>"
)
_METHODS = (b"GET ", b"PUT ", b"HEAD ", b"POST ", b"DELETE ")


class Proxy:
    """The proxy, its mode and its counters."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.mode = "pass"
        self.delay = 0.0
        self.sent = self.requests = 0
        self.writers: set[asyncio.StreamWriter] = set()
        self.server: asyncio.Server | None = None
        self.port = 0

    async def listen(self) -> None:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def set_mode(self, mode: str) -> None:
        self.mode = mode
        if mode == "refuse" and self.server is not None:
            self.server.close()
            self.server = None
        if mode not in ("pass", "hold"):
            for writer in list(self.writers):
                writer.transport.abort()
        if mode != "refuse" and self.server is None:
            await self.listen()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            if self.mode == "hang":
                while await reader.read(65536):
                    pass
            elif self.mode == "deny":
                await self.answer_denied(reader, writer)
            else:
                await self.forward(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()

    async def answer_denied(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            body = b"" if head.startswith(b"HEAD") else _DENIED
            writer.write(
                b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%b"
                % (len(_DENIED), body)
            )

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self.upstream)
        self.writers.add(to_server)

        async def up() -> None:
            while data := await reader.read(1 << 20):
                self.requests += data.startswith(_METHODS)
                to_server.write(data)
                await to_server.drain()
            to_server.close()

        async def down() -> None:
            while data := await from_server.read(1 << 20):
                while self.mode == "hold":
                    await asyncio.sleep(0.01)
                if self.delay and data.startswith(b"HTTP/"):
                    await asyncio.sleep(self.delay)
                self.sent += len(data)
                writer.write(data)
                await writer.drain()
            writer.close()

        try:
            await asyncio.gather(up(), down())
        finally:
            self.writers.discard(to_server)
            to_server.close()

    async def run_commands(self) -> None:
        commands = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        print(self.port, flush=True)  # noqa: T201
        while line := (await commands.readline()).decode().split():
            reply = "ok"
            if line[0] == "sent":
                reply = f"{self.sent} {self.requests}"
                self.sent = self.requests = 0
            elif line[0] == "delay":
                self.delay = float(line[1])
            else:
                await self.set_mode(line[0])
            print(reply, flush=True)  # noqa: T201


async def main() -> None:
    proxy = Proxy(int(sys.argv[1]))
    await proxy.listen()
    with contextlib.suppress(asyncio.CancelledError):
        await proxy.run_commands()


if __name__ == "__main__":
    assert hasattr(socket, "AF_INET")
    asyncio.run(main())
