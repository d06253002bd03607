"""Read weight files (`torch.save`, safetensors, TorchScript) without running any code in them.

`torch.load` with `weights_only` creates only tensors and plain values, and safetensors cannot hold anything else. From
a TorchScript archive only the tensors are read (`torchscript.py`).
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from lakeclip.checkpoints.torchscript import is_torchscript, read_torchscript
from lakeclip.errors import CheckpointError
from lakeclip.files import atomic_write


def write_torch_file(content: Any, path: Path) -> None:
    """Write a file with `torch.save` atomically.

    Raises:
        OSError, RuntimeError: the file cannot be written; an earlier file at the path is unchanged.
    """
    with atomic_write(path) as file:
        torch.save(content, file)


def read_torch_file(path: Path, *, allowed: str) -> Any:
    """Read a file by `torch.save`: plain values, and tensors on the CPU, memory-mapped (copy before changing).

    Args:
        allowed: description of the expected file, for the error.

    Raises:
        CheckpointError: unreadable, damaged, another kind of file, or more than weights and plain values.
    """
    with _convert_errors(path), _archive(path, allowed) as archive:
        if is_torchscript(archive):  # `torch.load` would pass it to `torch.jit.load`, which runs its code
            raise CheckpointError(f"{path} is a TorchScript archive", allowed=allowed)
        return _load_pickle(path)


def read_weights_file(path: Path, *, allowed: str) -> Any:
    """Read a file by `torch.save`, safetensors or TorchScript; the last two yield a dict of tensors by name.

    The kind of file is detected from its content.

    Raises:
        CheckpointError: as `read_torch_file`.
    """
    with _convert_errors(path):
        if _is_safetensors(path):
            return safetensors.torch.load_file(path)
        with _archive(path, allowed) as archive:
            if is_torchscript(archive):
                return _checked_size(read_torchscript(archive), path)
        return _load_pickle(path)


def _load_pickle(path: Path) -> Any:
    return _checked_size(torch.load(path, map_location="cpu", weights_only=True, mmap=True), path)


#: Exceptions that the readers raise for a damaged archive or an invalid pickle.
_UNREADABLE = (
    *(OSError, RuntimeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error),
    *(AssertionError, struct.error, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError),
)


@contextmanager
def _convert_errors(path: Path) -> Iterator[None]:
    """Convert exceptions of the readers to a `CheckpointError`."""
    try:
        yield
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(
            f"{path} was refused: it contains more than weights and plain values, and loading it could run code",
            found=refused[1] if refused else "code, or no valid pickle",
            allowed="tensors, numbers, strings, lists and dicts",
            next_step="save the weights alone where the file was made: torch.save(model.state_dict(), FILE)",
        ) from None
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file",
            found=str(error)[:200],
            next_step="copy it again, or use another file",
        ) from None
    except _UNREADABLE as error:
        found = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} cannot be read", found=found[:200]) from None


#: Upper limit on the ratio of the tensors' size to the file's size; tensors may share storage, as tied weights do.
_MAX_SHARING = 8


def _checked_size(content: Any, path: Path) -> Any:
    """Return the content if its tensors are about as large as the file; a stride of 0 can claim any size.

    Raises:
        CheckpointError: the tensors are far larger.
    """
    claimed, pending, seen = 0, [content], set[int]()
    while pending:
        value = pending.pop()
        if isinstance(value, torch.Tensor):
            claimed += value.numel() * value.element_size()
        elif isinstance(value, (dict, list, tuple, set)) and id(value) not in seen:
            seen.add(id(value))
            pending += value.values() if isinstance(value, dict) else value
    size = path.stat().st_size
    if claimed > _MAX_SHARING * size + _MAX_EXPANSION:
        raise CheckpointError(
            f"{path} was refused: its tensors claim far more data than the file contains",
            found=f"{claimed / 1e6:,.0f} MB in a file of {size / 1e6:,.1f} MB",
        )
    return content


#: Bytes by which an archive may grow when unpacked: TorchScript's code is compressed, weights are not.
_MAX_EXPANSION = 64 * 2**20


@contextmanager
def _archive(path: Path, allowed: str) -> Iterator[zipfile.ZipFile]:
    """Open the zip archive of `torch.save` or TorchScript after checking that it is complete and undamaged."""
    with path.open("rb") as file:
        head = file.read(4)
    if not zipfile.is_zipfile(path):
        raise _incomplete(path, head, allowed)
    with zipfile.ZipFile(path) as archive:
        # Weights are stored uncompressed. An archive that unpacks to far more is an attack on memory.
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size + _MAX_EXPANSION:
            raise CheckpointError(f"{path} was refused: it unpacks to far more data than the file contains")
        # Memory-mapping verifies no checksums, so bit rot would silently change the model.
        if (damaged := archive.testzip()) is not None:
            raise CheckpointError(f"{path} is damaged", found=f"a wrong checksum in {damaged}")
        yield archive


def _incomplete(path: Path, head: bytes, allowed: str) -> CheckpointError:
    size = path.stat().st_size
    if size == 0:
        return CheckpointError(
            f"{path} is empty", next_step="use another file; the disk may have been full when this one was written"
        )
    if head.startswith(b"PK"):
        return CheckpointError(
            f"{path} is truncated: the end of the archive is missing",
            found=f"{size:,} bytes",
            next_step="copy it again, or use another checkpoint of the run",
        )
    return CheckpointError(f"{path} is not a checkpoint", found=f"a file that begins with {head!r}", allowed=allowed)


def _is_safetensors(path: Path) -> bool:
    """Return True if the file starts like safetensors: the length of a JSON object, then the object."""
    with path.open("rb") as file:
        head = file.read(9)
    if path.suffix == ".safetensors" and head:
        return True
    return head[8:] == b"{" and 8 + int.from_bytes(head[:8], "little") <= path.stat().st_size
