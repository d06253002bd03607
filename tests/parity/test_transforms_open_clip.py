"""Test of the evaluation transform against open_clip's. It runs in the second environment."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from lakeclip.data.transforms import EvalTransform
from tests.unit.data.memory_source import encode, photo

open_clip = pytest.importorskip("open_clip")


@pytest.mark.parametrize("size", [224, 336])
@pytest.mark.parametrize(("height", "width"), [(480, 640), (500, 333), (224, 224), (150, 200), (1200, 1600)])
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_the_evaluation_transform_equals_open_clips(height, width, size, kind):
    theirs = open_clip.image_transform(size, is_train=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    data = encode(photo(height, width), kind)
    expected = theirs(Image.open(io.BytesIO(data))) * 255
    difference = (EvalTransform(size)(data) - expected.round()).abs()
    assert difference.max() <= 2
    assert difference.mean() < 0.1
    assert torch.equal(EvalTransform(size)(data), EvalTransform(size)(Image.open(io.BytesIO(data))))
