"""How pictures are downloaded, as a dataclass: the flags are made from it. Nothing here imports the HTTP client."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lakeclip.errors import ConfigError

Resize = Literal["shorter", "longer", "crop"]


@dataclass(frozen=True)
class DownloadOptions:
    """How pictures are downloaded.

    Raises:
        ConfigError: a value that cannot work.
    """

    concurrency: int = 64
    """Requests at once."""
    per_host: int = 4
    """Requests at once to one host."""
    per_host_rate: float = 10.0
    """Requests a second to one host; 0 for no limit."""
    timeout: float = 20.0
    """Seconds that one attempt may take, from its connection to its last byte."""
    retries: int = 2
    """Further attempts after what may pass: timeouts, broken connections, HTTP 429 and 5xx."""
    max_bytes: int = 32 * 2**20
    """Largest file in bytes; what is larger is given up while it is read."""
    image_size: int | None = None
    """Shrink larger pictures to this many pixels, as JPEGs of quality 95. Default: keep files byte for byte."""
    resize: Resize = "shorter"
    """What becomes image_size long: the shorter side, the longer side, or both sides of the middle square (crop)."""
    allow_private: bool = False
    """Follow addresses that lead to this machine or its private network."""
    respect_opt_out: bool = True
    """Leave out pictures whose server sends noai, noimageai, noindex or noimageindex (X-Robots-Tag)."""
    user_agent: str = "lakeclip"
    """What to call ourselves; best with an address where you can be reached."""

    def __post_init__(self) -> None:
        for name, holds, allowed in (
            ("concurrency", self.concurrency >= 1, "at least 1"),
            ("per_host", self.per_host >= 1, "at least 1"),
            ("per_host_rate", 0 <= self.per_host_rate < math.inf, "0 (no limit) or more"),
            ("timeout", 0 < self.timeout < math.inf, "more than 0 seconds"),
            ("retries", self.retries >= 0, "0 or more"),
            ("max_bytes", self.max_bytes >= 1, "at least 1"),
            ("image_size", self.image_size is None or self.image_size >= 1, "at least 1"),
            ("user_agent", self.user_agent.isascii() and self.user_agent.isprintable(), "printable ASCII"),
        ):
            if not holds:
                raise ConfigError(f"{name} cannot be {getattr(self, name)!r}", allowed=allowed)
