"""Corruptions: deterministic, shape-preserving, and stronger with each severity."""

from __future__ import annotations

import numpy as np
import pytest

from lakeclip.data.decode import Pixels
from lakeclip.data.transforms import EvalTransform
from lakeclip.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from lakeclip.ingestion.sources.synthetic import scenes


def photo(size: int = 64, number: int = 0) -> Pixels:
    """Draw a scene with added texture: pixelation and JPEG hardly change flat colours."""
    image = list(scenes("train", number + 1))[number].image
    pixels = EvalTransform(size)(image).permute(1, 2, 0).numpy().astype(np.int64)
    texture = np.random.default_rng(0).integers(-20, 20, pixels.shape)
    return np.clip(pixels + texture, 0, 255).astype(np.uint8)


def difference(pixels: Pixels, others: Pixels) -> float:
    return float(np.abs(pixels.astype(float) - others.astype(float)).mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [32, 64])
def test_distance_grows_with_severity(name: str, size: int) -> None:
    pixels = photo(size)
    before = pixels.copy()
    copies = [corrupt(pixels, name, severity, seed=0, row=7) for severity in SEVERITIES]
    assert all(copy.shape == pixels.shape and copy.dtype == np.uint8 for copy in copies)
    distances = [difference(pixels, copy) for copy in copies]
    assert distances == sorted(distances)
    assert distances[0] > 0
    assert distances[-1] > 1.2 * distances[0]
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_seed_and_row_determine_the_corruption(name: str) -> None:
    pixels = photo()
    first = corrupt(pixels, name, 3, seed=1, row=5)
    np.random.default_rng().random()
    assert np.array_equal(first, corrupt(pixels, name, 3, seed=1, row=5))


@pytest.mark.parametrize("name", ["gaussian noise", "shot noise"])
def test_noise_differs_between_rows_and_seeds(name: str) -> None:
    pixels = photo()
    first = corrupt(pixels, name, 1, seed=1, row=5)
    assert not np.array_equal(first, corrupt(pixels, name, 1, seed=1, row=6))
    assert not np.array_equal(first, corrupt(pixels, name, 1, seed=2, row=5))


def test_noise_has_the_documented_spread() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    noisy = corrupt(grey, "gaussian noise", 1, seed=0, row=0).astype(float) / 255
    assert noisy.std() == pytest.approx(0.08, rel=0.02)


def test_full_greyscale_has_no_colour_and_brightness_keeps_the_hue() -> None:
    grey = corrupt(photo(), "greyscale", 5, seed=0, row=0)
    assert np.array_equal(grey[..., 0], grey[..., 1])
    bright = corrupt(np.full((4, 4, 3), (100, 50, 0), np.uint8), "brightness", 2, seed=0, row=0)
    assert bright[0, 0].tolist() == [151, 76, 0]
    assert corrupt(np.zeros((4, 4, 3), np.uint8), "brightness", 1, seed=0, row=0)[0, 0].tolist() == [26, 26, 26]


def test_rotation_goes_in_both_directions() -> None:
    pixels = photo()
    turned = {corrupt(pixels, "rotation", 5, seed=0, row=row).tobytes() for row in range(20)}
    assert len(turned) == 2
