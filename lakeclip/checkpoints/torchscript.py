"""Read the tensors of a TorchScript archive, OpenAI's release format, without running its code.

TorchScript is a program. `torch.jit.load` compiles the archive's code and runs some of it (`__setstate__`), so an
untrusted archive could run anything. The weights do not need that. They are in data.pkl, a tree of modules as nested
attributes, and in one little-endian file per storage. The tree is unpickled with every global replaced by an inert
object; the code is ignored.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
#: Upper limit on names of modules and attributes; no CLIP comes close.
_MAX_NAMES = 1_000_000


def is_torchscript(archive: zipfile.ZipFile) -> bool:
    """Return True for a TorchScript archive; archives by `torch.save` have no constants."""
    return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """Return all tensors of the archive's modules, on the CPU, under their state-dict names.

    They include tensors that are plain attributes of a module, which a state dict leaves out.

    Raises:
        pickle.UnpicklingError: the archive contains more than modules, tensors and plain values.
        ValueError, LookupError, TypeError, AttributeError, RuntimeError: the archive is malformed.
    """
    folder = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).rpartition("/")[0]
    root = _TreeUnpickler(io.BytesIO(archive.read(f"{folder}/data.pkl"))).load()
    if not isinstance(root, SimpleNamespace):
        raise ValueError("the TorchScript archive contains no module")
    storages: dict[tuple[str, torch.dtype], Tensor] = {}
    tensors = {}
    for name, view in _views(root):
        _, dtype, key, *_ = view.storage
        if (key, dtype) not in storages:
            data = bytearray(archive.read(f"{folder}/data/{key}"))
            storages[key, dtype] = torch.frombuffer(data, dtype=dtype)
        tensors[name] = storages[key, dtype].as_strided(view.size, view.stride, view.offset)
    return tensors


class _View(NamedTuple):
    """A tensor that has not been read yet: its storage, and the part of it."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


class _TreeUnpickler(pickle._Unpickler):
    """Unpickler that returns modules as bare namespaces and tensors as views, and never imports a name of the file.

    It subclasses the unpickler in Python: in the one in C, six bytes with a large memo index allocate gigabytes.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return SimpleNamespace
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _view
        if (module, name) == ("collections", "OrderedDict"):  # a tensor's hooks
            return dict
        if module == "torch.jit._pickle":  # typed lists and dicts, which are not weights
            return _nothing
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _view(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _View:
    return _View(storage, offset, size, stride)


def _nothing(*_: Any) -> None:
    return None


def _views(root: SimpleNamespace) -> Iterator[tuple[str, _View]]:
    """Yield the tensors by name, in the order of the file."""
    pending: list[tuple[str, Any]] = [("", root)]
    # Modules may be shared. Nested sharing lets a few modules have exponentially many names.
    for _ in range(_MAX_NAMES):
        if not pending:
            return
        name, value = pending.pop()
        if isinstance(value, _View):
            yield name, value
        elif isinstance(value, SimpleNamespace):
            prefix = f"{name}." if name else ""
            pending += [(prefix + attribute, inner) for attribute, inner in reversed(vars(value).items())]
    raise ValueError(f"more than {_MAX_NAMES:,} names, which is more than any model has")
