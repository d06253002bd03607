"""The log in which Deep Lake keeps the versions of a local dataset: mending it, and going back to an earlier version.

The folder `_deeplake_log` holds a folder of files for each branch. A file `0000000003m….jsonl.lz4` holds the changes of
version 3, one JSON object per line; files with an `o` sum up those of earlier versions. The format is not documented;
`tests/unit/lake/test_commit_log.py` fails if a later Deep Lake changes it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

from lakeclip.lake import engine

LOG = "_deeplake_log"
#: Name of the file with the number of the next version. Deep Lake counts the versions again if it does not exist.
NEXT_VERSION = "next_base"
_FILE = re.compile(r"(\d{10})[a-z]\d+\.jsonl(\.lz4)?")
#: A string, or a word outside of strings: true, null, a number, or what is not JSON.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[-+.0-9A-Za-z]+')
_LARGEST = b"1.7976931348623157E308"


def log_files(path: str) -> list[Path]:
    """Return the files of the log of all branches of a local lake, oldest first."""
    folder = engine.local_folder(path) / LOG
    return sorted(file for file in folder.glob("*/*") if _FILE.fullmatch(file.name))


def main_log_files(path: str) -> dict[int, list[Path]]:
    """Return version → files of the log of the branch `main`; {} if its log cannot be identified."""
    branch = ""
    for file in log_files(path):
        if file.parent.name == "_meta":
            for entry in read_entries(file):
                created = entry.get("createBranch")
                if isinstance(created, dict) and created.get("name") == "main":
                    branch = str(created.get("id"))
    versions: dict[int, list[Path]] = {}
    for file in log_files(path):
        if file.parent.name == branch:
            versions.setdefault(int(file.name[:10]), []).append(file)
    return versions


def version_number(version: str) -> int:
    """Return the number of a version of a dataset, as `dataset.version` gives it."""
    return int(version[:10])


def remove_versions(path: str, after: int, backup: Callable[[Path], None] | None = None) -> bool:
    """Remove the versions of the branch `main` of a local lake that follow a version.

    Args:
        path: normalized path of the lake.
        after: number of the version that is to be the last.
        backup: called with each file before it is removed.

    Returns:
        Whether there were later versions.
    """
    files = [file for version, files in main_log_files(path).items() if version > after for file in files]
    if not files:
        return False
    # The newest first: an interruption must not leave a gap.
    for file in [*sorted(files, reverse=True), files[0].parent / NEXT_VERSION]:
        if file.exists():
            if backup is not None:
                backup(file)
            file.unlink()
    return True


def read_entries(file: Path) -> list[dict[str, object]]:
    """Return the readable lines of a file of the log."""
    entries = []
    try:
        content = _read(file)
    except (OSError, ValueError):
        return []
    for line in content.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


def is_readable(file: Path) -> bool:
    """Return True if a file of the log is complete and holds JSON: Deep Lake ignores some files that are not."""
    try:
        lines = _read(file).splitlines()
        return bool(lines) and all(isinstance(json.loads(line), dict) for line in lines)
    except (OSError, ValueError):
        return False


def commit_message_of(file: Path) -> str:
    """Return the message of the version in a file of the log; "" if there is none or it cannot be read."""
    for entry in read_entries(file):
        if isinstance(commit := entry.get("commit"), dict):
            return str(commit.get("message") or "")
    return ""


def mend(file: Path, backup: Callable[[Path], None]) -> int:
    """Replace what is not JSON in a file of the log: infinite numbers by the largest finite ones, NaN by 0.

    Args:
        file: the file.
        backup: called with the file before it is changed.

    Returns:
        Number of values that were replaced. 0 if the file cannot be decompressed.
    """
    try:
        content = _read(file)
    except (OSError, ValueError):
        return 0
    count = 0

    def mended(match: re.Match[bytes]) -> bytes:
        nonlocal count
        token = match[0]
        replacement = _mend_token(token)
        count += replacement != token
        return replacement

    fixed = _TOKEN.sub(mended, content)
    if count:
        backup(file)
        temporary = file.with_name(f"{file.name}.tmp")
        temporary.write_bytes(_compress(fixed) if file.suffix == ".lz4" else fixed)
        os.replace(temporary, file)
    return count


def _mend_token(token: bytes) -> bytes:
    if token.startswith(b'"') or token in (b"true", b"false", b"null"):
        return token
    try:
        number = float(token)
    except ValueError:
        return token
    if math.isinf(number):
        return b"-" + _LARGEST if number < 0 else _LARGEST
    return b"0" if math.isnan(number) else token


def _read(file: Path) -> bytes:
    data = file.read_bytes()
    return decompress(data) if file.suffix == ".lz4" else data


def decompress(data: bytes) -> bytes:
    """Decompress an LZ4 block with its size in front, as Deep Lake writes it.

    Raises:
        ValueError: the data is damaged.
    """
    size = int.from_bytes(data[:4], "little")
    result = bytearray()
    position = 4

    def length(start: int) -> int:
        nonlocal position
        total = start
        while start == 15:
            byte = data[position]
            position += 1
            total += byte
            if byte != 255:
                break
        return total

    try:
        while position < len(data):
            token = data[position]
            position += 1
            literals = length(token >> 4)
            result += data[position : position + literals]
            position += literals
            if position >= len(data):
                break
            offset = data[position] | data[position + 1] << 8
            position += 2
            remaining = length(token & 15) + 4
            source = len(result) - offset
            if offset == 0 or source < 0:
                raise ValueError("LZ4 data refers to bytes before its start")
            while remaining > 0:
                step = result[source : source + min(remaining, offset)]
                result += step
                source += len(step)
                remaining -= len(step)
    except IndexError:
        raise ValueError("LZ4 data is cut off") from None
    if len(result) != size:
        raise ValueError(f"LZ4 data of {len(result):,} bytes instead of {size:,}")
    return bytes(result)


def _compress(content: bytes) -> bytes:
    """Return an LZ4 block, with its size in front, that holds the content as it is."""
    length = len(content)
    header = bytearray(length.to_bytes(4, "little"))
    if length < 15:
        header.append(length << 4)
    else:
        header.append(0xF0)
        header += b"\xff" * ((length - 15) // 255)
        header.append((length - 15) % 255)
    return bytes(header) + content
