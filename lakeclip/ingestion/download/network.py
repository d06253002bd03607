"""HTTP client for untrusted URLs: it never connects to private addresses."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from lakeclip.ingestion.download.options import DownloadOptions

#: Number of simultaneous name lookups.
_LOOKUPS = 64
#: Seconds for which the address of a name is cached.
_DNS_CACHE_SECONDS = 60

_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class RefusedError(OSError):
    """A connection to this machine or its private network was refused."""


class HungUpError(aiohttp.ClientConnectionError):
    """The server closed a new connection before it answered."""


def is_public(address: str) -> bool:
    """Return whether an IP address is a public unicast address.

    Private, loopback, link-local, shared (carrier-grade NAT), multicast, reserved and unspecified addresses are not
    public, nor are IPv6 addresses that embed one of these (mapped, 6to4, NAT64).
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if embedded is None:
            return ip in _UNICAST and ip.is_global
        ip = embedded
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def open_session(options: DownloadOptions, allowed: Callable[[str], bool]) -> aiohttp.ClientSession:
    """Open a client without cookies, proxies and decompression. Call this, and close the client, in a running loop.

    Compressed bodies are neither requested nor decompressed, which rules out decompression bombs: a body that is
    compressed nevertheless is not an image.

    Args:
        options: options; only `user_agent` is used here.
        allowed: function that tells whether an IP address may be connected to. It is called when a socket is created,
            so that no name, redirect or change of a name's address circumvents it.
    """

    def open_socket(info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, address = info
        check_address(str(address[0]), allowed)
        return socket.socket(family, kind, protocol)

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,  # `Hosts` limits the connections
            resolver=_Resolver(allowed),
            ttl_dns_cache=_DNS_CACHE_SECONDS,
            socket_factory=open_socket,
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": options.user_agent, "Accept": "image/*, */*;q=0.5", "Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        auto_decompress=False,
        middlewares=(_send_once,),
        trace_configs=[trace],
    )


async def _send_once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Send a request once, not counting connections that were kept open and that the server has closed meanwhile.

    By itself aiohttp sends a GET a second time after some errors of new connections too, depending on when it notices
    them. Such a request would not be counted as an attempt, and would not keep the distance between requests to a host.

    Raises:
        HungUpError: the server closed a new connection before it answered.
    """
    while True:
        connection = _Connection()
        _connection.set(connection)
        try:
            return await send(request)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, ConnectionError) as error:
            if not connection.is_reused:
                raise HungUpError(*error.args) from error


class _Connection:
    """Connection of the request that the current task sends."""

    is_reused = False


_connection: ContextVar[_Connection] = ContextVar("connection")


async def _note_reuse(*_: object) -> None:
    _connection.get().is_reused = True


def check_address(address: str, allowed: Callable[[str], bool]) -> None:
    """Raise a `RefusedError` if an IP address may not be connected to."""
    if not allowed(address.partition("%")[0]):
        raise RefusedError(f"private address ({address})")


class _Resolver(AbstractResolver):
    """Resolver that calls the system's resolver in daemon threads.

    A lookup can take half a minute to fail and cannot be cancelled; asyncio's own threads would delay the exit of the
    program.
    """

    def __init__(self, allowed: Callable[[str], bool]) -> None:
        self._allowed = allowed
        self._free = asyncio.Semaphore(_LOOKUPS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Any]] = loop.create_future()

        def deliver(outcome: list[Any] | OSError) -> None:
            self._free.release()
            if answer.done():
                return
            if isinstance(outcome, OSError):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

        def look_up() -> None:
            outcome: list[Any] | OSError
            try:
                outcome = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            except OSError as error:
                outcome = error
            except UnicodeError:  # for example a label of more than 63 characters
                outcome = socket.gaierror(socket.EAI_NONAME, "not a name")
            with contextlib.suppress(RuntimeError):  # the loop has ended in the meantime
                loop.call_soon_threadsafe(deliver, outcome)

        await self._free.acquire()
        threading.Thread(target=look_up, name="look up", daemon=True).start()
        addresses: list[ResolveResult] = []
        refused: RefusedError | None = None
        for kind, _, protocol, _, address in await answer:
            try:
                check_address(address[0], self._allowed)
            except RefusedError as error:
                refused = error
                continue
            addresses.append(
                {
                    "hostname": host,
                    "host": address[0],
                    "port": port,
                    "family": kind,
                    "proto": protocol,
                    "flags": socket.AI_NUMERICHOST,
                }
            )
        if not addresses and refused is not None:
            raise refused
        return addresses

    async def close(self) -> None:
        """Do nothing: lookups end by themselves."""
