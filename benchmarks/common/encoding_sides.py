"""The two sides of encoding.py, each a process that reads a request per line, as JSON, and answers each with a line.

    lakeclip|open_clip                              then lines such as {"do": "images", "model": FOLDER, …}

encoding.py starts them. A side loads a model on the first request for it, and keeps it until another one is requested.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from common.machine import LoadTimer
from common.training_step import matmul_peak


class EncodingSide(ABC):
    """One side, which encodes images or texts, times it and saves the features."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], Any] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Encode, and write the features to "out" if given; or measure the peak rate of matrix products."""
        if request["do"] == "peak":
            with LoadTimer() as timer:
                peak = matmul_peak(bf16=request["way"] == "bf16", clock=time.perf_counter)
            return {"flops_per_second": peak, "others": timer.others}
        key = (request["model"], request["way"])
        encode = self.images if request["do"] == "images" else self.texts
        if key not in self._models:
            self._models = {cached: model for cached, model in self._models.items() if cached[0] == key[0]}
            self._models[key] = self.load(Path(request["model"]), request["way"])
            # The first batch chooses kernels and allocates memory, so it is not timed.
            encode(self._models[key], {**request, "count": min(request["count"], request["batch"])})
        with LoadTimer() as timer:
            features = encode(self._models[key], request)
        if "out" in request:
            torch.save(features, request["out"])
        return {"seconds": timer.seconds, "count": len(features), "others": timer.others}

    @abstractmethod
    def load(self, folder: Path, way: str) -> Any:
        """Load a model from a folder in open_clip's layout."""

    @abstractmethod
    def images(self, model: Any, request: dict[str, Any]) -> Tensor:
        """Return the features of the first photos, (count, embed)."""

    @abstractmethod
    def texts(self, model: Any, request: dict[str, Any]) -> Tensor:
        """Return the features of the first texts, (count, embed)."""


class LakeclipSide(EncodingSide):
    """lakeclip's `encode_images` from a lake and `encode_texts`, as `lakeclip evaluate` calls them."""

    def load(self, folder: Path, way: str) -> Any:
        from lakeclip.evaluation.run import EncodeConfig, load_model

        assert way in ("32", "bf16")
        encode = EncodeConfig(device="cpu", precision="bf16" if way == "bf16" else "32")
        return load_model(f"open_clip:{folder}/open_clip_model.safetensors", encode)

    def images(self, model: Any, request: dict[str, Any]) -> Tensor:
        from lakeclip.evaluation.encode import encode_images
        from lakeclip.lake.dataset import open_lake

        lake = open_lake(Path(request["data"]) / "lake")
        encoded = encode_images(
            model.model,
            lake,
            model.transform,
            positions=range(request["count"]),
            with_captions=False,
            batch_size=request["batch"],
            num_workers=request["workers"],
        )
        return encoded.features

    def texts(self, model: Any, request: dict[str, Any]) -> Tensor:
        from lakeclip.evaluation.encode import encode_texts

        return encode_texts(model.model, model.tokenize, _texts(request), batch_size=request["batch"])


class OpenClipSide(EncodingSide):
    """open_clip's own evaluation: the loop of its `zero_shot.run`, over the loader of its `get_imagenet`.

    A way is a value of its `--precision`, followed by `,channels_last` for that memory format.
    """

    def load(self, folder: Path, way: str) -> Any:
        import open_clip
        from open_clip_train.precision import get_autocast

        precision, *memory_format = way.split(",")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", precision=precision)
        model.eval()
        if memory_format:
            model.to(memory_format=torch.channels_last)
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        dtype = open_clip.get_input_dtype(precision)
        return model, preprocess, tokenizer, get_autocast(precision, device_type="cpu"), dtype

    @torch.inference_mode()
    def images(self, model: Any, request: dict[str, Any]) -> Tensor:
        from torchvision.datasets import ImageFolder

        model, preprocess, _, autocast, dtype = model
        dataset = Subset(ImageFolder(str(Path(request["data"]) / "photos"), preprocess), range(request["count"]))
        loader: DataLoader[Any] = DataLoader(dataset, batch_size=request["batch"], num_workers=request["workers"])
        features = []
        for images, _ in loader:
            with autocast():
                features.append(model.encode_image(images.to(dtype=dtype), normalize=True))
        return torch.cat(features).float()

    @torch.inference_mode()
    def texts(self, model: Any, request: dict[str, Any]) -> Tensor:
        model, _, tokenizer, autocast, _ = model
        texts, features = _texts(request), []
        for start in range(0, len(texts), request["batch"]):
            with autocast():
                tokens = tokenizer(texts[start : start + request["batch"]])
                features.append(model.encode_text(tokens, normalize=True))
        return torch.cat(features).float()


def _texts(request: dict[str, Any]) -> list[str]:
    return Path(request["data"]).read_text(encoding="utf-8").splitlines()[: request["count"]]


def main() -> None:
    """Answer requests until the input ends."""
    sides: dict[str, type[EncodingSide]] = {"lakeclip": LakeclipSide, "open_clip": OpenClipSide}
    side = sides[sys.argv[1]]()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    for line in sys.stdin:
        print(json.dumps(side.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
