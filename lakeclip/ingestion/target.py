"""Checks of the target path: an ingest may create, extend or replace a lake there, but never overwrite other data."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Sequence

from filelock import FileLock, Timeout

from lakeclip.errors import LakeError, OutputError
from lakeclip.ingestion.state import read_state
from lakeclip.lake import engine

#: Files of Deep Lake in a dataset's folder: logs, and chunks below folders with names like `1gu9c7t` and `q3`.
_LOGS = re.compile(r"_deeplake_log|queries.*|creds_info\.json|.*\.lock")
#: Name of the lock file that is held while a lake is written.
LOCK = "lakeclip.lock"
_CHUNKS = re.compile(r"[0-9a-z]{3,16}")


def check_target(
    lake: str,
    sources: Sequence[str] = (),
    *,
    overwrite: bool = False,
    append: bool = False,
    names: Sequence[str] | None = None,
) -> bool:
    """Check whether an ingest may write to a path, before any work is done.

    Args:
        lake: the path.
        sources: paths that will be read; they must not be inside a lake that is to be replaced.
        overwrite: allow an existing lake, to be replaced.
        append: allow an existing lake, to be extended.
        names: base names of the sources; only an interrupted ingest of the same sources may resume. None if they are
            not known yet: any interrupted ingest may resume.

    Returns:
        True if there is a lake to continue.

    Raises:
        LakeError: there is a lake already, or a folder that is not a lake, which is never overwritten.
        OutputError: the path is a file.
    """
    path = engine.normalize_path(lake)
    if overwrite and append:
        raise LakeError(f"cannot both replace the lake at {path} and add to it", allowed="--overwrite or --append")
    if not engine.is_remote(path):
        if os.path.lexists(path) and not os.path.isdir(path):
            raise OutputError(
                f"cannot create a lake at {path}", found="a file", allowed="a folder that does not exist yet"
            )
        if not os.path.isdir(path) or _is_empty(path):
            return False
    if not engine.exists(path):
        if engine.is_remote(path):
            return False
        entries = sorted(os.listdir(path))
        raise LakeError(
            f"{path} is not a lake, so it is not overwritten",
            found=f"a folder with {', '.join(entries[:5])}{' …' if len(entries) > 5 else ''}",
            next_step="choose a folder that does not exist yet",
        )
    if overwrite:
        _check_replaceable(path, sources)
        return False
    if append:
        return bool(engine.open_dataset(path).schema.columns)  # it has none if its creation was interrupted
    return _may_resume(path, names)


def acquire_lock(path: str) -> FileLock:
    """Lock a local lake for writing, so that no two processes fill it. A crash releases the lock.

    Raises:
        LakeError: another process holds the lock.
    """
    lock = FileLock(os.path.join(path, LOCK), thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise LakeError(
            f"another process is writing to the lake at {path}", next_step="wait until it has finished"
        ) from None
    return lock


def clear_target(lake: str, *, overwrite: bool) -> None:
    """Clear the path of a new lake, after `check_target` has allowed it.

    Args:
        lake: the path.
        overwrite: remove an existing lake. Otherwise only the remains of an interrupted creation are removed.

    Raises:
        LakeError: another process is writing to the lake.
    """
    path = engine.normalize_path(lake)
    if not engine.is_remote(path) and os.path.isdir(path) and os.listdir(path):
        acquire_lock(path).release()
    if overwrite or (engine.exists(path) and not engine.open_dataset(path).schema.columns):
        remove_lake(path)


def remove_lake(lake: str) -> None:
    """Remove a lake that `check_target` allows to be replaced, or the remains of an interrupted creation."""
    path = engine.normalize_path(lake)
    if os.path.isdir(path) and not os.listdir(path):
        return
    if engine.is_remote(path):
        if engine.exists(path):
            engine.deeplake().delete(path, token=engine.get_token())
    elif os.path.isdir(path) and not _foreign_entries(path):
        # Rename first, in one step: an interrupted removal must not leave half a lake at its path.
        renamed = f"{path}.removed"
        if os.path.isdir(renamed) and not _foreign_entries(renamed):
            shutil.rmtree(renamed, ignore_errors=True)
        with contextlib.suppress(OSError):  # the path is a mount point
            if not os.path.islink(path):
                os.rename(path, renamed)
                path = renamed
        for name in os.listdir(path):
            entry = os.path.join(path, name)
            if os.path.isdir(entry) and not os.path.islink(entry):
                shutil.rmtree(entry, ignore_errors=True)
            else:
                os.unlink(entry)
        with contextlib.suppress(OSError):
            os.rmdir(path)


def _is_empty(path: str) -> bool:
    """Return whether a folder is empty, or holds only the remains of an interrupted creation."""
    entries = set(os.listdir(path)) - {LOCK}
    return not entries or (entries == {"_deeplake_log"} and not engine.exists(path))


def _check_replaceable(path: str, sources: Sequence[str]) -> None:
    if engine.is_remote(path):
        return
    if foreign := _foreign_entries(path):
        raise LakeError(
            f"the lake at {path} shares its folder with other files, so it is not overwritten",
            found=", ".join(foreign[:5]),
            next_step="move these files, or choose another path",
        )
    for source in sources:
        if os.path.realpath(source).startswith(os.path.realpath(path) + os.sep):
            raise LakeError(f"{source} is inside the lake that it would replace", next_step="choose another path")


def _may_resume(path: str, names: Sequence[str] | None) -> bool:
    dataset = engine.open_dataset(path)
    if not dataset.schema.columns:  # its creation was interrupted
        return False
    state = read_state(dataset)
    if state is not None and not state.complete:
        if names is None or state.sources in ([], list(names)):
            return True
        raise LakeError(
            f"an ingest into the lake at {path} was interrupted",
            found=f"{len(dataset):,} rows; it was reading {', '.join(state.sources)}",
            next_step="run that command again to finish it; or add --append to read other sources into the same lake, "
            "or --overwrite to replace it",
        )
    contents = f"{len(dataset):,} rows" + (f" from {', '.join(state.sources)}" if state else "")
    raise LakeError(
        f"there is already a lake at {path}",
        found=contents,
        next_step="--append adds the rows that it lacks, --overwrite replaces it; or choose another path",
    )


def _foreign_entries(path: str) -> list[str]:
    """List the entries of a lake's folder that Deep Lake did not create."""
    foreign = []
    for entry in os.scandir(path):
        chunks = entry.is_dir(follow_symlinks=False) and _CHUNKS.fullmatch(entry.name)
        if chunks and all(len(name) == 2 for name in os.listdir(entry)):
            continue
        if not _LOGS.fullmatch(entry.name):
            foreign.append(entry.name)
    return sorted(foreign)
