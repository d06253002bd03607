"""The place where a lake is to be made: may it be, and what is there already?"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Sequence

from lakeclip.errors import LakeError, OutputError
from lakeclip.lake import engine

#: What Deep Lake puts into a dataset's folder: logs, and chunks below folders with names like `1gu9c7t` and `q3`.
_LOGS = re.compile(r"_deeplake_log|queries.*|creds_info\.json|.*\.lock")
_CHUNKS = re.compile(r"[0-9a-z]{3,16}")


def check_target(lake: str, sources: Sequence[str] = (), *, overwrite: bool = False) -> None:
    """See that a lake may be made at a path, before any work is done.

    Args:
        lake: the path.
        sources: what will be read; it must not be inside a lake that is to be replaced.
        overwrite: a lake may be there.

    Raises:
        LakeError: there is a lake, or something that is not one, which is never overwritten.
        OutputError: a file is in the way.
    """
    path = engine.normal_path(lake)
    if engine.is_remote(path):
        if not overwrite and engine.exists(path):
            raise LakeError(f"there is a lake already at {path}", next_step="choose another path, or add --overwrite")
        return
    if os.path.lexists(path) and not os.path.isdir(path):
        raise OutputError(
            f"a lake cannot be made at {path}", found="a file", allowed="a folder that does not exist yet"
        )
    if not os.path.isdir(path) or not os.listdir(path):
        return
    if not engine.exists(path):
        names = sorted(os.listdir(path))
        raise LakeError(
            f"{path} is not a lake, so it is left alone",
            found=f"a folder with {', '.join(names[:5])}{' …' if len(names) > 5 else ''}",
            next_step="choose a folder that does not exist yet",
        )
    if not overwrite:
        raise LakeError(
            f"there is a lake already at {path}",
            next_step="choose another path, or add --overwrite to replace it",
        )
    if foreign := _not_deep_lakes(path):
        raise LakeError(
            f"the lake at {path} shares its folder with other files, so it is not overwritten",
            found=", ".join(foreign[:5]),
            next_step="move them, or choose another path",
        )
    for source in sources:
        if os.path.realpath(source).startswith(os.path.realpath(path) + os.sep):
            raise LakeError(f"{source} lies inside the lake that it would replace", next_step="choose another path")


def remove_lake(lake: str) -> None:
    """Remove a lake that `check_target` has seen, or what there is of one after a failure."""
    path = engine.normal_path(lake)
    if engine.is_remote(path):
        engine.deeplake().delete(path, token=engine.keep_token(None))
    elif os.path.isdir(path) and not _not_deep_lakes(path):
        for name in os.listdir(path):
            entry = os.path.join(path, name)
            if os.path.isdir(entry) and not os.path.islink(entry):
                shutil.rmtree(entry, ignore_errors=True)
            else:
                os.unlink(entry)
        with contextlib.suppress(OSError):
            os.rmdir(path)


def _not_deep_lakes(path: str) -> list[str]:
    """Entries of a lake's folder that Deep Lake has not made."""
    found = []
    for entry in os.scandir(path):
        chunks = entry.is_dir(follow_symlinks=False) and _CHUNKS.fullmatch(entry.name)
        if chunks and all(len(name) == 2 for name in os.listdir(entry)):
            continue
        if not _LOGS.fullmatch(entry.name):
            found.append(entry.name)
    return sorted(found)
