from __future__ import annotations

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
from lakeclip.lake.download import fetch, hosts, stream
from lakeclip.lake.download.fetch import LONGEST_PAUSE, opt_out
from lakeclip.lake.download.hosts import DOWN_AFTER
from lakeclip.lake.download.network import is_public
from lakeclip.lake.download.options import DownloadOptions
from lakeclip.lake.download.shrink import check_and_shrink
from lakeclip.lake.download.stream import Downloads
from lakeclip.lake.sources.base import Rejected, Sample, Samples, Source
from tests.unit.lake.download.hostile import Handler, Server, endless, in_turn, raw, redirect, reset, respond, silent
from tests.unit.lake.pairs import picture, sample

JPG = picture(1)
HTML = b"<!doctype html><title>Moved</title>"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """And nothing of a download is left when its test ends."""
    monkeypatch.setattr(fetch, "_FIRST_PAUSE", 0.01)
    before = set(threading.enumerate())
    yield
    assert not [thread for thread in threading.enumerate() if thread not in before and thread.name != "look up"]


def options(**changes: Any) -> DownloadOptions:
    return DownloadOptions(**{"allow_private": True, "per_host_rate": 0.0, "timeout": 5.0, **changes})


def rows(*urls: str) -> Samples:
    return Samples("a list", [Sample(str(i), b"", ("a cat",), {"n": i}, url) for i, url in enumerate(urls)], len(urls))


def download(*urls: str, allowed: Callable[[str], bool] | None = None, **changes: Any) -> list[bytes | str]:
    """The picture of each address, or why there is none."""
    downloads = Downloads(rows(*urls), options(**changes))
    if allowed is not None:
        downloads._allowed = allowed
    found = [item for item in downloads if isinstance(item, Sample)]
    assert [item.key for item in found] == [str(i) for i in range(len(urls))]
    assert all(bool(item.image) != bool(item.unusable) for item in found)
    return [item.image or item.unusable for item in found]


class Parts(Samples):
    """A source with a part for every two samples."""

    def __iter__(self) -> Iterator[Sample | Rejected]:
        for number, item in enumerate(super().__iter__()):
            self.part = f"part{number // 2}"
            yield item
            if number % 2:
                self.ended.append((self.part, number))


def test_addresses_become_pictures_and_all_else_passes_in_order() -> None:
    pictures = [picture(i) for i in range(8)]
    routes = {f"/{i}": respond(pictures[i], delay=0.05 * (i % 3 == 0)) for i in range(8)}
    with Server(routes) as server:
        items: list[Sample | Rejected] = []
        for i in range(8):
            items.append(Sample(f"k{i}", b"", ("a cat",), {"n": i, "url": server.url(f"/{i}")}, server.url(f"/{i}")))
        items[2:2] = [sample(3), Rejected("x", "no caption")]
        items.append(Sample("last", b"", ("a dog",), {}))
        source = Downloads(Parts("parts", items, len(items)), options())
        assert isinstance(source, Source)
        found = [(source.part, source.position, item) for item in source]
    assert [item for _, _, item in found] == [
        item._replace(image=pictures[int(item.key[1:])]) if isinstance(item, Sample) and item.url else item
        for item in items
    ]
    assert [(part, position) for part, position, _ in found] == [(f"part{n // 2}", n + 1) for n in range(len(items))]
    assert (source.name, source.size, source.position) == ("parts", len(items), len(items))
    assert [name for name, _ in source.ended] == [f"part{n}" for n in range(len(items) // 2)]


def test_what_is_no_picture_says_why() -> None:
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
        "/reset": (reset, "connection failed", 4),  # the client itself asks once more
        "/silent": (silent, "timed out", 2),
        "/drip": (raw(b"HTTP/1.1 200 OK\r\n\r\n", *[b"x"] * 50, pause=0.05), "timed out", 2),
        "/slow-head": (raw(b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 50, pause=0.05), "timed out", 2),
        "/status": (respond(b"", "500 Oops"), "HTTP 500", 2),
        "/long-head": (respond(b"", X=("x" * 2**20)), "bad response", 1),
        "/garbage": (raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n", hang_up=True), "bad response", 1),
        "/loop": (redirect("/loop"), "redirects: more than 5", 6),
        "/file": (redirect("file:///etc/passwd"), "bad redirect: neither http nor https", 1),
        "/mixed-up": (redirect("http://[/"), "bad redirect: not a URL", 1),
        "/no-location": (respond(b"", "302 Found"), "HTTP 302", 1),
    }
    with Server({path: handler for path, (handler, _, _) in routes.items()}) as server:
        found = download(*map(server.url, routes), timeout=0.4, retries=1, max_bytes=2**20, per_host=64)
        attempts = dict(server.paths)
    wrong = {
        path: (reason, attempts[path])
        for (path, (_, kind, count)), reason in zip(routes.items(), map(str, found), strict=True)
        if not reason.startswith(kind) or attempts[path] != count
    }
    assert not wrong


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("", ""),
        ("cat.jpg", "bad address: neither http nor https"),
        ("ftp://127.0.0.1/cat.jpg", "bad address: neither http nor https"),
        ("file:///etc/passwd", "bad address: neither http nor https"),
        ("data:image/png;base64,AAAA", "bad address: neither http nor https"),
        ("http://", "bad address"),
        ("http://[::1", "bad address: not a URL"),
        ("http://127.0.0.1:99999/", "bad address: not a URL"),
        ("http://user:secret@127.0.0.1:1/x", "connection failed: connection refused"),
        (f"http://user:secret@{'a' * 64}.invalid/x", ""),
        ("https://user:secret@127.0.0.1:PORT/", "connection failed"),  # no TLS there
        ("http://exa mple.invalid\r\nX: y/", "bad address"),
    ],
)
def test_an_address_that_cannot_work_says_why_without_repeating_it(address: str, reason: str) -> None:
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
def test_what_is_not_on_the_internet_is_private(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "172.32.0.1", "::ffff:8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1"],
)
def test_what_is_on_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "LOCALHOST"])
def test_private_addresses_are_refused_unless_allowed(host: str) -> None:
    with Server({"*": respond(JPG)}) as server:
        (refused,) = download(server.url("/x", host, "user:secret@"), allow_private=False)
        assert str(refused).startswith("refused: private address (")
        assert "secret" not in str(refused)
        assert not server.requests


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1"])
def test_other_spellings_of_a_private_address_are_no_way_around(host: str) -> None:
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
        assert server.paths["/a"] == 1, "it was tried again"


def test_a_name_that_leads_elsewhere_when_connecting_is_refused() -> None:
    """The name is looked up as one address, and the socket would go to another: both are asked about."""
    asked: list[str] = []

    def allowed(address: str) -> bool:
        asked.append(address)
        return len(asked) <= looked_up

    looked_up = len({where[4][0] for where in socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)})
    with Server({"*": respond(JPG)}) as server:
        (reason,) = download(server.url("/x", "localhost"), allowed=allowed)
        assert str(reason).startswith(("refused: private address", "connection failed"))
        assert len(asked) > looked_up
        assert not server.requests


def test_ipv6_works() -> None:
    try:
        server = Server({"*": respond(JPG)}, ("::1",))
        with server:
            assert download(server.url("/x", "[::1]")) == [JPG]
    except AssertionError:
        pytest.skip("this machine has no IPv6")


def test_a_redirect_takes_neither_password_nor_cookies_along() -> None:
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


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with Server({"*": respond(JPG)}) as server:
        assert download(server.url("/x")) == [JPG]


def test_what_passes_is_tried_again() -> None:
    cut = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + JPG[:50], hang_up=True)
    routes = {
        "/busy": in_turn(respond(b"", "429 Too Many Requests"), respond(JPG)),
        "/past": in_turn(respond(b"", "503 x", Retry_After="Mon, 01 Jan 2001 00:00:00 GMT"), respond(JPG)),
        "/soon": in_turn(respond(b"", "503 x", Retry_After="soon"), respond(JPG)),
        "/broken": in_turn(respond(b"", "502 Bad Gateway"), cut, respond(JPG)),
        "/reset": in_turn(reset, reset, respond(JPG)),
        "/silent": in_turn(silent, respond(JPG)),
        "/down": respond(b"", "503 Service Unavailable"),
    }
    with Server(routes) as server:
        found = download(*map(server.url, routes), retries=2, timeout=0.4)
        assert found == [JPG] * 6 + ["HTTP 503"]
        assert [server.paths[path] for path in routes] == [2, 2, 2, 3, 3, 2, 3]


def test_a_pause_that_the_host_asks_for_is_kept_by_all() -> None:
    routes = {
        "/a": in_turn(respond(b"", "429 Too Many Requests", Retry_After="1"), respond(JPG)),
        "/b": respond(JPG),
    }
    with Server(routes) as server:
        assert download(server.url("/a"), server.url("/b"), per_host=1) == [JPG, JPG]
        first, *later = [request.at for request in server.requests]
    assert all(at - first > 0.95 for at in later)


@pytest.mark.parametrize("pause", [str(int(LONGEST_PAUSE) + 1), "Fri, 31 Dec 2100 23:59:59 GMT", "9" * 400])
def test_a_host_that_asks_for_a_long_pause_is_left_alone(pause: str) -> None:
    with Server({"/a": respond(b"", "429 Too Many Requests", Retry_After=pause)}) as server:
        assert download(server.url("/a")) == ["HTTP 429"]
        assert server.paths["/a"] == 1


def test_a_host_that_is_down_is_not_asked_for_ever() -> None:
    with Server({"*": silent}, ("127.0.0.1", "127.0.0.2")) as server:
        urls = [server.url(f"/{i}") for i in range(200)]
        started = time.monotonic()
        found = download(*urls, timeout=0.1, retries=1)
        assert time.monotonic() - started < 2
        assert 0 < len(server.requests) <= DOWN_AFTER + 4
    assert set(found) == {"timed out", f"host is down: {DOWN_AFTER} requests in a row failed"}
    assert found[-1] != "timed out"


def test_a_host_that_was_down_is_asked_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "DOWN_FOR", 0.3)

    def list_with_a_pause() -> Iterator[Sample]:
        for number in range(30):
            if number == 20:
                time.sleep(0.6)
            yield Sample(str(number), b"", (), {}, server.url(f"/{number}"))

    with Server({"*": in_turn(*[respond(b"", "503 Busy")] * DOWN_AFTER, respond(JPG))}) as server:
        source = Samples("list", list_with_a_pause(), 30)
        found = [
            item.unusable for item in Downloads(source, options(per_host=1, retries=0)) if isinstance(item, Sample)
        ]
    down = f"host is down: {DOWN_AFTER} requests in a row failed"
    assert found == ["HTTP 503"] * DOWN_AFTER + [down] * (20 - DOWN_AFTER) + [""] * 10


def test_limits_of_each_host_are_kept() -> None:
    with Server({"*": respond(JPG, delay=0.03)}, ("127.0.0.1", "127.0.0.2")) as server:
        urls = [server.url(f"/{i}", host) for i in range(24) for host in ("127.0.0.1", "127.0.0.2")]
        assert set(download(*urls, per_host=3)) == {JPG}
        assert server.most_at_once == {"127.0.0.1": 3, "127.0.0.2": 3}


def test_the_rate_of_each_host_is_kept() -> None:
    with Server({"*": respond(JPG)}, ("127.0.0.1", "127.0.0.2")) as server:
        urls = [server.url(f"/{i}", host) for i in range(10) for host in ("127.0.0.1", "127.0.0.2")]
        assert set(download(*urls, per_host_rate=25)) == {JPG}
        for host in ("127.0.0.1", "127.0.0.2"):
            at = [request.at for request in server.requests if request.host == host]
            assert at[-1] - at[0] > 9 / 25 * 0.95
            assert all(later - earlier > 0.02 for earlier, later in itertools.pairwise(at))
        assert server.requests[-1].at - server.requests[0].at < 2 * 9 / 25, "the hosts waited for one another"


def test_the_common_limit_is_kept_and_used() -> None:
    addresses = tuple(f"127.0.0.{n}" for n in range(1, 5))
    with Server({"*": respond(JPG, delay=0.05)}, addresses) as server:
        urls = [server.url(f"/{i}", host) for i in range(48) for host in addresses]
        started = time.monotonic()
        assert set(download(*urls, concurrency=64, per_host=16)) == {JPG}
        seconds = time.monotonic() - started
        assert seconds < len(urls) * 0.05 / 10
        assert set(server.most_at_once.values()) == {16}
        server.most_at_once.clear()
        download(*urls[:32], concurrency=2, per_host=2)
        assert sum(server.most_at_once.values()) <= 2 * len(addresses)
        assert max(server.most_at_once.values()) <= 2


def test_a_slow_host_holds_up_no_other() -> None:
    with Server({"/slow": respond(JPG, delay=0.5), "*": respond(JPG)}, ("127.0.0.1", "127.0.0.2")) as server:
        urls = [server.url("/slow"), *(server.url(f"/{i}", "127.0.0.2") for i in range(300))]
        started = time.monotonic()
        assert set(download(*urls)) == {JPG}
        assert time.monotonic() - started < 1.0
        assert max(request.at for request in server.requests) - started < 0.5, "they waited for the slow one"


def test_no_more_than_the_window_is_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "WINDOW", 10)
    read = 0

    def endless_list() -> Iterator[Sample]:
        nonlocal read
        for read in itertools.count(1):
            yield Sample(str(read), b"", (), {}, server.url(f"/{read}"))

    with Server({"/1": respond(JPG, delay=0.3), "*": respond(JPG)}) as server:
        found = iter(Downloads(Samples("endless", endless_list(), 0), options()))
        assert isinstance(item := next(found), Sample)
        assert item.image == JPG
        assert read == 10
        found.close()  # type: ignore[attr-defined]


def test_pictures_that_the_source_brings_are_not_piled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_BROUGHT", 10 * len(JPG))
    read = 0

    def mixed() -> Iterator[Sample]:
        nonlocal read
        yield Sample("slow", b"", (), {}, server.url("/slow"))
        for read in range(1, 200):
            yield Sample(str(read), JPG, (), {})

    with Server({"/slow": respond(JPG, delay=0.2)}) as server:
        found = iter(Downloads(Samples("mixed", mixed(), 0), options()))
        next(found)
        assert read == 11
        assert len(list(found)) == 199


#: Not `getrusage`: its figure outlives an exec, so this process would begin with what pytest has.
MEMORY_SCRIPT = """
import re, sys, time
from lakeclip.lake.download import stream
from lakeclip.lake.download.options import DownloadOptions
from lakeclip.lake.download.stream import Downloads
from lakeclip.lake.sources.base import Sample, Samples

def peak():
    return int(re.findall(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[0])

url, count = sys.argv[1], 200
stream.MEMORY = 24 * 2**20
options = DownloadOptions(allow_private=True, per_host=64, per_host_rate=0, max_bytes=4 * 2**20, timeout=2)
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
    assert megabytes < 160, "600 MB were downloaded, of which 24 may wait"


def test_downloads_that_wait_for_memory_let_the_first_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """All turns at the second host are taken by pictures with no room, and the first picture must go there too."""
    monkeypatch.setattr(stream, "MEMORY", 2**20)
    large = picture(1, "BMP", size=(600, 500))
    routes = {"*": respond(large)}
    with Server(routes, ("127.0.0.1", "127.0.0.2")) as server:
        routes["/first"] = respond(b"", "302 Found", delay=0.2, Location=server.url("/0", "127.0.0.2"))
        urls = [server.url("/first"), *(server.url(f"/{i}", "127.0.0.2") for i in range(1, 12))]
        started = time.monotonic()
        assert download(*urls, per_host=2, timeout=0.5, retries=0) == [large] * 12
        assert time.monotonic() - started < 3
        assert len(server.requests) <= 13 + 4, "those without room are asked for once more"


EXIT_SCRIPT = """
import sys
from lakeclip.lake.download.options import DownloadOptions
from lakeclip.lake.download.stream import Downloads
from lakeclip.lake.sources.base import Sample, Samples

urls = sys.argv[2:]
samples = [Sample(str(i), b"", (), {}, url) for i, url in enumerate(urls)]
found = iter(Downloads(Samples("list", samples, 0), DownloadOptions(allow_private=True)))
print(len(next(found).image), flush=True)
if sys.argv[1] == "wait":
    next(found)
"""


@pytest.mark.parametrize("how", ["wait", "leave"])
def test_ctrl_c_and_an_exit_end_it_at_once(how: str) -> None:
    with Server({"/a": respond(JPG), "*": silent}) as server:
        urls = [server.url(path) for path in ("/a", "/b", "/c")]
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", EXIT_SCRIPT, how, *urls],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == f"{len(JPG)}\n"
        started = time.monotonic()
        if how == "wait":
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert time.monotonic() - started < 3
    if how == "wait":
        assert errors.strip().endswith("KeyboardInterrupt")
        assert errors.count("Traceback") == 1
    else:
        assert (process.returncode, errors) == (0, "")


def test_a_consumer_that_stops_early_leaves_nothing_behind() -> None:
    with Server({"/0": respond(JPG), "*": silent}) as server:
        sockets = len(os.listdir("/proc/self/fd"))
        found = iter(Downloads(rows(*(server.url(f"/{i}") for i in range(50))), options()))
        next(found)
        started = time.monotonic()
        found.close()  # type: ignore[attr-defined]
        assert time.monotonic() - started < 0.5
        time.sleep(0.1)
        assert len(os.listdir("/proc/self/fd")) <= sockets


def test_connections_to_hosts_that_are_done_with_are_closed() -> None:
    addresses = tuple(f"127.0.1.{n}" for n in range(1, 101))
    with Server({"*": respond(JPG)}, addresses) as server:
        sockets = len(os.listdir("/proc/self/fd"))
        found = iter(Downloads(rows(*(server.url("/x", host) for host in addresses)), options()))
        assert all(isinstance(item, Sample) and item.image for item in itertools.islice(found, 100))
        time.sleep(0.1)
        assert len(os.listdir("/proc/self/fd")) < sockets + 20
        found.close()  # type: ignore[attr-defined]


def test_an_error_in_the_source_ends_it() -> None:
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
def test_an_opt_out_is_read_as_search_engines_do(tags: list[str], directive: str) -> None:
    assert opt_out(tags, "lakeclip/1.0 (+https://example.org)") == directive


def test_an_opt_out_is_respected_unless_told_otherwise() -> None:
    with Server({"*": respond(JPG, X_Robots_Tag="noai")}) as server:
        assert download(server.url("/x")) == ["opted out: noai"]
        assert download(server.url("/x"), respect_opt_out=False) == [JPG]


def photo(size: tuple[int, int], mode: str = "RGB", kind: str = "JPEG", orientation: int = 1) -> bytes:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2, 0, *size))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, kind, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("how", "before", "after"),
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
def test_pictures_are_shrunk_and_never_enlarged(how: Any, before: tuple[int, int], after: tuple[int, int]) -> None:
    data = photo(before)
    shrunk = check_and_shrink(data, 100, how)
    assert isinstance(shrunk, bytes)
    image = Image.open(io.BytesIO(shrunk))
    assert (image.size, image.format) == (after, "JPEG")
    assert (shrunk == data) == (before == after)
    assert check_and_shrink(data, None, how) == data


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_shrunk_picture_is_upright(mode: str) -> None:
    """Orientation 6: to be turned to the right, so that what is on the left comes to stand above."""
    shrunk = check_and_shrink(photo((800, 400), mode, orientation=6), 100, "shorter")
    assert isinstance(shrunk, bytes)
    image = Image.open(io.BytesIO(shrunk))
    assert image.size == (100, 200)
    assert image.getexif().get(0x0112) is None
    above, below = image.convert("RGB").getpixel((50, 50)), image.convert("RGB").getpixel((50, 150))
    assert isinstance(above, tuple)
    assert isinstance(below, tuple)
    assert above[0] > below[0]


def test_transparency_is_laid_on_white_and_deep_greys_are_kept() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (400, 400), (0, 0, 0, 0)).save(buffer, "PNG")
    shrunk = check_and_shrink(buffer.getvalue(), 100, "shorter")
    assert isinstance(shrunk, bytes)
    assert Image.open(io.BytesIO(shrunk)).convert("RGB").getpixel((50, 50)) == (255, 255, 255)
    deep = picture(1, "PNG", "I;16", (300, 300))
    assert check_and_shrink(deep, 100, "shorter") == deep


def test_downloads_are_shrunk() -> None:
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
def test_options_that_cannot_work_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        DownloadOptions(**change)


def test_options_are_at_hand_without_the_client() -> None:
    code = "import sys; from lakeclip.lake.download import DownloadOptions; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
