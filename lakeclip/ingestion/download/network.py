"""The HTTP client as it must be for addresses that strangers wrote: nothing private is ever connected to."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from lakeclip.lake.download.options import DownloadOptions

#: Names being looked up at once.
_LOOKUPS = 64
_REMEMBER_NAMES = 60

_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class RefusedError(OSError):
    """An address that leads to this machine or its private network."""


def is_public(address: str) -> bool:
    """Whether an IP address belongs to a host on the internet, and to no one else.

    Not so are private, loopback, link-local, shared (carrier-grade NAT), multicast, reserved and unspecified addresses,
    nor IPv6 addresses that carry one of these (mapped, 6to4, NAT64).
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        carried = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            carried = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if carried is None:
            return ip in _UNICAST and ip.is_global
        ip = carried
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def open_session(options: DownloadOptions, allowed: Callable[[str], bool]) -> aiohttp.ClientSession:
    """A client without cookies, proxies and decompression. To be called, and closed, in a running loop.

    Compressed bodies are neither asked for nor unpacked, so there is no bomb to go off: what comes compressed all the
    same is not an image.

    Args:
        options: only its `user_agent` is used here.
        allowed: says of an IP address whether it may be connected to. It is asked where sockets are made, so no name,
            redirect or change of a name's address gets around it.
    """

    def open_socket(info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, where = info
        _check(str(where[0]), allowed)
        return socket.socket(family, kind, protocol)

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,  # `hosts` counts
            resolver=_Resolver(allowed),
            ttl_dns_cache=_REMEMBER_NAMES,
            socket_factory=open_socket,
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": options.user_agent, "Accept": "image/*, */*;q=0.5", "Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        auto_decompress=False,
    )


def _check(address: str, allowed: Callable[[str], bool]) -> None:
    if not allowed(address.partition("%")[0]):
        raise RefusedError(f"private address ({address})")


class _Resolver(AbstractResolver):
    """Names to addresses by the system's resolver, in threads that nothing waits for.

    It can take half a minute to fail and cannot be stopped; asyncio's own threads would hold up the end of the program.
    """

    def __init__(self, allowed: Callable[[str], bool]) -> None:
        self._allowed = allowed
        self._free = asyncio.Semaphore(_LOOKUPS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Any]] = loop.create_future()

        def deliver(found: list[Any] | OSError) -> None:
            self._free.release()
            if answer.done():
                return
            if isinstance(found, OSError):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def look_up() -> None:
            found: list[Any] | OSError
            try:
                found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            except OSError as error:
                found = error
            except UnicodeError:  # a label of more than 63 characters, say
                found = socket.gaierror(socket.EAI_NONAME, "not a name")
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(deliver, found)

        await self._free.acquire()
        threading.Thread(target=look_up, name="look up", daemon=True).start()
        addresses: list[ResolveResult] = []
        refused: RefusedError | None = None
        for kind, _, protocol, _, where in await answer:
            try:
                _check(where[0], self._allowed)
            except RefusedError as error:
                refused = error
                continue
            addresses.append(
                {
                    "hostname": host,
                    "host": where[0],
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
        """Nothing to do: lookups end by themselves."""
