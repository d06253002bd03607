"""Compare crops and resizing with OpenAI's preprocessing, done by Pillow."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lakeclip.data.counter_rng import keys, uniforms
from lakeclip.data.decode import decode_image
from lakeclip.data.transforms import EvalTransform, TrainTransform
from lakeclip.errors import ImageError
from tests.unit.data.memory_source import encode, photo


def draws(key: int) -> np.ndarray:
    return uniforms(keys(key), 3)[0]


def openai_preprocess(image: Image.Image, size: int) -> np.ndarray:
    """Apply Resize(size, BICUBIC), CenterCrop(size) and RGB; return (size, size, 3) uint8."""
    width, height = image.size
    scaled = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    resized = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)).convert("RGB"))


@pytest.mark.parametrize("size", [32, 224, 288])
@pytest.mark.parametrize(("height", "width"), [(480, 640), (600, 401), (224, 224), (100, 77), (1000, 1500), (300, 299)])
def test_evaluation_matches_openai(height, width, size):
    """Guard against train-CLIP's preprocessing: tensor conversion before resizing, and no bicubic filter."""
    image = Image.fromarray(photo(height, width))
    transformed = EvalTransform(size)(image)
    assert transformed.shape == (3, size, size)
    assert transformed.dtype == torch.uint8
    difference = np.abs(transformed.permute(1, 2, 0).numpy().astype(int) - openai_preprocess(image, size))
    assert difference.max() <= 2
    assert difference.mean() < 0.1


@pytest.mark.parametrize("size", [288, 384, 448])
def test_all_image_sizes_of_the_paper(size):
    """Guard against a fixed crop: train-CLIP cropped to 224, so its 288–448 models could not run."""
    data = encode(photo(200, 300))
    assert EvalTransform(size)(data).shape == (3, size, size)
    assert TrainTransform(size)(data, draws(0)).shape == (3, size, size)


def test_evaluation_accepts_bytes_images_and_paths(tmp_path):
    data = encode(photo(50, 70))
    path = tmp_path / "photo.JPG"
    path.write_bytes(data)
    transform = EvalTransform(32)
    expected = transform(data)
    assert transform(Image.fromarray(decode_image(data))).equal(expected)
    assert transform(path).equal(expected)
    assert transform(str(path)).equal(expected)


def test_evaluation_raises_for_anything_but_images(tmp_path):
    with pytest.raises(ImageError, match="cannot read"):
        EvalTransform(32)(tmp_path / "none.png")
    with pytest.raises(ImageError, match="cannot be decoded"):
        EvalTransform(32)(b"text")
    with pytest.raises(TypeError):
        EvalTransform(32)(5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3000), (3000, 1), (2, 1000), (5, 3)])
def test_extreme_aspect_ratios(height, width):
    pixels = np.full((height, width, 3), 99, dtype=np.uint8)
    data = encode(pixels, "png")
    assert (EvalTransform(224)(data) == 99).all()
    assert (TrainTransform(224, 0.5)(data, draws(4)) == 99).all()


def test_a_crop_is_a_function_of_its_draws():
    data = encode(photo(100, 150))
    transform = TrainTransform(48, 0.5)
    torch.manual_seed(0)
    crops = [transform(data, draws(key)) for key in range(8)]
    torch.manual_seed(1)
    assert all(crop.equal(transform(data, draws(key))) for key, crop in enumerate(crops))
    assert len({crop.numpy().tobytes() for crop in crops}) == 8


def ramps(height: int, width: int) -> np.ndarray:
    """Return an image whose red is the row and whose green is the column, so that a crop reveals its position."""
    down, right = np.mgrid[0:height, 0:width]
    return np.stack([down * 255 / (height - 1), right * 255 / (width - 1), 0 * down], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("ratio", [0.25, 0.75, 1.0])
@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_the_crops_area_and_position_are_uniform(ratio, kind):
    """Guard against ignoring `resize_ratio`, as train-CLIP did."""
    data = encode(ramps(200, 300), kind, **({"quality": 95} if kind == "jpeg" else {}))
    transform = TrainTransform(32, ratio)
    areas, positions = [], []
    for key in range(400):
        crop = transform(data, draws(key)).float()
        top, bottom = crop[0, 0].mean(), crop[0, -1].mean()
        left, right = crop[1, :, 0].mean(), crop[1, :, -1].mean()
        height = float(bottom - top) / 255 * 199 * 32 / 31
        width = float(right - left) / 255 * 299 * 32 / 31
        assert abs(height - width) < 8, "a square crop"
        areas.append((height / 200) ** 2)
        positions.append(float(left + right) / 2 / 255)
    assert min(areas) > ratio - 0.06
    assert max(areas) < 1.06
    assert np.mean(areas) == pytest.approx((ratio + 1) / 2, abs=0.04)
    assert np.mean(positions) == pytest.approx(0.5, abs=0.03)
    assert np.ptp(positions) > (1 - 2 / 3) * 0.9


@pytest.mark.parametrize(("height", "width", "size"), [(768, 1024, 224), (1500, 2000, 224), (700, 900, 56)])
def test_reduced_decoding_matches_full_decoding(height, width, size):
    """Check the position of crops decoded at 1/2 … 1/8: half a pixel off would lower the PSNR to 30 dB."""
    pixels = photo(height, width)
    jpeg, png = encode(pixels, "jpeg", quality=95), None
    full = Image.fromarray(decode_image(jpeg))
    png = encode(full, "png", compress_level=1)
    for key in range(3):
        reduced = TrainTransform(size)(jpeg, draws(key)).numpy().astype(float)
        exact = TrainTransform(size)(png, draws(key)).numpy().astype(float)
        error = np.mean((reduced - exact) ** 2)
        assert 10 * np.log10(255**2 / error) > 40


@settings(max_examples=30)
@given(st.integers(1, 8), st.integers(0, 2**64 - 1))
def test_training_respects_the_orientation(orientation, key):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(40, 40), "png", exif=exif)
    rotated_after = TrainTransform(16, 1.0)(data, draws(key)).int()
    rotated_before = EvalTransform(16)(data).int()
    assert (rotated_after - rotated_before).abs().max() <= 1  # rows and columns are rounded in the other order


def test_transforms_are_picklable():
    data = encode(photo(60, 60))
    assert pickle.loads(pickle.dumps(TrainTransform(32, 0.5)))(data, draws(3)).equal(
        TrainTransform(32, 0.5)(data, draws(3))
    )
    assert pickle.loads(pickle.dumps(EvalTransform(32)))(data).equal(EvalTransform(32)(data))


@pytest.mark.parametrize("make", [lambda: TrainTransform(0), lambda: TrainTransform(4, 0), lambda: EvalTransform(-1)])
def test_invalid_sizes_raise(make):
    with pytest.raises(ValueError, match="must be"):
        make()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("height", "width"), [(37, 80), (90, 31), (64, 64)])
def test_squashing_matches_pillow(height, width, interpolation):
    """Compare with Pillow's resize of the whole image, which transformers' processors of SigLIP use."""
    pixels = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    squashed = EvalTransform(32, "squash", interpolation)(image)
    expected = image.resize((32, 32), Image.Resampling[interpolation.upper()])
    difference = squashed.permute(1, 2, 0).to(torch.int16) - torch.from_numpy(np.array(expected)).to(torch.int16)
    assert difference.abs().max() <= 2


def test_the_longer_side_is_fitted_and_the_rest_is_black():
    image = Image.new("RGB", (80, 40), (200, 100, 50))
    fitted = EvalTransform(32, "longest")(image)
    assert fitted.shape == (3, 32, 32)
    assert fitted[:, 8:24].permute(1, 2, 0).eq(torch.tensor([200, 100, 50], dtype=torch.uint8)).all()
    assert fitted[:, :8].eq(0).all()
    assert fitted[:, 24:].eq(0).all()
