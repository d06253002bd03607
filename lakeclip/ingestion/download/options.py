"""`DownloadOptions`, from which the command line derives its flags. This module does not import the HTTP client."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lakeclip.errors import ConfigError

Resize = Literal["shorter", "longer", "crop"]


@dataclass(frozen=True)
class DownloadOptions:
    """Options for downloading images.

    Raises:
        ConfigError: a value is out of range.
    """

    concurrency: int = 64
    """Number of simultaneous requests."""
    per_host: int = 4
    """Number of simultaneous requests to one host."""
    per_host_rate: float = 10.0
    """Requests per second to one host; 0 for no limit."""
    timeout: float = 20.0
    """Limit in seconds for one attempt, from the connection to the last byte."""
    retries: int = 2
    """Further attempts after temporary errors: timeouts, broken connections, HTTP 429 and 5xx."""
    max_bytes: int = 32 * 2**20
    """Largest file in bytes; the download of a larger one is aborted."""
    image_size: int | None = None
    """Shrink larger images to this many pixels, as JPEGs of quality 95. Default: keep files byte for byte."""
    resize: Resize = "shorter"
    """Side that image_size limits: the shorter one, the longer one, or both of the central square (crop)."""
    allow_private: bool = False
    """Allow URLs that lead to this machine or its private network."""
    respect_opt_out: bool = True
    """Skip images whose server sends noai, noimageai, noindex or noimageindex (X-Robots-Tag)."""
    user_agent: str = "lakeclip"
    """User-Agent header; preferably with an address where you can be reached."""

    def __post_init__(self) -> None:
        for name, is_valid, allowed in (
            ("concurrency", self.concurrency >= 1, "at least 1"),
            ("per_host", self.per_host >= 1, "at least 1"),
            ("per_host_rate", 0 <= self.per_host_rate < math.inf, "0 (no limit) or more"),
            ("timeout", 0 < self.timeout < math.inf, "more than 0 seconds"),
            ("retries", self.retries >= 0, "0 or more"),
            ("max_bytes", self.max_bytes >= 1, "at least 1"),
            ("image_size", self.image_size is None or self.image_size >= 1, "at least 1"),
            ("user_agent", self.user_agent.isascii() and self.user_agent.isprintable(), "printable ASCII"),
        ):
            if not is_valid:
                raise ConfigError(f"{name} cannot be {getattr(self, name)!r}", allowed=allowed)
