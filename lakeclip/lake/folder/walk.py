"""The files below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

from lakeclip.errors import SourceError


def walk(folder: str) -> Iterator[tuple[str, str]]:
    """Yield the folder (relative) and name of each file below a folder, in bounded memory.

    Hidden files and folders are skipped; links are followed, once. Folders are sorted; the files in each are not,
    because there may be millions.

    Raises:
        SourceError: a folder cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        relative = pending.pop()
        path = os.path.join(folder, relative) if relative else folder
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        folders = []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        folders.append(entry.name)
                    else:
                        yield relative, entry.name
        except OSError as error:
            raise SourceError(f"cannot read the folder {path}", found=error.strerror or str(error)) from None
        pending += [os.path.join(relative, name) for name in sorted(folders, reverse=True)]
