"""open_clip's side of trainer_comparison.py, run by it in the environment that has open_clip.

    describe MODELS MODEL                             sizes and versions, as JSON on standard output
    train    MODELS FLAG …                            open_clip's own training, with its own flags
    encode   MODELS MODEL INPUTS OUT CHECKPOINT …     features of images and texts, in OUT/0.pt, OUT/1.pt, …

MODELS is a folder of model configurations in open_clip's format, added to those it ships.
"""

from __future__ import annotations

import json
import platform
import random
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from torch.nn import functional as F

_BATCH = 250


def describe(model: str) -> None:
    """Print the number of parameters, the package versions and the number of threads."""
    parameters = sum(parameter.numel() for parameter in open_clip.create_model(model).parameters())
    packages = ("open_clip_torch", "torch", "torchvision", "timm", "webdataset")
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    print(json.dumps({"parameters": parameters, "versions": versions, "threads": torch.get_num_threads()}))


def train(flags: list[str]) -> None:
    """Run open_clip's `python -m open_clip_train.main`, which now knows the model.

    Its loader reads a text file as one caption, so five lines would be one text of 60 tokens. Here its tokenizer
    draws one of the lines at random instead, as lakeclip does.
    """
    from open_clip_train import main

    get_tokenizer = main.get_tokenizer

    def get(*args: Any, **options: Any) -> Any:
        tokenize = get_tokenizer(*args, **options)
        return lambda text: tokenize(random.choice([line for line in text.splitlines() if line.strip()] or [text]))

    main.get_tokenizer = get
    main.main(flags)


@torch.inference_mode()
def encode(model_name: str, inputs: Path, out: Path, checkpoints: list[str]) -> None:
    """Write the features of each checkpoint: {"images": …, "texts": …}, float32 of unit length.

    Args:
        inputs: folder with texts.json, a list, and the encoded photos 0, 1, ….
        checkpoints: files that open_clip's training wrote.
    """
    texts = open_clip.get_tokenizer(model_name)(json.loads((inputs / "texts.json").read_text(encoding="utf-8")))
    images = None
    for number, checkpoint in enumerate(checkpoints):
        model, _, preprocess = open_clip.create_model_and_transforms(model_name, pretrained=checkpoint)
        model.eval()
        if images is None:
            num_photos = len(list(inputs.iterdir())) - 1
            images = torch.stack([preprocess(Image.open(inputs / str(i)).convert("RGB")) for i in range(num_photos)])
        features = {
            "images": torch.cat([F.normalize(model.encode_image(part), dim=-1) for part in images.split(_BATCH)]),
            "texts": torch.cat([F.normalize(model.encode_text(part), dim=-1) for part in texts.split(_BATCH)]),
        }
        torch.save(features, out / f"{number}.pt")


if __name__ == "__main__":
    verb, models, *rest = sys.argv[1:]
    open_clip.add_model_config(Path(models))
    if verb == "describe":
        describe(*rest)
    elif verb == "train":
        train(rest)
    elif verb == "encode":
        encode(rest[0], Path(rest[1]), Path(rest[2]), rest[3:])
    else:
        sys.exit(f"unknown verb {verb!r}: allowed are describe, train and encode")
