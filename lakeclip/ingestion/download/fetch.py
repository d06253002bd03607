"""One address to one picture, or to the reason why there is none."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
from collections.abc import Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

import aiohttp
from yarl import URL

from lakeclip.lake.download.hosts import DOWN_AFTER, Hosts
from lakeclip.lake.download.memory import Claim
from lakeclip.lake.download.network import RefusedError
from lakeclip.lake.download.options import DownloadOptions

MAX_REDIRECTS = 5
#: A host that asks for a longer pause (Retry-After) is not asked again.
LONGEST_PAUSE = 30.0
#: Seconds before the second attempt; twice that before the third, and so on.
_FIRST_PAUSE = 0.5
#: Most files are smaller than this, and never have to wait for memory once they have begun.
_FIRST_CLAIM = 2**18

_OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
#: Directives of X-Robots-Tag that have a value; before any other colon stands the name of a robot.
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


class FailedError(Exception):
    """There is no picture.

    Args:
        reason: "kind" or "kind: detail". Never the address, which may hold a password, nor words of the server.
        may_pass: whether another attempt may go better.
        busy: whether the host, too, cannot be expected to give any other file now.
        pause: seconds that the host asks to be left alone.
    """

    def __init__(self, reason: str, *, may_pass: bool = False, busy: bool = False, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.may_pass = may_pass
        self.busy = busy
        self.pause = pause


class _DownError(FailedError):
    """The host was not asked at all."""


class _NoRoomError(Exception):
    """A download waited for memory until its time was up. That is no fault of its host."""


class Fetcher:
    """Downloads, with redirects and further attempts.

    Args:
        session: see `network.open_session`.
        options: limits and manners.
    """

    def __init__(self, session: aiohttp.ClientSession, options: DownloadOptions) -> None:
        self._session = session
        self._options = options
        self._hosts = Hosts(options)

    async def fetch(self, address: str, claim: Claim) -> bytes:
        """The body that an address leads to.

        Args:
            address: a URL.
            claim: grows to hold the body, or more.

        Raises:
            FailedError: there is none.
        """
        url = _parse(address)
        attempt, need = 0, min(_FIRST_CLAIM, self._options.max_bytes)
        known: FailedError | None = None
        while True:
            await claim.grow(need)  # before it has a turn, which others can make use of meanwhile
            try:
                return await self._attempt(url, claim)
            except _NoRoomError:
                need = claim.wanted
            except FailedError as failure:
                if known is None or not isinstance(failure, _DownError):
                    known = failure
                if not failure.may_pass or attempt == self._options.retries:
                    raise known from None
                await asyncio.sleep(_FIRST_PAUSE * 2**attempt * random.uniform(0.75, 1.25))
                attempt += 1

    async def _attempt(self, url: URL, claim: Claim) -> bytes:
        loop = asyncio.get_running_loop()
        left = self._options.timeout
        for _ in range(MAX_REDIRECTS + 1):
            async with self._hosts.turn(url.host or "") as host:
                if host.down:
                    raise _DownError(f"host is down: {DOWN_AFTER} requests in a row failed")
                started = loop.time()
                try:
                    answer = await asyncio.wait_for(self._get(url, claim, last=host.users == 1), left)
                except Exception as error:
                    if isinstance(error, asyncio.TimeoutError) and claim.wanted > claim.held:
                        raise _NoRoomError from None
                    failure = error if isinstance(error, FailedError) else _explain(error)
                    host.note(failed=failure.busy)
                    host.pause(failure.pause)
                    raise failure from None
                host.note(failed=False)
                left -= loop.time() - started
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise FailedError(f"redirects: more than {MAX_REDIRECTS}")

    async def _get(self, url: URL, claim: Claim, *, last: bool) -> bytes | URL:
        """The body, or where else it is. After the last request in sight a host keeps no connection open."""
        options = self._options
        headers = {"Connection": "close"} if last else {}
        async with self._session.get(url, headers=headers, allow_redirects=False) as response:
            if response.status in (301, 302, 303, 307, 308) and "Location" in response.headers:
                return _parse(response.headers["Location"], url)
            if response.status not in (200, 203):
                raise _refusal(response.status, response.headers.get("Retry-After", ""))
            if options.respect_opt_out:
                tags = response.headers.getall("X-Robots-Tag", [])
                if directive := opt_out(tags, options.user_agent):
                    raise FailedError(f"opted out: {directive}")
            size = response.content_length or 0
            body = bytearray()
            if size <= options.max_bytes:
                await claim.grow(size)
                async for chunk in response.content.iter_any():
                    size = len(body) + len(chunk)
                    if size > options.max_bytes:
                        break
                    if size > claim.held:
                        await claim.grow(min(2 * size, options.max_bytes))
                    body += chunk
            if size > options.max_bytes:
                response.close()
                raise FailedError(f"too large: more than {options.max_bytes / 2**20:,.3g} MB")
            return bytes(body)


def opt_out(tags: Sequence[str], user_agent: str) -> str:
    """What in a response's X-Robots-Tag headers speaks against training on it; "" if nothing does.

    Args:
        tags: their values: "noai, noindex", or "robot: noai" for that robot alone.
        user_agent: what we call ourselves.
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
    """Checks an address, or a redirect from `base`: from https to http is fine, as nothing secret is sent."""
    kind = "bad address" if base is None else "bad redirect"
    try:
        url = URL(address.strip())
        if base is not None:
            url = base.join(url)
        if url.scheme not in ("http", "https"):
            raise FailedError(f"{kind}: neither http nor https")
        if not url.host:
            raise FailedError(f"{kind}: no host")
    except ValueError:
        raise FailedError(f"{kind}: not a URL") from None
    return url


def _refusal(status: int, retry_after: str) -> FailedError:
    reason = f"HTTP {status}"
    pause = _seconds(retry_after) if status in (429, 503) else 0.0
    if pause > LONGEST_PAUSE:
        return FailedError(reason, busy=True)
    return FailedError(
        reason, may_pass=status in (408, 425, 429) or status >= 500, busy=status in (429, 503), pause=pause
    )


def _seconds(retry_after: str) -> float:
    if retry_after.strip().isdecimal():
        return float(retry_after[:9])
    try:
        return (parsedate_to_datetime(retry_after) - datetime.now(timezone.utc)).total_seconds()
    except (TypeError, ValueError):  # neither seconds nor a date, or a date without a zone
        return 0.0


def _explain(error: Exception) -> FailedError:
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(error, asyncio.TimeoutError):
        return FailedError("timed out", may_pass=True, busy=True)
    if isinstance(cause, RefusedError):
        return FailedError(f"refused: {cause}")
    if isinstance(cause, socket.gaierror):
        passing = cause.errno == socket.EAI_AGAIN
        return FailedError("connection failed: name not found", may_pass=passing, busy=True)
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError | ssl.SSLError):
        return FailedError("connection failed: no valid certificate", busy=True)
    if isinstance(error, aiohttp.ClientPayloadError):
        return FailedError("connection failed: the body was cut short", may_pass=True)
    if isinstance(cause, OSError) and cause.errno:
        return FailedError(f"connection failed: {os.strerror(cause.errno).lower()}", may_pass=True, busy=True)
    if isinstance(error, aiohttp.ClientConnectionError):
        return FailedError("connection failed: the server hung up", may_pass=True, busy=True)
    if isinstance(error, ValueError):
        return FailedError("bad address: not a URL")
    if isinstance(error, aiohttp.ClientResponseError):
        return FailedError("bad response: not HTTP, or too much of it before the body")
    # Whatever else one bad server in ten million thinks of: it must not end an ingest of days.
    return FailedError(f"bad response: {type(error).__name__}")
