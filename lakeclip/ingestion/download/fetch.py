"""Download of one URL, with redirects and retries. A `data:` URI is decoded without a request."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import random
import socket
import ssl
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

import aiohttp
from yarl import URL

from lakeclip.ingestion.download.address import AddressError, decode_data_uri, is_data_uri, join_address, parse_address
from lakeclip.ingestion.download.hosts import DOWN_AFTER, Hosts
from lakeclip.ingestion.download.memory import Reservation
from lakeclip.ingestion.download.network import HungUpError, RefusedError, check_address
from lakeclip.ingestion.download.options import DownloadOptions

MAX_REDIRECTS = 5
#: Longest pause in seconds that a host may request (Retry-After); after a longer one there are no retries.
LONGEST_PAUSE = 30.0
#: Seconds before the second attempt; doubled for each further one.
_FIRST_PAUSE = 0.5
#: Bytes reserved before a request. Most files are smaller, and need not wait for memory during the download.
_FIRST_RESERVATION = 2**18

_OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
#: Directives of X-Robots-Tag that have a value; any other colon follows the name of a robot.
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


class DownloadError(Exception):
    """A download failed.

    Args:
        reason: "kind" or "kind: detail". It never contains the URL, which may hold a password, or text from the server.
        temporary: whether a retry may succeed.
        host_failed: whether other requests to the host would probably fail now, too.
        pause: seconds for which the host asks to get no requests.
        refused: whether no request was sent because the host has a private address.
    """

    def __init__(
        self,
        reason: str,
        *,
        temporary: bool = False,
        host_failed: bool = False,
        pause: float = 0.0,
        refused: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.temporary = temporary
        self.host_failed = host_failed
        self.pause = pause
        self.refused = refused


class _HostDownError(DownloadError):
    """No request was sent, because the host is down."""


class _OutOfMemoryError(Exception):
    """A download timed out while it waited for memory, which is not a failure of the host."""


class Fetcher:
    """Downloader with redirects and retries.

    Args:
        session: HTTP client; see `network.open_session`.
        options: limits of the downloads.
        allowed: function that tells whether an IP address may be connected to.
    """

    def __init__(
        self, session: aiohttp.ClientSession, options: DownloadOptions, allowed: Callable[[str], bool]
    ) -> None:
        self._session = session
        self._options = options
        self._allowed = allowed
        self._hosts = Hosts(options)

    async def fetch(self, address: str, memory: Reservation) -> bytes:
        """Download a URL and return the body.

        Args:
            address: the URL.
            memory: memory of the download; it grows to at least the size of the body.

        Raises:
            DownloadError: there is no body.
        """
        if is_data_uri(address):
            return await self._decode(address, memory)
        url = _parse(address)
        attempt, need = 0, min(_FIRST_RESERVATION, self._options.max_bytes)
        reported: DownloadError | None = None
        while True:
            await memory.grow(need)  # before the request slot, so that waiting does not block other downloads
            try:
                return await self._attempt(url, memory)
            except _OutOfMemoryError:
                need = memory.requested
            except DownloadError as failure:
                if reported is None or not isinstance(failure, _HostDownError):
                    reported = failure
                if not failure.temporary or attempt == self._options.retries:
                    raise reported from None
                await asyncio.sleep(_FIRST_PAUSE * 2**attempt * random.uniform(0.75, 1.25))
                attempt += 1

    async def _decode(self, address: str, memory: Reservation) -> bytes:
        """Decode a `data:` URI."""
        await memory.grow(min(len(address), self._options.max_bytes))
        try:
            data = decode_data_uri(address)
        except AddressError as error:
            raise DownloadError(f"bad address: {error}") from None
        if len(data) > self._options.max_bytes:
            raise self._too_large()
        return data

    def _too_large(self) -> DownloadError:
        return DownloadError(f"too large: more than {self._options.max_bytes / 2**20:,.3g} MB")

    def _refuse_private(self, url: URL) -> None:
        """Raise at once if the host is an IP address that may not be connected to."""
        try:
            ipaddress.ip_address((url.host or "").partition("%")[0])
        except ValueError:
            return  # a name, whose addresses are checked when it has been looked up
        try:
            check_address(url.host or "", self._allowed)
        except RefusedError as error:
            raise _explain(error) from None

    async def _attempt(self, url: URL, memory: Reservation) -> bytes:
        loop = asyncio.get_running_loop()
        remaining = self._options.timeout
        for _ in range(MAX_REDIRECTS + 1):
            self._refuse_private(url)
            async with self._hosts.request_slot(url.host or "") as host:
                if host.is_down:
                    raise _HostDownError(f"host is down: {DOWN_AFTER} requests in a row failed")
                if host.refusal:
                    raise DownloadError(host.refusal, refused=True)
                started = loop.time()
                try:
                    answer = await asyncio.wait_for(self._get(url, memory, is_last=host.users == 1), remaining)
                except Exception as error:
                    if isinstance(error, asyncio.TimeoutError) and memory.requested > memory.held:
                        raise _OutOfMemoryError from None
                    failure = error if isinstance(error, DownloadError) else _explain(error)
                    if failure.refused:
                        host.refuse(failure.reason)
                    host.record(failed=failure.host_failed)
                    host.pause(failure.pause)
                    raise failure from None
                host.record(failed=False)
                remaining -= loop.time() - started
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise DownloadError(f"redirects: more than {MAX_REDIRECTS}")

    async def _get(self, url: URL, memory: Reservation, *, is_last: bool) -> bytes | URL:
        """Return the body, or the target of a redirect. After the last request to a host the connection is closed."""
        options = self._options
        headers = {"Connection": "close"} if is_last else {}
        async with self._session.get(url, headers=headers, allow_redirects=False) as response:
            if response.status in (301, 302, 303, 307, 308) and "Location" in response.headers:
                return _parse(response.headers["Location"], url)
            if response.status not in (200, 203):
                raise _status_error(response.status, response.headers.get("Retry-After", ""))
            if options.respect_opt_out:
                tags = response.headers.getall("X-Robots-Tag", [])
                if directive := opt_out(tags, options.user_agent):
                    raise DownloadError(f"opted out: {directive}")
            size = response.content_length or 0
            body = bytearray()
            if size <= options.max_bytes:
                await memory.grow(size)
                async for chunk in response.content.iter_any():
                    size = len(body) + len(chunk)
                    if size > options.max_bytes:
                        break
                    if size > memory.held:
                        await memory.grow(min(2 * size, options.max_bytes))
                    body += chunk
            if size > options.max_bytes:
                response.close()
                raise self._too_large()
            return bytes(body)


def opt_out(tags: Sequence[str], user_agent: str) -> str:
    """Return the directive of X-Robots-Tag headers that forbids training on a response, or "".

    Args:
        tags: values of the headers: "noai, noindex", or "robot: noai" for one robot only.
        user_agent: our User-Agent header.
    """
    for tag in tags:
        robot = ""
        for part in tag.lower().split(","):
            name, colon, rest = part.partition(":")
            if colon and name.strip() not in _VALUED:
                robot, part = name.strip(), rest
            if part.strip() in _OPT_OUTS and robot in user_agent.lower():
                return part.strip()
    return ""


def _parse(address: str, base: URL | None = None) -> URL:
    """Parse and check a URL, or a redirect from `base` (from https to http is allowed, as no secrets are sent)."""
    try:
        return parse_address(address) if base is None else join_address(base, address)
    except AddressError as error:
        raise DownloadError(f"{'bad address' if base is None else 'bad redirect'}: {error}") from None


def _status_error(status: int, retry_after: str) -> DownloadError:
    reason = f"HTTP {status}"
    pause = _seconds(retry_after) if status in (429, 503) else 0.0
    if pause > LONGEST_PAUSE:
        return DownloadError(reason, host_failed=True)
    return DownloadError(
        reason, temporary=status in (408, 425, 429) or status >= 500, host_failed=status in (429, 503), pause=pause
    )


def _seconds(retry_after: str) -> float:
    if retry_after.strip().isdecimal():
        return float(retry_after[:9])
    try:
        return (parsedate_to_datetime(retry_after) - datetime.now(timezone.utc)).total_seconds()
    except (TypeError, ValueError):  # neither seconds nor a date, or a date without a zone
        return 0.0


def _explain(error: Exception) -> DownloadError:
    if isinstance(error, HungUpError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(error, asyncio.TimeoutError):
        return DownloadError("timed out", temporary=True, host_failed=True)
    if isinstance(cause, RefusedError):
        return DownloadError(f"refused: {cause}", refused=True)
    if isinstance(cause, socket.gaierror):
        temporary = cause.errno == socket.EAI_AGAIN
        return DownloadError("connection failed: name not found", temporary=temporary, host_failed=True)
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError | ssl.SSLError):
        return DownloadError("connection failed: no valid certificate", host_failed=True)
    if isinstance(error, aiohttp.ClientPayloadError):
        return DownloadError("connection failed: the body was cut short", temporary=True)
    if isinstance(cause, OSError) and cause.errno:
        return DownloadError(f"connection failed: {os.strerror(cause.errno).lower()}", temporary=True, host_failed=True)
    if isinstance(error, aiohttp.ClientConnectionError):
        return DownloadError("connection failed: the server hung up", temporary=True, host_failed=True)
    if isinstance(error, ValueError):
        return DownloadError("bad address: not a URL")
    if isinstance(error, aiohttp.ClientResponseError):
        return DownloadError("bad response: not HTTP, or too much of it before the body")
    # Any other error: a single misbehaving server must not abort an ingest that takes days.
    return DownloadError(f"bad response: {type(error).__name__}")
