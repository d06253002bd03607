"""lakeclip trains CLIP on your own data, from a Deep Lake dataset.

    model = lakeclip.create_model("ViT-B/32")             # nn.Module: encode_image, encode_text, logit_scale
    ids = lakeclip.tokenize(["a photo of a dog"])         # (1, 77) int64
    model, tokenize, transform = lakeclip.load("runs/x")  # a run folder or a checkpoint, ready to encode
    lake = lakeclip.open_lake(path, query=None)           # length, columns, rows

This is the whole of the public API. Names are imported when first used, so `import lakeclip` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lakeclip.checkpoints.layouts import load as load
    from lakeclip.config.schema import EvaluationConfig as EvaluationConfig
    from lakeclip.data.datamodule import PairDataModule as PairDataModule
    from lakeclip.data.seed import DeepLakeDataModule as DeepLakeDataModule
    from lakeclip.data.seed import TextImageDataModule as TextImageDataModule
    from lakeclip.errors import LakeclipError as LakeclipError
    from lakeclip.lake.dataset import open_lake as open_lake
    from lakeclip.models.zoo import available_models as available_models
    from lakeclip.models.zoo import create_model as create_model
    from lakeclip.text.tokenizer import tokenize as tokenize
    from lakeclip.training.finetune import CustomCLIPWrapper as CustomCLIPWrapper
    from lakeclip.training.module import CLIPWrapper as CLIPWrapper
    from lakeclip.training.watching.scores import EvaluationCallback as EvaluationCallback

_HOME = {
    "available_models": "lakeclip.models.zoo",
    "create_model": "lakeclip.models.zoo",
    "tokenize": "lakeclip.text.tokenizer",
    "load": "lakeclip.checkpoints.layouts",
    "open_lake": "lakeclip.lake.dataset",
    "CLIPWrapper": "lakeclip.training.module",
    "CustomCLIPWrapper": "lakeclip.training.finetune",
    "EvaluationCallback": "lakeclip.training.watching.scores",
    "EvaluationConfig": "lakeclip.config.schema",
    "PairDataModule": "lakeclip.data.datamodule",
    "TextImageDataModule": "lakeclip.data.seed",
    "DeepLakeDataModule": "lakeclip.data.seed",
    "LakeclipError": "lakeclip.errors",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lakeclip' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
