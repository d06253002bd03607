"""Find the photos of a folder that fit a text best, with a trained run.

    python examples/search_photos.py runs/first my-photos "a red circle"

The folder is any folder of images; captions are not needed. Features are computed once and kept beside the photos'
names, so that the next search takes no time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

import lakeclip
from lakeclip.models.clip import unit

BATCH = 64
KEPT = Path("photo-features.pt")

run, folder, text = sys.argv[1:]
model, tokenize, transform = lakeclip.load(run)


def encode(paths: list[Path]) -> tuple[list[str], Tensor]:
    """Names and unit-length features of the photos that can be decoded."""
    names, features = [], []
    for start in range(0, len(paths), BATCH):
        images = []
        for path in paths[start : start + BATCH]:
            try:
                images.append(transform(path))
            except lakeclip.LakeclipError as error:
                print(f"left out: {path.name}: {error.what}", file=sys.stderr)
            else:
                names.append(str(path))
        if images:
            features.append(unit(model.encode_image(torch.stack(images))))
    return names, torch.cat(features)


with torch.inference_mode():
    # The same photos and the same model, or everything anew.
    photos = sorted(
        path for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
    )
    key = [run, *map(str, photos)]
    kept = torch.load(KEPT, weights_only=True) if KEPT.exists() else {}
    if kept.get("key") != key:
        names, features = encode(photos)
        kept = {"key": key, "names": names, "features": features}
        torch.save(kept, KEPT)
    similarities = kept["features"] @ unit(model.encode_text(tokenize([text])))[0]
for place in similarities.argsort(descending=True)[:5].tolist():
    print(f"{similarities[place]:.3f}  {kept['names'][place]}")
