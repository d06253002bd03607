"""Downloads of images by URL: `Downloads` respects limits per host and runs in bounded memory.

`DownloadOptions` is imported eagerly, because the command line derives its flags from it; `Downloads` is imported
lazily, because it needs the HTTP client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lakeclip.ingestion.download.options import DownloadOptions as DownloadOptions

if TYPE_CHECKING:
    from lakeclip.ingestion.download.stream import Downloads as Downloads


def __getattr__(name: str) -> Any:
    if name != "Downloads":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lakeclip.ingestion.download.stream import Downloads

    return Downloads
