"""Downloads from a local server: failures, private addresses, retries, rate limits, memory and shrinking."""

from __future__ import annotations

import asyncio
import gzip
import io
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from lakeclip.errors import ConfigError
from lakeclip.ingestion.download import fetch, hosts, stream
from lakeclip.ingestion.download.fetch import LONGEST_PAUSE, Fetcher, opt_out
from lakeclip.ingestion.download.hosts import DOWN_AFTER
from lakeclip.ingestion.download.memory import Reservation
from lakeclip.ingestion.download.network import is_public
from lakeclip.ingestion.download.options import DownloadOptions
from lakeclip.ingestion.download.shrink import check_and_shrink
from lakeclip.ingestion.download.stream import Downloads
from lakeclip.ingestion.sources.base import Sample, Samples, Source
from lakeclip.lake.folder.records import Rejected
from tests.unit.ingestion.download.hostile_server import (
    Handler,
    Server,
    endless,
    in_turn,
    once,
    raw,
    redirect,
    reset,
    respond,
    silent,
    together,
)
from tests.unit.lake.sample_files import picture, sample

JPG = picture(1)
HTML = b"<!doctype html><title>Moved</title>"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Shorten the pauses between attempts; fail if a test leaves a thread behind."""
    monkeypatch.setattr(fetch, "_FIRST_PAUSE", 0.01)
    before = set(threading.enumerate())
    yield
    assert not [thread for thread in threading.enumerate() if thread not in before and thread.name != "look up"]


def options(**changes: Any) -> DownloadOptions:
    return DownloadOptions(**{"allow_private": True, "per_host_rate": 0.0, "timeout": 5.0, **changes})


def rows(*urls: str) -> Samples:
    return Samples("a list", [Sample(str(i), b"", ("a cat",), {"n": i}, url) for i, url in enumerate(urls)], len(urls))


def download(*urls: str, allowed: Callable[[str], bool] | None = None, **changes: Any) -> list[bytes | str]:
    """Download each URL and return the image or the reason of the failure."""
    downloads = Downloads(rows(*urls), options(**changes))
    if allowed is not None:
        downloads._allowed = allowed
    samples = [item for item in downloads if isinstance(item, Sample)]
    assert [item.key for item in samples] == [str(i) for i in range(len(urls))]
    assert all(bool(item.image) != bool(item.unusable) for item in samples)
    return [item.image or item.unusable for item in samples]


class SourceWithParts(Samples):
    """Source with a part for every two samples."""

    def __iter__(self) -> Iterator[Sample | Rejected]:
        for number, item in enumerate(super().__iter__()):
            self.part = f"part{number // 2}"
            yield item
            if number % 2:
                self.completed.append((self.part, number))


def test_urls_become_images_and_other_items_are_unchanged() -> None:
    pictures = [picture(i) for i in range(8)]
    routes = {f"/{i}": respond(pictures[i], delay=0.05 * (i % 3 == 0)) for i in range(8)}
    with Server(routes) as server:
        items: list[Sample | Rejected] = []
        for i in range(8):
            items.append(Sample(f"k{i}", b"", ("a cat",), {"n": i, "url": server.url(f"/{i}")}, server.url(f"/{i}")))
        items[2:2] = [sample(3), Rejected("x", "no caption")]
        items.append(Sample("last", b"", ("a dog",), {}))
        source = Downloads(SourceWithParts("parts", items, len(items)), options())
        assert isinstance(source, Source)
        found = [(source.part, source.position, item) for item in source]
    assert [item for _, _, item in found] == [
        item._replace(image=pictures[int(item.key[1:])]) if isinstance(item, Sample) and item.url else item
        for item in items
    ]
    assert [(part, position) for part, position, _ in found] == [(f"part{n // 2}", n + 1) for n in range(len(items))]
    assert (source.name, source.size, source.position) == ("parts", len(items), len(items))
    assert [name for name, _ in source.completed] == [f"part{n}" for n in range(len(items) // 2)]


def test_failed_downloads_have_a_reason() -> None:
    bomb = bytearray(JPG)
    size = bomb.index(b"\xff\xc0") + 5
    bomb[size : size + 4] = struct.pack(">HH", 60_000, 60_000)
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(b"x")]
    png = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    short = b"HTTP/1.1 200 OK\r\nContent-Length: 300\r\nConnection: close\r\n\r\n"
    routes: dict[str, tuple[Handler, str, int]] = {
        "/gone": (respond(b"", "404 Not Found"), "HTTP 404", 1),
        "/nothing": (respond(b"", "204 No Content"), "HTTP 204", 1),
        "/empty": (respond(b""), "empty file", 1),
        "/html": (respond(HTML, Content_Type="image/jpeg"), "not an image", 1),
        "/svg": (respond(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "not an image", 1),
        "/bomb.jpg": (respond(bytes(bomb)), "too large: more than 179 million pixels", 1),
        "/bomb.png": (respond(b"\x89PNG\r\n\x1a\n" + png), "too large: more than 179 million pixels", 1),
        "/bomb.gz": (respond(gzip.compress(bytes(2**24)), Content_Encoding="gzip"), "not an image", 1),
        "/large": (respond(b"x", Content_Length=str(2**40)), "too large: more than 1 MB", 1),
        "/endless": (endless, "too large: more than 1 MB", 1),
        "/short": (raw(short + JPG[:300], JPG[300:], pause=0.1), "broken image", 1),
        "/cut": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + JPG, hang_up=True), "connection failed", 2),
        "/reset": (reset, "connection failed", 2),
        "/status": (respond(b"", "500 Oops"), "HTTP 500", 2),
        "/long-head": (respond(b"", X=("x" * 2**20)), "bad response", 1),
        "/garbage": (raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n", hang_up=True), "bad response", 1),
        "/loop": (redirect("/loop"), "redirects: more than 5", 6),
        "/file": (redirect("file:///etc/passwd"), "bad redirect: neither http nor https", 1),
        "/mixed-up": (redirect("http://[/"), "bad redirect: not a URL", 1),
        "/no-location": (respond(b"", "302 Found"), "HTTP 302", 1),
    }
    check_reasons(routes, timeout=60.0)


def test_slow_responses_time_out() -> None:
    """Servers that send nothing, or one byte at a time."""
    routes: dict[str, tuple[Handler, str, int]] = {
        "/silent": (silent, "timed out", 2),
        "/drip": (raw(b"HTTP/1.1 200 OK\r\n\r\n", *[b"x"] * 500, pause=0.05), "timed out", 2),
        "/slow-head": (raw(b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 500, pause=0.05), "timed out", 2),
    }
    check_reasons(routes, timeout=1.5)


def check_reasons(routes: dict[str, tuple[Handler, str, int]], timeout: float) -> None:
    """Assert that each path fails with the expected reason after the expected number of attempts."""
    addresses = tuple(
        f"127.0.0.{number}" for number in range(1, len(routes) + 1)
    )  # one each, so that no connection is reused
    with Server({path: handler for path, (handler, _, _) in routes.items()}, addresses) as server:
        urls = map(server.url, routes, addresses)
        found = download(*urls, timeout=timeout, retries=1, max_bytes=2**20)
        attempts = dict(server.paths)
    unexpected = {
        path: (reason, attempts[path])
        for (path, (_, kind, count)), reason in zip(routes.items(), map(str, found), strict=True)
        if not reason.startswith(kind) or attempts[path] != count
    }
    assert not unexpected


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("", ""),
        ("cat.jpg", "bad address: neither http nor https"),
        ("ftp://127.0.0.1/cat.jpg", "bad address: neither http nor https"),
        ("file:///etc/passwd", "bad address: neither http nor https"),
        ("data:image/png;base64,AAAA", "not an image"),
        ("data:image/png;base64", "bad address: no content in the data: URI"),
        ("data:image/png;base64,A$A", "bad address: broken base64 in the data: URI"),
        ("http://", "bad address"),
        ("http://[::1", "bad address: not a URL"),
        ("http://127.0.0.1:99999/", "bad address: not a URL"),
        ("http://user:secret@127.0.0.1:1/x", "connection failed: connection refused"),
        (f"http://user:secret@{'a' * 64}.invalid/x", ""),
        ("https://user:secret@127.0.0.1:PORT/", "connection failed"),  # no TLS there
        ("http://exa mple.invalid\r\nX: y/", "bad address"),
    ],
)
def test_invalid_urls_have_a_reason_that_does_not_contain_them(address: str, reason: str) -> None:
    with Server({"*": respond(JPG)}) as server:
        items = list(Downloads(rows(address.replace("PORT", str(server.port))), options(retries=0)))
    assert isinstance(items[0], Sample)
    assert items[0].image == b""
    assert items[0].unusable.startswith(reason)
    assert bool(items[0].unusable) == bool(address)
    assert "secret" not in items[0].unusable


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
        *("0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1", "203.0.113.9"),
        *("::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "100::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1"),
        *("64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a00:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
    ],
)
def test_private_addresses(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "172.32.0.1", "::ffff:8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1"],
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "LOCALHOST"])
def test_private_addresses_are_refused_unless_allowed(host: str) -> None:
    with Server({"*": respond(JPG)}) as server:
        (refused,) = download(server.url("/x", host, "user:secret@"), allow_private=False)
        assert str(refused).startswith("refused: private address (")
        assert "secret" not in str(refused)
        assert not server.requests


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1"])
def test_other_notations_of_private_addresses_are_refused(host: str) -> None:
    with Server({"*": respond(JPG)}) as server:
        (reason,) = download(server.url("/x", host), allow_private=False)
        assert str(reason).startswith(("refused", "bad address"))
        assert not server.requests


def test_a_redirect_to_a_private_address_is_refused() -> None:
    routes: dict[str, Handler] = {"/secret": respond(JPG)}
    with Server(routes, ("127.0.0.1", "127.0.0.2")) as server:
        routes["/a"] = redirect(server.url("/secret", "127.0.0.2"))
        routes["/b"] = redirect(server.url("/secret"))
        found = download(server.url("/a"), server.url("/b"), allowed=lambda address: address == "127.0.0.1")
        assert found == ["refused: private address (127.0.0.2)", JPG]
        assert {request.host for request in server.requests} == {"127.0.0.1"}
        assert server.paths["/a"] == 1, "there was a retry"


def test_the_address_is_checked_again_when_connecting() -> None:
    """An address may be allowed when its name is looked up and refused when the socket is created."""
    checked: list[str] = []

    def allowed(address: str) -> bool:
        checked.append(address)
        return len(checked) <= looked_up

    looked_up = len({info[4][0] for info in socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)})
    with Server({"*": respond(JPG)}) as server:
        (reason,) = download(server.url("/x", "localhost"), allowed=allowed)
        assert str(reason).startswith(("refused: private address", "connection failed"))
        assert len(checked) > looked_up
        assert not server.requests


def test_ipv6() -> None:
    try:
        server = Server({"*": respond(JPG)}, ("::1",))
        with server:
            assert download(server.url("/x", "[::1]")) == [JPG]
    except AssertionError:
        pytest.skip("this machine has no IPv6")


def test_redirects_carry_neither_passwords_nor_cookies() -> None:
    routes: dict[str, Handler] = {"/there": respond(JPG)}
    with Server(routes, ("127.0.0.1", "127.0.0.2")) as server:
        location = server.url("/there", "127.0.0.2")
        routes["/a"] = respond(b"", "301 Moved", Location=location, Set_Cookie="id=1")
        urls = [server.url("/a", user="user:secret@")] * 2
        assert download(*urls, per_host=1) == [JPG, JPG]
        first, second = (
            [request.headers for request in server.requests if request.path == path] for path in ("/a", "/there")
        )
    assert all("Authorization" in headers for headers in first)
    assert not any("Authorization" in headers for headers in second)
    assert not any("Cookie" in headers for headers in first + second)
    assert all(headers["Accept-Encoding"] == "identity" for headers in first + second)


def test_proxy_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with Server({"*": respond(JPG)}) as server:
        assert download(server.url("/x")) == [JPG]


def test_temporary_errors_are_retried() -> None:
    cut = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + JPG[:50], hang_up=True)
    routes = {
        "/busy": in_turn(respond(b"", "429 Too Many Requests"), respond(JPG)),
        "/past": in_turn(respond(b"", "503 x", Retry_After="Mon, 01 Jan 2001 00:00:00 GMT"), respond(JPG)),
        "/soon": in_turn(respond(b"", "503 x", Retry_After="soon"), respond(JPG)),
        "/broken": in_turn(respond(b"", "502 Bad Gateway"), cut, respond(JPG)),
        "/reset": in_turn(reset, reset, respond(JPG)),
        "/down": respond(b"", "503 Service Unavailable"),
    }
    addresses = tuple(
        f"127.0.0.{number}" for number in range(1, len(routes) + 1)
    )  # one each, so that no connection is reused
    with Server(routes, addresses) as server:
        found = download(*map(server.url, routes, addresses), retries=2, timeout=60.0)
        assert found == [JPG] * 5 + ["HTTP 503"]
        assert [server.paths[path] for path in routes] == [2, 2, 2, 3, 3, 3]


def test_a_stale_connection_does_not_count_as_an_attempt() -> None:
    """The server closes each connection after its response, without notice, while the next request arrives."""

    async def respond_and_hang_up(writer: asyncio.StreamWriter) -> None:
        await respond(JPG)(writer)
        await asyncio.sleep(0.02)
        writer.transport.abort()

    with Server({"*": respond_and_hang_up}) as server:
        urls = [server.url(f"/{number}") for number in range(40)]
        assert download(*urls, retries=0, timeout=60.0) == [JPG] * 40


def test_a_timeout_is_retried() -> None:
    with Server({"/silent": in_turn(silent, respond(JPG))}) as server:
        assert download(server.url("/silent"), retries=2, timeout=1.5) == [JPG]
        assert server.paths["/silent"] == 2


def test_retry_after_delays_all_requests_to_the_host() -> None:
    routes = {
        "/a": in_turn(respond(b"", "429 Too Many Requests", Retry_After="1"), respond(JPG)),
        "/b": respond(JPG),
    }
    with Server(routes) as server:
        assert download(server.url("/a"), server.url("/b"), per_host=1) == [JPG, JPG]
        first, *later = [request.time for request in server.requests]
    assert all(started - first > 0.95 for started in later)


@pytest.mark.parametrize("pause", [str(int(LONGEST_PAUSE) + 1), "Fri, 31 Dec 2100 23:59:59 GMT", "9" * 400])
def test_a_long_retry_after_is_not_retried(pause: str) -> None:
    with Server({"/a": respond(b"", "429 Too Many Requests", Retry_After=pause)}) as server:
        assert download(server.url("/a")) == ["HTTP 429"]
        assert server.paths["/a"] == 1


def test_requests_to_a_host_that_is_down_stop() -> None:
    with Server({"*": silent}, ("127.0.0.1", "127.0.0.2")) as server:
        urls = [server.url(f"/{i}") for i in range(200)]
        found = download(*urls, timeout=0.3, retries=1)
        assert 0 < len(server.requests) <= DOWN_AFTER + 4
    assert set(found) == {"timed out", f"host is down: {DOWN_AFTER} requests in a row failed"}
    assert found[-1] != "timed out"


def test_requests_to_a_host_resume_later(monkeypatch: pytest.MonkeyPatch) -> None:
    finished, ahead = threading.Semaphore(0), 0.0
    fetch_one = Fetcher.fetch

    async def fetch_and_count(fetcher: Fetcher, address: str, memory: Reservation) -> bytes:
        try:
            return await fetch_one(fetcher, address, memory)
        finally:
            finished.release()

    def list_with_a_pause() -> Iterator[Sample]:
        nonlocal ahead
        for number in range(30):
            if number == 20:
                assert all(finished.acquire(timeout=60) for _ in range(20))
                ahead = hosts.DOWN_FOR
            yield Sample(str(number), b"", (), {}, server.url(f"/{number}"))

    monkeypatch.setattr(Fetcher, "fetch", fetch_and_count)
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda _: time.monotonic() + ahead)
    with Server({"*": in_turn(*[respond(b"", "503 Busy")] * DOWN_AFTER, respond(JPG))}) as server:
        source = Samples("list", list_with_a_pause(), 30)
        found = [
            item.unusable for item in Downloads(source, options(per_host=1, retries=0)) if isinstance(item, Sample)
        ]
    down = f"host is down: {DOWN_AFTER} requests in a row failed"
    assert found == ["HTTP 503"] * DOWN_AFTER + [down] * (20 - DOWN_AFTER) + [""] * 10


def test_simultaneous_requests_per_host() -> None:
    with Server({"*": together(6, respond(JPG, delay=0.03))}, ("127.0.0.1", "127.0.0.2")) as server:
        urls = [server.url(f"/{i}", host) for i in range(24) for host in ("127.0.0.1", "127.0.0.2")]
        assert set(download(*urls, per_host=3, timeout=60.0)) == {JPG}
        assert server.most_at_once == {"127.0.0.1": 3, "127.0.0.2": 3}


class InstantLoop(asyncio.SelectorEventLoop):
    """Event loop whose clock does not wait: it jumps to the time of the next timer."""

    def __init__(self) -> None:
        self._clock = 0.0
        super().__init__()
        select = self._selector.select  # type: ignore[attr-defined]

        def jump(timeout: float | None = None) -> object:
            self._clock += timeout or 0.0
            return select(0)

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._clock


def test_request_rate_per_host() -> None:
    """Requests to the same host start 40 ms apart, and no host waits for another."""
    started: dict[str, list[float]] = {"one": [], "two": []}

    async def send_request(all_hosts: hosts.Hosts, name: str) -> None:
        async with all_hosts.request_slot(name):
            started[name].append(asyncio.get_running_loop().time())
            await asyncio.sleep(0.01)

    async def send_all() -> None:
        all_hosts = hosts.Hosts(options(per_host_rate=25))
        await asyncio.gather(*(send_request(all_hosts, name) for _ in range(10) for name in started))

    loop = InstantLoop()
    loop.run_until_complete(send_all())
    loop.close()
    for times in started.values():
        assert times == pytest.approx([number / 25 for number in range(10)])


def test_downloads_respect_the_request_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[hosts.Host, list[float]] = {}
    pause = hosts.Host.pause

    def record(host: hosts.Host, seconds: float) -> None:
        if seconds == 1 / 25:
            started.setdefault(host, []).append(asyncio.get_running_loop().time())
        pause(host, seconds)

    monkeypatch.setattr(hosts.Host, "pause", record)
    with Server({"*": respond(JPG)}, ("127.0.0.1", "127.0.0.2")) as server:
        urls = [server.url(f"/{i}", host) for i in range(10) for host in ("127.0.0.1", "127.0.0.2")]
        assert set(download(*urls, per_host_rate=25, timeout=60.0)) == {JPG}
    assert [len(times) for times in started.values()] == [10, 10]
    for times in started.values():
        assert all(later - earlier >= 1 / 25 - 1e-6 for earlier, later in itertools.pairwise(times))


def test_simultaneous_requests_in_total() -> None:
    addresses = tuple(f"127.0.0.{n}" for n in range(1, 5))
    routes = {"*": together(64, respond(JPG, delay=0.05))}
    with Server(routes, addresses) as server:
        urls = [server.url(f"/{i}", host) for i in range(48) for host in addresses]
        assert set(download(*urls, concurrency=64, per_host=16, timeout=60.0)) == {JPG}
        assert set(server.most_at_once.values()) == {16}
        server.most_at_once.clear()
        routes["*"] = respond(JPG, delay=0.05)
        download(*urls[:32], concurrency=2, per_host=2)
        assert sum(server.most_at_once.values()) <= 2 * len(addresses)
        assert max(server.most_at_once.values()) <= 2


def test_a_slow_host_does_not_delay_others() -> None:
    """The slow host responds only after all requests to the other one have arrived."""
    routes = {"/slow": once(lambda: len(server.requests) == 301, respond(JPG)), "*": respond(JPG)}
    with Server(routes, ("127.0.0.1", "127.0.0.2")) as server:
        urls = [server.url("/slow"), *(server.url(f"/{i}", "127.0.0.2") for i in range(300))]
        assert set(download(*urls, timeout=60.0)) == {JPG}


def test_read_ahead_is_limited_to_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "WINDOW", 10)
    read = 0

    def endless_list() -> Iterator[Sample]:
        nonlocal read
        for read in itertools.count(1):
            yield Sample(str(read), b"", (), {}, server.url(f"/{read}"))

    with Server({"/1": once(lambda: read >= 10, respond(JPG, delay=0.05)), "*": respond(JPG)}) as server:
        found = iter(Downloads(Samples("endless", endless_list(), 0), options(timeout=60.0)))
        assert isinstance(item := next(found), Sample)
        assert item.image == JPG
        assert read == 10
        found.close()  # type: ignore[attr-defined]


def test_images_from_the_source_are_buffered_within_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_SOURCE_BYTES", 10 * len(JPG))
    read = 0

    def mixed() -> Iterator[Sample]:
        nonlocal read
        yield Sample("slow", b"", (), {}, server.url("/slow"))
        for read in range(1, 200):
            yield Sample(str(read), JPG, (), {})

    with Server({"/slow": once(lambda: read >= 11, respond(JPG, delay=0.05))}) as server:
        found = iter(Downloads(Samples("mixed", mixed(), 0), options(timeout=60.0)))
        next(found)
        assert read == 11
        assert len(list(found)) == 199


#: VmHWM instead of `getrusage`, whose peak is inherited from pytest across exec.
MEMORY_SCRIPT = """
import re, sys, time
from lakeclip.ingestion.download import stream
from lakeclip.ingestion.download.options import DownloadOptions
from lakeclip.ingestion.download.stream import Downloads
from lakeclip.ingestion.sources.base import Sample, Samples

def peak():
    return int(re.findall(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[0])

url, count = sys.argv[1], 200
stream.MEMORY = 24 * 2**20
options = DownloadOptions(allow_private=True, per_host=64, per_host_rate=0, max_bytes=4 * 2**20, timeout=60)
samples = [Sample(name, b"", (), {}, url + name) for name in ("slow", *map(str, range(count)))]
found = iter(Downloads(Samples("list", samples[:1], 0), options))
list(found)
before = peak()
good = sum(len(item.image) > 2**20 for item in Downloads(Samples("list", samples, 0), options))
print(good, (peak() - before) // 1024)
"""


def test_memory_is_bounded_while_large_files_wait_for_a_slow_one() -> None:
    large = picture(1, "BMP", size=(1000, 1000))
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (large[:1_000_000], large[1_000_000:]))
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    routes = {"/slow": respond(JPG, delay=0.5), "*": raw(head + chunked + b"0\r\n\r\n")}
    with Server(routes) as server:
        output = subprocess.run(
            [sys.executable, "-W", "error", "-c", MEMORY_SCRIPT, server.url("/")],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        good, megabytes = map(int, output.stdout.split())
    assert good == 200
    assert megabytes < 160, "600 MB were downloaded, of which at most 24 may be buffered"


def test_the_next_download_never_waits_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads that wait for memory take all slots of the second host, and the first download needs one too."""
    monkeypatch.setattr(stream, "MEMORY", 2**20)
    large = picture(1, "BMP", size=(600, 500))
    routes = {"*": respond(large)}
    with Server(routes, ("127.0.0.1", "127.0.0.2")) as server:
        routes["/first"] = respond(b"", "302 Found", delay=0.2, Location=server.url("/0", "127.0.0.2"))
        urls = [server.url("/first"), *(server.url(f"/{i}", "127.0.0.2") for i in range(1, 12))]
        assert download(*urls, per_host=2, timeout=1.5, retries=0) == [large] * 12
        assert len(server.requests) <= 13 + 4, "downloads that waited for memory too long are requested once more"


EXIT_SCRIPT = """
import sys
from lakeclip.ingestion.download.options import DownloadOptions
from lakeclip.ingestion.download.stream import Downloads
from lakeclip.ingestion.sources.base import Sample, Samples

urls = sys.argv[2:]
samples = [Sample(str(i), b"", (), {}, url) for i, url in enumerate(urls)]
found = iter(Downloads(Samples("list", samples, 0), DownloadOptions(allow_private=True, timeout=600)))
print(len(next(found).image), flush=True)
if sys.argv[1] == "interrupt":
    next(found)
"""


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: it does not hold within a minute.
    """
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("ending", ["interrupt", "exit"])
def test_ctrl_c_and_exit_stop_downloads_at_once(ending: str) -> None:
    with Server({"/a": respond(JPG), "*": silent}) as server:
        urls = [server.url(path) for path in ("/a", "/b", "/c")]
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", EXIT_SCRIPT, ending, *urls],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == f"{len(JPG)}\n"
        if ending == "interrupt":
            wait_for(lambda: len(server.requests) == 3)
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    if ending == "interrupt":
        assert errors.strip().endswith("KeyboardInterrupt")
        assert errors.count("Traceback") == 1
    else:
        assert (process.returncode, errors) == (0, "")


def test_closing_the_iterator_closes_all_connections() -> None:
    with Server({"/0": respond(JPG), "*": silent}) as server:
        sockets = len(os.listdir("/proc/self/fd"))
        found = iter(Downloads(rows(*(server.url(f"/{i}") for i in range(50))), options(timeout=600.0)))
        next(found)
        found.close()  # type: ignore[attr-defined]
        wait_for(lambda: len(os.listdir("/proc/self/fd")) <= sockets)


def test_idle_connections_are_closed() -> None:
    addresses = tuple(f"127.0.1.{n}" for n in range(1, 101))
    with Server({"*": respond(JPG)}, addresses) as server:
        sockets = len(os.listdir("/proc/self/fd"))
        found = iter(Downloads(rows(*(server.url("/x", host) for host in addresses)), options()))
        assert all(isinstance(item, Sample) and item.image for item in itertools.islice(found, 100))
        wait_for(lambda: len(os.listdir("/proc/self/fd")) < sockets + 20)
        found.close()  # type: ignore[attr-defined]


def test_an_error_in_the_source_is_raised() -> None:
    def broken() -> Iterator[Sample]:
        yield Sample("0", b"", (), {}, server.url("/0"))
        raise RuntimeError("the archive is gone")

    with Server({"*": silent}) as server, pytest.raises(RuntimeError, match="the archive is gone"):
        list(Downloads(Samples("broken", broken(), 0), options()))


@pytest.mark.parametrize(
    ("tags", "directive"),
    [
        ([], ""),
        (["all"], ""),
        (["noai"], "noai"),
        (["NoIndex, nofollow"], "noindex"),
        (["nofollow", "noarchive, noimageai"], "noimageai"),
        (["googlebot: noindex, noimageindex"], ""),
        (["googlebot: noindex, lakeclip: noai"], "noai"),
        (["lakeclip: noimageindex"], "noimageindex"),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST, noai"], "noai"),
        (["max-snippet: 5, noindex"], "noindex"),
        (["nofollow, :"], ""),
    ],
)
def test_x_robots_tag_is_parsed_like_search_engines_do(tags: list[str], directive: str) -> None:
    assert opt_out(tags, "lakeclip/1.0 (+https://example.org)") == directive


def test_opt_outs_are_respected_by_default() -> None:
    with Server({"*": respond(JPG, X_Robots_Tag="noai")}) as server:
        assert download(server.url("/x")) == ["opted out: noai"]
        assert download(server.url("/x"), respect_opt_out=False) == [JPG]


def photo(size: tuple[int, int], mode: str = "RGB", kind: str = "JPEG", orientation: int = 1) -> bytes:
    """Draw an image that is red on the left and blue on the right."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2, 0, *size))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, kind, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("resize", "before", "after"),
    [
        ("shorter", (800, 600), (133, 100)),
        ("shorter", (60, 4000), (60, 4000)),
        ("longer", (800, 600), (100, 75)),
        ("longer", (3000, 2), (100, 1)),
        ("crop", (800, 600), (100, 100)),
        ("crop", (90, 60), (60, 60)),
        ("crop", (90, 90), (90, 90)),
        ("shorter", (100, 100), (100, 100)),
    ],
)
def test_images_are_shrunk_and_never_enlarged(resize: Any, before: tuple[int, int], after: tuple[int, int]) -> None:
    data = photo(before)
    shrunk = check_and_shrink(data, 100, resize)
    assert isinstance(shrunk, bytes)
    image = Image.open(io.BytesIO(shrunk))
    assert (image.size, image.format) == (after, "JPEG")
    assert (shrunk == data) == (before == after)
    assert check_and_shrink(data, None, resize) == data


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_shrunk_images_are_upright(mode: str) -> None:
    """Orientation 6 means a rotation to the right: the left side of the file becomes the top."""
    shrunk = check_and_shrink(photo((800, 400), mode, orientation=6), 100, "shorter")
    assert isinstance(shrunk, bytes)
    image = Image.open(io.BytesIO(shrunk))
    assert image.size == (100, 200)
    assert image.getexif().get(0x0112) is None
    above, below = image.convert("RGB").getpixel((50, 50)), image.convert("RGB").getpixel((50, 150))
    assert isinstance(above, tuple)
    assert isinstance(below, tuple)
    assert above[0] > below[0]


def test_transparent_and_16_bit_images() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (400, 400), (0, 0, 0, 0)).save(buffer, "PNG")
    shrunk = check_and_shrink(buffer.getvalue(), 100, "shorter")
    assert isinstance(shrunk, bytes)
    assert Image.open(io.BytesIO(shrunk)).convert("RGB").getpixel((50, 50)) == (255, 255, 255)
    deep = picture(1, "PNG", "I;16", (300, 300))
    assert check_and_shrink(deep, 100, "shorter") == deep


def test_downloaded_images_are_shrunk() -> None:
    with Server({"/a": respond(photo((800, 600))), "/b": respond(HTML)}) as server:
        large, page = download(server.url("/a"), server.url("/b"), image_size=64, resize="longer")
    assert isinstance(large, bytes)
    assert Image.open(io.BytesIO(large)).size == (64, 48)
    assert page == "not an image"


@pytest.mark.parametrize(
    "change",
    [
        *({"concurrency": 0}, {"per_host": 0}, {"per_host_rate": -1.0}, {"per_host_rate": float("nan")}),
        *({"timeout": 0.0}, {"timeout": float("inf")}, {"retries": -1}, {"max_bytes": 0}, {"image_size": 0}),
        {"user_agent": "x\r\nCookie: y"},
    ],
)
def test_invalid_options_are_rejected(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        DownloadOptions(**change)


def test_options_are_imported_without_the_http_client() -> None:
    code = "import sys; from lakeclip.ingestion.download import DownloadOptions; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
