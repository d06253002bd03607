"""Repair of a local lake that cannot be opened, with a backup of every file of its log that is changed."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lakeclip.errors import LakeError, OutputError
from lakeclip.ingestion.target import acquire_lock
from lakeclip.lake import commit_log, engine
from lakeclip.lake.columns import type_names
from lakeclip.lake.values import is_storable_number

_BLOCK = 100_000


@dataclass
class RepairResult:
    """Outcome of a repair.

    Attributes:
        lake: path of the lake.
        rows: number of rows that it holds now.
        mended: number of numbers in the log that were not JSON and were replaced.
        missing: column → number of its values that no column can hold (infinite ones), now missing values.
        removed: messages of the commits that were removed, newest first.
        backup: folder with the files as they were; "" if nothing was changed.
    """

    lake: str
    rows: int = 0
    mended: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    removed: list[str] = field(default_factory=list)
    backup: str = ""


def repair_lake(lake: str | os.PathLike[str]) -> RepairResult:
    """Repair a local lake that cannot be opened, as `lakeclip ingest --repair` does.

    An infinite number in a column of numbers made Deep Lake write a log that it cannot read. Such a log is mended, and
    the number becomes a missing value: no row is lost. If the lake still cannot be opened, or files with data are
    missing or cut off, the newest commits are removed until it can. A lake without damage is left as it is.

    Args:
        lake: folder of the lake.

    Returns:
        What was changed, and where the files are kept as they were.

    Raises:
        LakeError: there is no lake, another process writes to it, or it cannot be repaired; it is then left as it was.
        OutputError: the folder cannot be written.
    """
    path = engine.normalize_path(lake)
    if engine.is_remote(path):
        raise LakeError(
            f"cannot repair the lake at {path}",
            found="a lake that is not on this machine",
            allowed="a local folder",
            next_step="copy it to a local folder, repair the copy, and copy it back",
        )
    if not commit_log.log_files(path):
        raise LakeError(
            f"cannot repair the lake at {path}",
            found="no log of Deep Lake (_deeplake_log) with files",
            next_step=f"ingest its sources again: lakeclip ingest SOURCE {path} --overwrite",
        )
    lock = acquire_lock(path)
    try:
        return _repair(path)
    except OSError as error:
        raise OutputError(f"cannot repair the lake at {path}", found=error.strerror or str(error)) from None
    finally:
        lock.release()


class _Backup:
    """Copies of the files of a lake that a repair changes."""

    def __init__(self, path: str) -> None:
        self._root = engine.local_folder(path)
        number = 1
        while os.path.lexists(folder := f"{self._root}.before-repair{'' if number == 1 else f'-{number}'}"):
            number += 1
        self.folder = Path(folder)
        self._saved: list[Path] = []

    def save(self, file: Path) -> None:
        name = file.relative_to(self._root)
        if name not in self._saved:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, self.folder / name)
            self._saved.append(name)

    def restore(self) -> None:
        """Put all files back, and remove the copies."""
        for name in self._saved:
            shutil.copy2(self.folder / name, self._root / name)
        if self._saved:
            shutil.rmtree(self.folder)


def _repair(path: str) -> RepairResult:
    result = RepairResult(path)
    if (dataset := _open(path)) is not None:
        result.rows = len(dataset)
        return result
    backup = _Backup(path)
    try:
        for file in commit_log.log_files(path):
            result.mended += commit_log.mend(file, backup.save)
        for counter in engine.local_folder(path).glob(f"{commit_log.LOG}/*/{commit_log.NEXT_VERSION}"):
            if counter.stat().st_size == 0:  # of a full disk
                backup.save(counter)
                counter.unlink()
        while (dataset := _open(path)) is None:
            _remove_newest(path, backup, result)
        if result.mended:
            del dataset
            result.missing = _remove_bad_numbers(path)
            dataset = engine.open_dataset(path)
    except BaseException:
        backup.restore()
        raise
    result.rows = len(dataset)
    result.backup = str(backup.folder)
    return result


def _open(path: str) -> Any:
    """Return the dataset, or None if it cannot be opened, or parts of its log or its files are missing or cut off."""
    if not all(map(commit_log.is_readable, commit_log.log_files(path))):
        return None  # Deep Lake may open it, with fewer rows
    try:
        dataset = engine.open_dataset(path)
    except LakeError:
        return None
    return dataset if dataset.schema.columns else None


def _remove_newest(path: str, backup: _Backup, result: RepairResult) -> None:
    versions = commit_log.main_log_files(path)
    if len(versions) < 2:
        raise LakeError(
            f"the lake at {path} cannot be repaired",
            found=f"no version of it can be opened ({len(result.removed):,} were tried); its files are as they were",
            next_step=f"ingest its sources again: lakeclip ingest SOURCE {path} --overwrite",
        )
    newest = max(versions)
    messages = [message for file in versions[newest] if (message := commit_log.commit_message_of(file))]
    result.removed.append(messages[0] if messages else f"version {newest}")
    commit_log.remove_versions(path, newest - 1, backup.save)


def _remove_bad_numbers(path: str) -> Counter[str]:
    """Replace numbers that Deep Lake cannot store safely by missing values; return column → how many."""
    try:
        dataset = engine.deeplake().open(path, token=engine.get_token())
    except Exception as error:
        raise engine.lake_error(error, path) from None
    try:
        changed = _replace_bad_numbers(dataset)
        if changed:
            shown = ", ".join(f"{count} of column {name}" for name, count in changed.items())
            dataset.commit(f"repaired: {shown} stored as missing")
    except BaseException:
        dataset.rollback()  # Deep Lake would commit what has been changed when it closes the dataset
        raise
    return changed


def _replace_bad_numbers(dataset: Any) -> Counter[str]:
    changed: Counter[str] = Counter()
    for name, kind in type_names(dataset).items():
        if kind not in ("float64", "float32"):
            continue
        for start in range(0, len(dataset), _BLOCK):
            stop = min(start + _BLOCK, len(dataset))
            values = np.array(dataset[name][start:stop], np.float64).reshape(-1)
            bad = [row for row, value in enumerate(values.tolist()) if value == value and not is_storable_number(value)]
            if bad:
                values[bad] = np.nan
                dataset[name][start:stop] = values.tolist()
                changed[name] += len(bad)
    return changed
