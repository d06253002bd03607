"""open_clip's half of cifar10.py; runs in the environment that has open_clip. Not meant to be called by hand.

    describe MODELS MODEL                              sizes and versions, as JSON on standard output
    train    MODELS FLAG …                             open_clip's own training, with its own flags
    zeroshot MODELS MODEL CHECKPOINT PROMPTS OUT TAR … top-1 on labelled shards, as JSON in OUT

MODELS is a folder of model configurations in open_clip's format, added to those it ships.
"""

from __future__ import annotations

import io
import json
import platform
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import open_clip
import torch
from PIL import Image
from torch.nn import functional as F

_BATCH = 250


def describe(model: str) -> None:
    """Print the number of parameters, and the versions of what they are trained with."""
    parameters = sum(parameter.numel() for parameter in open_clip.create_model(model).parameters())
    packages = ("open_clip_torch", "torch", "torchvision", "timm", "webdataset")
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    print(json.dumps({"parameters": parameters, "versions": versions, "threads": torch.get_num_threads()}))


def train(flags: list[str]) -> None:
    """Hand over to open_clip's `python -m open_clip_train.main`, which now knows the model."""
    from open_clip_train.main import main

    main(flags)


@torch.inference_mode()
def zeroshot(model_name: str, checkpoint: str, prompts: str, out: str, tars: list[str]) -> None:
    """Score a checkpoint: the class whose prompts' mean unit-length features are nearest (Radford et al. 2021, 3.1).

    Args:
        checkpoint: as open_clip's training writes it.
        prompts: JSON file with "classes" and "templates", such as `lakeclip evaluate zeroshot --json` writes.
        tars: WebDataset shards with KEY.jpg and a KEY.json that has a "label".
    """
    wanted = json.loads(Path(prompts).read_text(encoding="utf-8"))
    classes, templates = wanted["classes"], wanted["templates"]
    model, _, preprocess = open_clip.create_model_and_transforms(model_name, pretrained=checkpoint)
    tokenizer = open_clip.get_tokenizer(model_name)
    model.eval()
    per_class = []
    for name in classes:
        features = model.encode_text(tokenizer([template.replace("{}", name) for template in templates]))
        per_class.append(F.normalize(F.normalize(features, dim=-1).mean(dim=0), dim=-1))
    weights = torch.stack(per_class)

    right = total = 0
    images: list[torch.Tensor] = []
    labels: list[int] = []

    def score() -> int:
        predicted = (F.normalize(model.encode_image(torch.stack(images)), dim=-1) @ weights.T).argmax(dim=-1)
        return int((predicted == torch.tensor(labels)).sum())

    for photo, label in _labelled(tars):
        images.append(preprocess(photo))
        labels.append(classes.index(label))
        if len(images) == _BATCH:
            right, total = right + score(), total + len(images)
            images.clear()
            labels.clear()
    if images:
        right, total = right + score(), total + len(images)
    Path(out).write_text(json.dumps({"top1": right / total, "num_samples": total}) + "\n", encoding="utf-8")


def _labelled(tars: list[str]) -> Iterator[tuple[Image.Image, str]]:
    for path in tars:
        with tarfile.open(path) as tar:
            parts: dict[str, dict[str, bytes]] = {}
            for member in tar:
                file = tar.extractfile(member)
                if file is not None:
                    key, _, suffix = member.name.rpartition(".")
                    parts.setdefault(key, {})[suffix] = file.read()
        for part in parts.values():
            yield Image.open(io.BytesIO(part["jpg"])).convert("RGB"), json.loads(part["json"])["label"]


if __name__ == "__main__":
    verb, models, *rest = sys.argv[1:]
    open_clip.add_model_config(Path(models))
    if verb == "describe":
        describe(*rest)
    elif verb == "train":
        train(rest)
    elif verb == "zeroshot":
        zeroshot(rest[0], rest[1], rest[2], rest[3], rest[4:])
    else:
        sys.exit(f"there is no verb {verb!r}")
