"""The place where a lake is to be made or to grow: may it, and what is there already?"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Sequence

from lakeclip.errors import LakeError, OutputError
from lakeclip.lake import engine
from lakeclip.lake.ledger import read_state

#: What Deep Lake puts into a dataset's folder: logs, and chunks below folders with names like `1gu9c7t` and `q3`.
_LOGS = re.compile(r"_deeplake_log|queries.*|creds_info\.json|.*\.lock")
#: Held while a lake is written.
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
    """See what a lake's place allows, before any work is done.

    Args:
        lake: the path.
        sources: what will be read; it must not be inside a lake that is to be replaced.
        overwrite: a lake may be there, to be replaced.
        append: a lake may be there, to grow.
        names: what the sources are called; an ingest of just these that was cut short may go on. None where that is not
            known yet: any may.

    Returns:
        Whether there is a lake to go on with.

    Raises:
        LakeError: there is a lake, or something that is not one, which is never overwritten.
        OutputError: a file is in the way.
    """
    path = engine.normal_path(lake)
    if overwrite and append:
        raise LakeError(f"the lake at {path} cannot be both replaced and added to", allowed="--overwrite or --append")
    if not engine.is_remote(path):
        if os.path.lexists(path) and not os.path.isdir(path):
            raise OutputError(
                f"a lake cannot be made at {path}", found="a file", allowed="a folder that does not exist yet"
            )
        if not os.path.isdir(path) or _is_unborn(path):
            return False
    if not engine.exists(path):
        if engine.is_remote(path):
            return False
        names_there = sorted(os.listdir(path))
        raise LakeError(
            f"{path} is not a lake, so it is left alone",
            found=f"a folder with {', '.join(names_there[:5])}{' …' if len(names_there) > 5 else ''}",
            next_step="choose a folder that does not exist yet",
        )
    if overwrite:
        _check_replaceable(path, sources)
        return False
    return append or _goes_on(path, names)


def take_lock(path: str) -> int:
    """Lock a local lake for writing: two processes that fill one would each add every row. A crash lets go of it.

    Returns:
        The descriptor of the lock, to be closed.

    Raises:
        LakeError: another process has it.
    """
    lock = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise LakeError(
            f"another process is writing to the lake at {path}", next_step="wait until it has ended"
        ) from None
    return lock


def clear_target(lake: str, *, overwrite: bool) -> None:
    """Make room for a new lake where `check_target` has allowed one.

    Args:
        overwrite: remove the lake that is there; else only what is left of one whose making was cut short.

    Raises:
        LakeError: another process is writing to it.
    """
    path = engine.normal_path(lake)
    if not engine.is_remote(path) and os.path.isdir(path) and os.listdir(path):
        os.close(take_lock(path))
    if overwrite or (engine.exists(path) and not engine.open_dataset(path).schema.columns):
        remove_lake(path)


def remove_lake(lake: str) -> None:
    """Remove a lake that `check_target` lets be replaced, or what there is of one that was cut short."""
    path = engine.normal_path(lake)
    if os.path.isdir(path) and not os.listdir(path):
        return
    if engine.is_remote(path):
        if engine.exists(path):
            engine.deeplake().delete(path, token=engine.keep_token(None))
    elif os.path.isdir(path) and not _not_deep_lakes(path):
        # In one step out of the way: what is left of a removal that is cut short must not stand where a lake belongs.
        aside = f"{path}.removed"
        if os.path.isdir(aside) and not _not_deep_lakes(aside):
            shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):  # a link, or the root of a disk
            if not os.path.islink(path):
                os.rename(path, aside)
                path = aside
        for name in os.listdir(path):
            entry = os.path.join(path, name)
            if os.path.isdir(entry) and not os.path.islink(entry):
                shutil.rmtree(entry, ignore_errors=True)
            else:
                os.unlink(entry)
        with contextlib.suppress(OSError):
            os.rmdir(path)


def _is_unborn(path: str) -> bool:
    """Whether a folder is empty, or holds what the making of a lake left when it was cut short."""
    entries = set(os.listdir(path)) - {LOCK}
    return not entries or (entries == {"_deeplake_log"} and not engine.exists(path))


def _check_replaceable(path: str, sources: Sequence[str]) -> None:
    if engine.is_remote(path):
        return
    if foreign := _not_deep_lakes(path):
        raise LakeError(
            f"the lake at {path} shares its folder with other files, so it is not overwritten",
            found=", ".join(foreign[:5]),
            next_step="move them, or choose another path",
        )
    for source in sources:
        if os.path.realpath(source).startswith(os.path.realpath(path) + os.sep):
            raise LakeError(f"{source} lies inside the lake that it would replace", next_step="choose another path")


def _goes_on(path: str, names: Sequence[str] | None) -> bool:
    dataset = engine.open_dataset(path)
    if not dataset.schema.columns:  # cut short while it was made
        return False
    state = read_state(dataset)
    if state is not None and not state.complete:
        if names is None or state.sources in ([], list(names)):
            return True
        raise LakeError(
            f"an ingest into the lake at {path} was cut short",
            found=f"{len(dataset):,} rows; it was reading {', '.join(state.sources)}",
            next_step="run that command again to end it, or add --append to read other sources into the same lake, or "
            "--overwrite to replace it",
        )
    held = f"{len(dataset):,} rows" + (f" from {', '.join(state.sources)}" if state else "")
    raise LakeError(
        f"there is a lake already at {path}",
        found=held,
        next_step="--append adds what is not in it yet, --overwrite replaces it; or choose another path",
    )


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
