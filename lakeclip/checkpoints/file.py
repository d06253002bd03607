"""Files of weights, read without running anything that is in them: `torch.save`'s, safetensors, TorchScript.

`torch.load` with `weights_only` makes tensors and plain values and nothing else; safetensors cannot hold more; of a
TorchScript archive the tensors are read and the code is left alone (`torchscript.py`).
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
from lakeclip.files import whole_file


def write_torch_file(content: Any, path: Path) -> None:
    """Write what `torch.save` can, whole or not at all.

    Raises:
        OSError, RuntimeError: it cannot be written; what stood there before still does.
    """
    with whole_file(path) as file:
        torch.save(content, file)


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
        return _unpickled(path)


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
                return _of_its_size(read_torchscript(archive), path)
        return _unpickled(path)


def _unpickled(path: Path) -> Any:
    return _of_its_size(torch.load(path, map_location="cpu", weights_only=True, mmap=True), path)


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


#: Tensors may share what a file holds, as tied weights do; how often, on average.
_SHARED = 8


def _of_its_size(content: Any, path: Path) -> Any:
    """What a file holds, if its tensors have about as many numbers as the file has: a stride of 0 makes one any size.

    Raises:
        CheckpointError: they have far more.
    """
    claimed, waiting, seen = 0, [content], set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            claimed += value.numel() * value.element_size()
        elif isinstance(value, (dict, list, tuple, set)) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value
    size = path.stat().st_size
    if claimed > _SHARED * size + _UNPACKED:
        raise CheckpointError(
            f"{path} was refused: its tensors claim far more numbers than it holds",
            found=f"{claimed / 1e6:,.0f} MB in a file of {size / 1e6:,.1f} MB",
        )
    return content


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
