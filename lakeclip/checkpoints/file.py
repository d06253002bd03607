"""Files of weights, read without running anything that is in them: `torch.save`'s, safetensors, TorchScript.

`torch.load` with `weights_only` makes tensors and plain values and nothing else; safetensors cannot hold more; of a
TorchScript archive the tensors are read and the code is left alone (`torchscript.py`). What is written is either whole
under its name or not there at all, whenever the process or the power ends.
"""

from __future__ import annotations

import contextlib
import os
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

#: The ending of a file that is being written.
PART = ".part"


def write_torch_file(content: Any, path: Path) -> None:
    """Write what `torch.save` can, aside, and let it take its place when all of it is on the disk.

    Raises:
        OSError, RuntimeError: it cannot be written; what stood there before still does.
    """
    part = path.with_name(path.name + PART)
    try:
        with part.open("wb") as file:
            torch.save(content, file)
            file.flush()
            # Else a power failure may leave the new name with nothing behind it.
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _settle(path.parent)


def _settle(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system lets folders be opened (Windows does not)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_torch_file(path: Path, *, allowed: str) -> Any:
    """What `torch.save` wrote: tensors on the CPU, mapped from the file (copy before changing), and plain values.

    Args:
        allowed: what the file should have been, for the error.

    Raises:
        CheckpointError: it cannot be read, is damaged or something else, or holds more than weights and plain values.
    """
    with _explained(path), _archive(path, allowed) as archive:
        if is_torchscript(archive):  # which PyTorch would hand to the reader that runs its code
            raise CheckpointError(f"{path} is a TorchScript archive", allowed=allowed)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def read_weights_file(path: Path, *, allowed: str) -> Any:
    """The same, or from safetensors and TorchScript a dict of tensors by name. What the file is, its content tells.

    Raises:
        CheckpointError: as `read_torch_file`.
    """
    with _explained(path):
        if _is_safetensors(path):
            return safetensors.torch.load_file(path)
        with _archive(path, allowed) as archive:
            if is_torchscript(archive):
                return read_torchscript(archive)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


#: What a damaged archive, or a pickle that makes no sense, makes its readers raise.
_UNREADABLE = (
    *(OSError, RuntimeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error),
    *(AssertionError, struct.error, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError),
)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What goes wrong when a file is read, as the user's error that it is."""
    try:
        yield
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(
            f"{path} was refused: it holds more than weights and plain values, and loading it could run code",
            found=refused[1] if refused else "code, or no pickle at all",
            allowed="tensors, numbers, strings, lists and dicts",
            next_step="where it was made: torch.save(model.state_dict(), FILE)",
        ) from None
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{path} is not whole safetensors", found=str(error)[:200], next_step="copy it again, or take another"
        ) from None
    except _UNREADABLE as error:
        found = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} cannot be read", found=found[:200]) from None


#: Bytes by which an archive may grow when it is unpacked: TorchScript's code is compressed, weights are not.
_UNPACKED = 64 * 2**20


@contextmanager
def _archive(path: Path, allowed: str) -> Iterator[zipfile.ZipFile]:
    """The zip archive that `torch.save` and TorchScript make, found whole."""
    with path.open("rb") as file:
        head = file.read(4)
    if not zipfile.is_zipfile(path):
        raise _not_whole(path, head, allowed)
    with zipfile.ZipFile(path) as archive:
        # Weights are stored as they are; what unpacks to far more is there to fill somebody's memory.
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size + _UNPACKED:
            raise CheckpointError(f"{path} was refused: it unpacks to far more than it holds")
        # Mapping the weights checks nothing, so bit rot would give another model without a word.
        if (damaged := archive.testzip()) is not None:
            raise CheckpointError(f"{path} is damaged", found=f"a wrong checksum in {damaged}")
        yield archive


def _not_whole(path: Path, head: bytes, allowed: str) -> CheckpointError:
    size = path.stat().st_size
    if size == 0:
        return CheckpointError(f"{path} is empty", next_step="was the disk full when it was written? Take another one")
    if head.startswith(b"PK"):
        return CheckpointError(
            f"{path} is truncated: the end of the archive is missing",
            found=f"{size:,} bytes",
            next_step="copy it again, or take another checkpoint of the run",
        )
    return CheckpointError(f"{path} is not a checkpoint", found=f"a file that begins with {head!r}", allowed=allowed)


def _is_safetensors(path: Path) -> bool:
    """Whether it begins like safetensors: the length of a JSON object, and that object."""
    with path.open("rb") as file:
        head = file.read(9)
    if path.suffix == ".safetensors" and head:
        return True
    return head[8:] == b"{" and 8 + int.from_bytes(head[:8], "little") <= path.stat().st_size
