"""The two sides of encoding.py, each a process that stays: it reads an order a line, as JSON, and answers each in one.

    lakeclip|open_clip                              then lines such as {"do": "images", "model": FOLDER, …}

Not meant to be called by hand. A side loads a model when it is first asked for it, and keeps it until
it is asked for another.
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
from machine import Watch
from optimisation_step import matmul_peak
from torch import Tensor
from torch.utils.data import DataLoader, Subset


class Encoding(ABC):
    """What both sides answer: how long so many photos or texts took, and their features."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], Any] = {}

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """Encode, and write the features where that is asked for; or say what matrix products reach."""
        if order["do"] == "peak":
            with Watch() as watch:
                peak = matmul_peak(bf16=order["way"] == "bf16", clock=time.perf_counter)
            return {"flops_per_second": peak, "others": watch.others}
        key = (order["model"], order["way"])
        encode = self.images if order["do"] == "images" else self.texts
        if key not in self._models:
            self._models = {known: model for known, model in self._models.items() if known[0] == key[0]}
            self._models[key] = self.load(Path(order["model"]), order["way"])
            # Kernels are chosen, and memory is taken, with the first batch.
            encode(self._models[key], {**order, "count": min(order["count"], order["batch"])})
        with Watch() as watch:
            features = encode(self._models[key], order)
        if "out" in order:
            torch.save(features, order["out"])
        return {"seconds": watch.seconds, "count": len(features), "others": watch.others}

    @abstractmethod
    def load(self, folder: Path, way: str) -> Any:
        """A model by its folder, in open_clip's layout."""

    @abstractmethod
    def images(self, model: Any, order: dict[str, Any]) -> Tensor:
        """Features of the first photos."""

    @abstractmethod
    def texts(self, model: Any, order: dict[str, Any]) -> Tensor:
        """Features of the first texts."""


class Lakeclip(Encoding):
    """`encode_images` from a lake, and `encode_texts`, as every `lakeclip evaluate` calls them."""

    def load(self, folder: Path, way: str) -> Any:
        from lakeclip.cli.report import Effort, load_model

        assert way in ("32", "bf16")
        effort = Effort(device="cpu", precision="bf16" if way == "bf16" else "32")
        return load_model(f"open_clip:{folder}/open_clip_model.safetensors", effort)

    def images(self, model: Any, order: dict[str, Any]) -> Tensor:
        from lakeclip.evaluation.encode import encode_images
        from lakeclip.lake.dataset import open_lake

        lake = open_lake(Path(order["data"]) / "lake")
        found = encode_images(
            model.model,
            lake,
            model.transform,
            positions=range(order["count"]),
            with_captions=False,
            batch_size=order["batch"],
            num_workers=order["workers"],
        )
        return found.features

    def texts(self, model: Any, order: dict[str, Any]) -> Tensor:
        from lakeclip.evaluation.encode import encode_texts

        return encode_texts(model.model, model.tokenize, _texts(order), batch_size=order["batch"])


class OpenClip(Encoding):
    """open_clip's own evaluation: the loop of its `zero_shot.run`, over the loader of its `get_imagenet`.

    A way is a value of its `--precision`, and `channels_last` where its weights are to lie so.
    """

    def load(self, folder: Path, way: str) -> Any:
        import open_clip
        from open_clip_train.precision import get_autocast

        precision, *order = way.split(",")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", precision=precision)
        model.eval()
        if order:
            model.to(memory_format=torch.channels_last)
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        dtype = open_clip.get_input_dtype(precision)
        return model, preprocess, tokenizer, get_autocast(precision, device_type="cpu"), dtype

    @torch.inference_mode()
    def images(self, model: Any, order: dict[str, Any]) -> Tensor:
        from torchvision.datasets import ImageFolder

        model, preprocess, _, autocast, dtype = model
        dataset = Subset(ImageFolder(str(Path(order["data"]) / "photos"), preprocess), range(order["count"]))
        loader: DataLoader[Any] = DataLoader(dataset, batch_size=order["batch"], num_workers=order["workers"])
        features = []
        for images, _ in loader:
            with autocast():
                features.append(model.encode_image(images.to(dtype=dtype), normalize=True))
        return torch.cat(features).float()

    @torch.inference_mode()
    def texts(self, model: Any, order: dict[str, Any]) -> Tensor:
        model, _, tokenizer, autocast, _ = model
        texts, features = _texts(order), []
        for start in range(0, len(texts), order["batch"]):
            with autocast():
                tokens = tokenizer(texts[start : start + order["batch"]])
                features.append(model.encode_text(tokens, normalize=True))
        return torch.cat(features).float()


def _texts(order: dict[str, Any]) -> list[str]:
    return Path(order["data"]).read_text(encoding="utf-8").splitlines()[: order["count"]]


def main() -> None:
    """Answer until the input ends."""
    sides: dict[str, type[Encoding]] = {"lakeclip": Lakeclip, "open_clip": OpenClip}
    side = sides[sys.argv[1]]()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    for line in sys.stdin:
        print(json.dumps(side.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
