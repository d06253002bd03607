"""Addresses are requested as they were written; only what cannot be sent is quoted."""

from __future__ import annotations

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from lakeclip.ingestion.download.address import (
    AddressError,
    decode_data_uri,
    is_data_uri,
    join_address,
    parse_address,
)
from lakeclip.ingestion.download.options import DownloadOptions
from lakeclip.ingestion.download.stream import Downloads
from lakeclip.ingestion.sources.base import Sample, Samples
from lakeclip.ingestion.sources.csv_layout import is_url
from tests.unit.ingestion.download.hostile_server import Server, redirect, respond
from tests.unit.lake.sample_files import picture

#: Targets that have to arrive as they are written, as servers that sign links compare them.
EXACT = [
    "/a.jpg?response-content-type=image%2Fjpeg&Signature=qZ0A%2Bd%2Fg%3D",
    "/b/http%3A%2F%2Fcdn.example%2Fx.jpg",
    "/c/it%27s%20%28new%29.jpg",
    "/d/caf%C3%A9.jpg?q=a%40b",
    "/e.jpg?X=a%7Eb&Y=c+d&Z=",
    "/f/a%2fb.jpg",
    "/g.jpg?url=https%3A%2F%2Fx.example%2F1.jpg",
    "/h%41.jpg?%42=%7e",
    "/i;v=1/j;k?a;b",
    "/k|l.jpg?m|n={o}",
    "/unsafe/300x/https://host/p.jpg",
    "/q//r/./s/../t.jpg",
    "/u.jpg?v=%",
    "/w.jpg?a=1&a=&b",
    "/x.jpg?",
    "/y.jpg??z=?",
    "/+a@b:c,d!$&'()*=~",
    "/[1].jpg?c[]=1",
    "/cloudfront.jpg?Policy=eyJ~_-&Signature=a~b-c_&Key-Pair-Id=K2",
    "/s3.jpg?X-Amz-Credential=AKIA%2F20260101%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-SignedHeaders=host",
    "?only=query",
    "",
]
#: Written address → requested target.
QUOTED = {
    "/café.jpg?q=ü": "/caf%C3%A9.jpg?q=%C3%BC",
    "/日本.png": "/%E6%97%A5%E6%9C%AC.png",
    "/a b.jpg?c d": "/a%20b.jpg?c%20d",
    "/a%20b c%2F.jpg": "/a%20b%20c%2F.jpg",
    '/"<>^`{}\\': "/%22%3C%3E%5E%60%7B%7D%5C",
    "/a.jpg#part?x": "/a.jpg",
    "/a.jpg?x#part": "/a.jpg?x",
    "/a.jpg ": "/a.jpg",
    "/a\n.jpg\r\n": "/a.jpg",
    "/tab\t.jpg\u00a0": "/tab.jpg",
}


def target_of(address: str) -> str:
    return parse_address(address).raw_path_qs


@pytest.mark.parametrize("target", EXACT)
def test_what_was_written_is_requested(target: str) -> None:
    expected = target if target.startswith("/") else f"/{target}"
    assert target_of(f"http://host.example{target}") == expected
    assert join_address(URL("http://other.example/x"), f"https://host.example{target}").raw_path_qs == expected


@pytest.mark.parametrize(("written", "requested"), QUOTED.items())
def test_only_what_is_illegal_is_quoted(written: str, requested: str) -> None:
    assert target_of(f"http://host.example{written}") == requested


@given(st.text(st.sampled_from("abc%2F7E+;|&=~!$'()*,:@/.-_[]?"), max_size=30))
def test_legal_targets_never_change(target: str) -> None:
    assert target_of(f"https://host.example/{target}") == f"/{target}"


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    for address in (text, f"http://host.example/{text}", f"http://{text}/"):
        try:
            url = parse_address(address)
        except AddressError:
            continue
        assert url.scheme in ("http", "https")
        assert url.raw_host
        assert url.raw_path_qs.isascii()
        assert url.raw_path_qs.isprintable()
        assert " " not in url.raw_path_qs
        assert parse_address(str(url)) == url


@pytest.mark.parametrize(
    ("written", "authority"),
    [
        ("HTTP://Host.Example/", "http://host.example"),
        ("  https://host.example  ", "https://host.example"),
        ("\ufeffhttps://host.example", "https://host.example"),
        ("//host.example/x.jpg", "https://host.example"),
        ("http://bücher.example/", "http://xn--bcher-kva.example"),
        ("http://例え.テスト/", "http://xn--r8jz45g.xn--zckzah"),
        ("http://host.example:8080/", "http://host.example:8080"),
        ("http://host.example:80/", "http://host.example"),
        ("https://host.example:0443/", "https://host.example"),
        ("http://host.example:/", "http://host.example"),
        ("http://host_name.s3.example/", "http://host_name.s3.example"),
        ("http://[::1]:81/", "http://[::1]:81"),
        ("http://user:pa%20ss@host.example/", "http://user:pa%20ss@host.example"),
        ("http://us@er:p@ss@host.example/", "http://us%40er:p%40ss@host.example"),
    ],
)
def test_hosts(written: str, authority: str) -> None:
    url = parse_address(written)
    assert f"{url.scheme}://{url.raw_authority}" == authority


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        *(("cat.jpg", "neither http nor https"), ("ftp://host/x", "neither http nor https"), ("", "neither")),
        *(("http:///x", "no host"), ("http://", "no host"), ("http://:80/", "no host"), ("http://user@/", "no host")),
        *(("http:host/x", "not a URL"), ("http://ho st/", "not a URL"), ("http://host:x/", "not a URL")),
        *(("http://host:70000/", "not a URL"), ("http://[::1/", "not a URL"), ("http://[zz]/", "not a URL")),
        *(("http://host\\x/", "not a URL"), ("http://a\ud800b/", "not a URL"), ("http://host/\ud800", "not a URL")),
    ],
)
def test_what_is_not_an_address(written: str, reason: str) -> None:
    with pytest.raises(AddressError, match=reason):
        parse_address(written)


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://cdn.example/a%2Fb?s=%7E", "https://cdn.example/a%2Fb?s=%7E"),
        ("//cdn.example/a%2Fb", "http://cdn.example/a%2Fb"),
        ("/r%2Fs?t=%2B", "http://host.example:81/r%2Fs?t=%2B"),
        ("/r/../s", "http://host.example:81/r/../s"),
        ("c%2Fd.jpg", "http://host.example:81/a/b%2Fc/c%2Fd.jpg"),
        ("../d.jpg?e=../f", "http://host.example:81/a/d.jpg?e=../f"),
        ("../../../d.jpg", "http://host.example:81/d.jpg"),
        ("./", "http://host.example:81/a/b%2Fc/"),
        ("..", "http://host.example:81/a/"),
        ("?y=%2F", "http://host.example:81/a/b%2Fc/x?y=%2F"),
        ("", "http://host.example:81/a/b%2Fc/x?q=%20"),
        ("#part", "http://host.example:81/a/b%2Fc/x?q=%20"),
        ("caf\udcc3\udca9.jpg", "http://host.example:81/a/b%2Fc/caf%C3%A9.jpg"),
        ("caf\udce9.jpg", "http://host.example:81/a/b%2Fc/caf%E9.jpg"),
    ],
)
def test_redirects(location: str, target: str) -> None:
    base = parse_address("http://host.example:81/a/b%2Fc/x?q=%20")
    assert str(join_address(base, location)) == target


def download(*urls: str, allow_private: bool = True, rate: float = 0.0) -> list[Sample]:
    samples = [Sample(str(i), b"", (), {}, url) for i, url in enumerate(urls)]
    options = DownloadOptions(allow_private=allow_private, per_host_rate=rate, retries=0, timeout=10)
    return [item for item in Downloads(Samples("list", samples, len(samples)), options) if isinstance(item, Sample)]


def test_the_server_gets_the_exact_targets() -> None:
    """Compare request lines with what was written, for addresses and for the targets of redirects."""
    image = picture(1)
    with Server({"*": respond(image)}) as server:
        targets = [target for target in EXACT if target.startswith("/")]
        found = download(*map(server.url, targets), *(f" {server.url(written)}" for written in QUOTED))
        assert [item.unusable for item in found] == [""] * len(found)
        assert sorted(server.paths) == sorted({*targets, *QUOTED.values()})
    routes = {f"/to/{number}": redirect(target) for number, target in enumerate(targets)}
    with Server({**routes, "*": respond(image)}) as server:
        routes_with_host = {f"/host/{n}": redirect(server.url(target)) for n, target in enumerate(targets)}
        server._routes = {**routes, **routes_with_host, "*": respond(image)}
        found = download(*map(server.url, routes), *map(server.url, routes_with_host))
        assert [item.image for item in found] == [image] * (2 * len(targets))
        assert {target: server.paths[target] for target in targets} == dict.fromkeys(targets, 2)


def test_user_info_is_sent_as_a_header_only() -> None:
    with Server({"*": respond(picture())}) as server:
        (item,) = download(server.url("/x", user="user:p%40ss@"))
        assert item.image
        sent = base64.b64decode(server.requests[0].headers["Authorization"].removeprefix("Basic "))
        assert (server.requests[0].path, sent) == ("/x", b"user:p@ss")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "10.1.2.3", "169.254.169.254", "0x7f.1"])
def test_refused_addresses_do_not_wait(host: str) -> None:
    """Check that the pause between requests to a host, here a second, is not kept if nothing is requested."""
    started = time.monotonic()
    found = download(*[f"http://{host}:8/{n}" for n in range(100)], allow_private=False, rate=1.0)
    assert time.monotonic() - started < 20
    assert {item.unusable.partition(":")[0] for item in found} <= {"refused", "bad address"}


def test_redirects_to_refused_addresses_do_not_wait() -> None:
    with Server({f"/{n}": redirect(f"http://10.0.0.{n}/") for n in range(40)}) as server:
        downloads = Downloads(
            Samples("list", [Sample(str(n), b"", (), {}, server.url(f"/{n}")) for n in range(40)], 40),
            DownloadOptions(per_host_rate=0, retries=0),
        )
        downloads._allowed = lambda address: address == "127.0.0.1"
        assert {item.unusable for item in downloads if isinstance(item, Sample)} == {
            f"refused: private address (10.0.0.{n})" for n in range(40)
        }
        assert (downloads.num_fetched, downloads.num_failed) == (0, 40)


@pytest.mark.parametrize(
    "address",
    [
        "data:image/png;base64,{}",
        "DATA:;BASE64,{}",
        " data:image/png;charset=x;base64,{}\n",
        "data:image/png;base64,{unpadded}",
        "data:image/png;base64,{quoted}",
        "data:image/png;base64,{wrapped}",
        "data:image/png,{percent}",
    ],
)
def test_data_uris_are_decoded(address: str) -> None:
    image = picture(2, "PNG")
    text = base64.b64encode(image).decode()
    variants = {
        "unpadded": base64.urlsafe_b64encode(image).decode().rstrip("="),
        "quoted": text.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
        "wrapped": "\n".join(text[i : i + 76] for i in range(0, len(text), 76)),
        "percent": "".join(f"%{byte:02x}" for byte in image),
    }
    written = address.format(text, **variants)
    assert is_data_uri(written)
    assert decode_data_uri(written) == image
    assert [item.image for item in download(written)] == [image]


def test_a_data_uri_has_the_same_size_limit() -> None:
    large = "data:image/png;base64," + base64.b64encode(bytes(2**20)).decode()
    sample = Sample("0", b"", (), {}, large)
    options = DownloadOptions(max_bytes=1000)
    (item,) = Downloads(Samples("list", [sample], 1), options)
    assert isinstance(item, Sample)
    assert item.unusable.startswith("too large: more than")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("http://h/x.jpg", True), ("HTTPS://h/x", True), ("s3://bucket/x.jpg", True), ("//cdn.example/x.jpg", True)),
        *(
            ("x.jpg", False),
            ("/data/x.jpg", False),
            ("//data/x.jpg", False),
            ("file:///x.jpg", False),
            ("a//b.c/d", False),
        ),
    ],
)
def test_addresses_and_file_names(text: str, expected: bool) -> None:
    assert is_url(text) == expected
