"""From addresses to pictures: `Downloads` fetches what a source only names, politely and in bounded memory.

`DownloadOptions` is at hand at once, for the command line to make its flags from; `Downloads` brings the HTTP client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lakeclip.lake.download.options import DownloadOptions as DownloadOptions

if TYPE_CHECKING:
    from lakeclip.lake.download.stream import Downloads as Downloads


def __getattr__(name: str) -> Any:
    if name != "Downloads":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lakeclip.lake.download.stream import Downloads

    return Downloads
