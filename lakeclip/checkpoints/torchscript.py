"""The tensors of a TorchScript archive, which is how OpenAI releases its models, without running its code.

TorchScript is a program. `torch.jit.load` compiles what the archive brings and runs some of it (`__setstate__`), so an
archive from a stranger could do more than load. Its weights need none of that: they are in data.pkl, a tree of modules
as nested attributes, and in one file for each storage, little-endian. That tree is unpickled with every name in it
replaced by something inert; the code is not looked at.
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
#: Of modules and their attributes; far more than any CLIP has.
_MOST_NAMES = 1_000_000


def is_torchscript(archive: zipfile.ZipFile) -> bool:
    """Whether an archive is TorchScript's; `torch.save`'s have no constants."""
    return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """Every tensor that the archive's modules hold, on the CPU, by the name that it has in their state dict.

    Tensors that are plain attributes of a module, which a state dict leaves out, are among them.

    Raises:
        pickle.UnpicklingError: it holds something other than modules, tensors and plain values.
        ValueError, LookupError, TypeError, AttributeError, RuntimeError: it is malformed.
    """
    folder = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).rpartition("/")[0]
    root = _Tree(io.BytesIO(archive.read(f"{folder}/data.pkl"))).load()
    if not isinstance(root, SimpleNamespace):
        raise ValueError("the TorchScript archive holds no module")
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
    """A tensor that is not read yet: where its storage is, and which part of it."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


class _Tree(pickle._Unpickler):
    """Modules as bare namespaces, tensors as views. No name in the file is ever imported.

    In Python, not C: there six bytes that number an entry of the memo take gigabytes.
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
        if module == "torch.jit._pickle":  # lists and dicts with types, which are no weights
            return _nothing
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _view(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _View:
    return _View(storage, offset, size, stride)


def _nothing(*_: Any) -> None:
    return None


def _views(root: SimpleNamespace) -> Iterator[tuple[str, _View]]:
    """Tensors by name, in the order of the file."""
    waiting: list[tuple[str, Any]] = [("", root)]
    # Modules may be shared; shared within what is shared, a few make any number of names.
    for _ in range(_MOST_NAMES):
        if not waiting:
            return
        name, value = waiting.pop()
        if isinstance(value, _View):
            yield name, value
        elif isinstance(value, SimpleNamespace):
            prefix = f"{name}." if name else ""
            waiting += [(prefix + one, inner) for one, inner in reversed(vars(value).items())]
    raise ValueError(f"more than {_MOST_NAMES:,} names: no model has so many")
