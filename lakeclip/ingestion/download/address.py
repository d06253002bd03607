"""Addresses of images: what is requested is what was written.

A server that signs its links (S3, CloudFront, image proxies) compares them byte for byte, so escapes such as `%2F` and
`%7E` stay as they are, in redirects too. As in a browser, only what cannot be sent is changed: blanks around an address
are removed; characters outside ASCII, blanks and some others are percent-encoded as UTF-8; the scheme and the host are
lower case, a host outside ASCII is encoded by IDNA; the fragment is not sent.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from urllib.parse import unquote_to_bytes

from yarl import URL

#: Characters that browsers percent-encode besides blanks, controls and those outside ASCII.
_ILLEGAL_IN_QUERY = frozenset(b'"<>')
_ILLEGAL_IN_PATH = _ILLEGAL_IN_QUERY | frozenset(b"\\^`{}")
_ILLEGAL_IN_USER = _ILLEGAL_IN_PATH | frozenset(b"@[]|")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_HOST = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=%-]+")
_DEFAULT_PORTS = {"http": 80, "https": 443}
#: Invisible characters that are copied along with addresses.
_BLANKS = " \t\r\n\f\v\0\u00a0\u200b\u2060\ufeff"
_LINE_BREAKS = str.maketrans("", "", "\t\r\n")


class AddressError(ValueError):
    """A text that is not the address of an image on the web. The message never contains the text."""


def parse_address(text: str) -> URL:
    """Parse an address as it was written.

    Args:
        text: the address; "//host/path" without a scheme stands for https.

    Raises:
        AddressError: it is not an http or https URL.
    """
    text = text.strip(_BLANKS).translate(_LINE_BREAKS)
    if text.startswith("//"):
        text = f"https:{text}"
    scheme = _SCHEME.match(text)
    if scheme is None or scheme[1].lower() not in _DEFAULT_PORTS:
        raise AddressError("neither http nor https")
    rest = text[scheme.end() :].partition("#")[0]
    if not rest.startswith("//"):
        raise AddressError("not a URL")
    end = min((at for at in (rest.find("/", 2), rest.find("?", 2)) if at >= 0), default=len(rest))
    path, question_mark, query = rest[end:].partition("?")
    try:
        target = _quote(path or "/", _ILLEGAL_IN_PATH) + question_mark + _quote(query, _ILLEGAL_IN_QUERY)
        authority = _authority(rest[2:end], scheme[1].lower())
        # The query stays in the path, because an empty one would be dropped with its question mark.
        return URL.build(scheme=scheme[1].lower(), authority=authority, path=target, encoded=True)
    except AddressError:
        raise
    except ValueError:
        raise AddressError("not a URL") from None


def join_address(base: URL, location: str) -> URL:
    """Parse the target of a redirect, which may be relative to the requested address.

    Raises:
        AddressError: it is not an http or https URL.
    """
    location = location.strip(_BLANKS).translate(_LINE_BREAKS).partition("#")[0]
    if _SCHEME.match(location):
        return parse_address(location)
    if location.startswith("//"):
        return parse_address(f"{base.scheme}:{location}")
    origin, (path, _, _) = f"{base.scheme}://{base.raw_authority}", base.raw_path_qs.partition("?")
    if location.startswith("/"):
        return parse_address(origin + location)
    if not location or location.startswith("?"):
        return parse_address(origin + (path + location if location else base.raw_path_qs))
    relative, question_mark, query = location.partition("?")
    folder = path.rpartition("/")[0]
    return parse_address(f"{origin}{_resolve(f'{folder}/{relative}')}{question_mark}{query}")


def decode_data_uri(text: str) -> bytes:
    """Return the content of a `data:` URI.

    Raises:
        AddressError: it has no content, or its base64 is broken.
    """
    header, comma, content = text.strip(_BLANKS).partition(",")
    if not comma:
        raise AddressError("no content in the data: URI")
    data = unquote_to_bytes(content)
    if not header.lower().rstrip().endswith(";base64"):
        return data
    data = b"".join(data.split()).rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except binascii.Error:
        raise AddressError("broken base64 in the data: URI") from None


def is_data_uri(text: str) -> bool:
    """Return True for an address that contains the file itself."""
    return text.lstrip(_BLANKS)[:5].lower() == "data:"


def _authority(text: str, scheme: str) -> str:
    user, at, place = text.rpartition("@")
    if place.startswith("["):
        host, bracket, port = place.partition("]")
        host = host[1:]
        if not bracket or (port and not port.startswith(":")):
            raise AddressError("not a URL")
        port = port[1:]
        ipaddress.IPv6Address(host.partition("%")[0])
    else:
        host, _, port = place.partition(":")
    if not host:
        raise AddressError("no host")
    if port and not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise AddressError("not a URL")
    # yarl encodes names outside ASCII and checks IP addresses.
    encoded = URL.build(scheme=scheme, host=host).host_subcomponent or ""
    if not encoded.startswith("[") and not _HOST.fullmatch(encoded):
        raise AddressError("not a URL")
    suffix = f":{int(port)}" if port and int(port) != _DEFAULT_PORTS[scheme] else ""
    return f"{_quote(user, _ILLEGAL_IN_USER)}{at}{encoded}{suffix}"


def _quote(text: str, illegal: frozenset[int]) -> str:
    # Bytes that are not UTF-8 in a header (of a redirect) have become lone surrogates.
    data = text.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if 0x20 < byte < 0x7F and byte not in illegal else f"%{byte:02X}" for byte in data)


def _resolve(path: str) -> str:
    """Resolve "." and ".." in a path, as RFC 3986 does."""
    *folders, name = path.split("/")
    kept: list[str] = []
    for folder in folders:
        if folder == "..":
            del kept[max(1, len(kept) - 1) :]
        elif folder != ".":
            kept.append(folder)
    if name == "..":
        del kept[max(1, len(kept) - 1) :]
    return "/".join([*kept, "" if name in (".", "..") else name])
