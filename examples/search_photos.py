"""Find the photos of a folder that best match a text, with a trained run.

    python examples/search_photos.py runs/first my-photos "a red circle"

Any folder of images will do; captions are not needed. Features are computed once and cached with the photos' names, so
that the next search is fast.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

import lakeclip
from lakeclip.models.clip import l2_normalize

BATCH = 64
CACHE = Path("photo-features.pt")

run, folder, text = sys.argv[1:]
model, tokenize, transform = lakeclip.load(run)


def encode(paths: list[Path]) -> tuple[list[str], Tensor]:
    """Return names and unit-length features of the photos that can be decoded."""
    names, features = [], []
    for start in range(0, len(paths), BATCH):
        images = []
        for path in paths[start : start + BATCH]:
            try:
                images.append(transform(path))
            except lakeclip.LakeclipError as error:
                print(f"skipped: {path.name}: {error.what}", file=sys.stderr)
            else:
                names.append(str(path))
        if images:
            features.append(l2_normalize(model.encode_image(torch.stack(images))))
    return names, torch.cat(features)


with torch.inference_mode():
    # Reuse the cache only for the same photos and the same model.
    photos = sorted(
        path for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
    )
    key = [run, *map(str, photos)]
    cached = torch.load(CACHE, weights_only=True) if CACHE.exists() else {}
    if cached.get("key") != key:
        names, features = encode(photos)
        cached = {"key": key, "names": names, "features": features}
        torch.save(cached, CACHE)
    similarities = cached["features"] @ l2_normalize(model.encode_text(tokenize([text])))[0]
for index in similarities.argsort(descending=True)[:5].tolist():
    print(f"{similarities[index]:.3f}  {cached['names'][index]}")
