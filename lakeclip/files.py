"""Atomic file writes: after a crash or a power failure, a file is either complete or absent."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

#: Suffix of a file that is being written.
PARTIAL_SUFFIX = ".part"


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing, and move it to `path` when the block ends and the data is on the disk.

    Raises:
        OSError: it cannot be written. After this or any other error in the block, an existing file is unchanged.
    """
    part = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            # Without it, a power failure may leave an empty file under the new name.
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to the disk, if the system can open folders (Windows cannot)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
