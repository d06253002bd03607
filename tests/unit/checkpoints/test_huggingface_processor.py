"""Test that the settings of image processors are converted, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lakeclip.checkpoints.convert import NotNativeError
from lakeclip.checkpoints.huggingface_config import CLIP_FAMILY, SIGLIP_FAMILY
from lakeclip.checkpoints.huggingface_processor import read_processing
from lakeclip.errors import CheckpointError
from lakeclip.models.clip import IMAGE_MEAN, IMAGE_STD
from tests.unit.checkpoints.huggingface_models import write_processor

CROP = {"crop_size": {"height": 32, "width": 32}}
SQUARE = {"height": 32, "width": 32}


def fields(folder: Path, settings: dict[str, Any], family: str = "clip") -> dict[str, Any]:
    write_processor(folder, **settings)
    values, assumed = read_processing(folder, CLIP_FAMILY if family == "clip" else SIGLIP_FAMILY, 32)
    assert assumed == ()
    return values


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"size": {"shortest_edge": 32}, **CROP}, {"resize_mode": "shortest", "interpolation": "bicubic"}),
        ({"size": {"shortest_edge": 32, "longest_edge": None}, "crop_size": 32}, {"resize_mode": "shortest"}),
        ({"size": 32, "crop_size": 32, "do_center_crop": True}, {"resize_mode": "shortest"}),
        ({"size": SQUARE, "do_center_crop": False}, {"resize_mode": "squash"}),
        ({"size": SQUARE, **CROP}, {"resize_mode": "squash"}),
        ({"size": [32, 32], "do_center_crop": False}, {"resize_mode": "squash"}),
        ({"size": 32, **CROP, "resample": 2}, {"interpolation": "bilinear"}),
        ({"size": 32, **CROP}, {"image_mean": IMAGE_MEAN, "image_std": IMAGE_STD}),
        ({"size": 32, **CROP, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}, {"image_std": (1.0, 1.0, 1.0)}),
        ({"size": 32, **CROP, "image_mean": 0.5, "image_std": 0.25}, {"image_mean": (0.5, 0.5, 0.5)}),
        ({"size": 32, **CROP, "do_normalize": False}, {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}),
        ({"size": 32, **CROP, "do_convert_rgb": None, "processor_class": "CLIPProcessor", "do_pad": None}, {}),
        ({"size": 32, **CROP, "feature_extractor_type": "CLIPFeatureExtractor"}, {"resize_mode": "shortest"}),
        ({"size": SQUARE, "image_processor_type": "SiglipImageProcessor"}, {"image_mean": (0.5, 0.5, 0.5)}),
    ],
)
def test_settings(settings: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    values = fields(tmp_path, settings)
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize(("settings", "scale"), [({"rescale_factor": 1 / 127.5}, 2.0), ({"do_rescale": False}, 255.0)])
def test_another_scale_of_pixels_is_folded_into_the_mean(
    settings: dict[str, Any], scale: float, tmp_path: Path
) -> None:
    values = fields(tmp_path, {"size": 32, **CROP, "image_mean": [1, 1, 1], "image_std": [1, 2, 4], **settings})
    assert values["image_mean"] == pytest.approx((1 / scale,) * 3)
    assert values["image_std"] == pytest.approx((1 / scale, 2 / scale, 4 / scale))


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"size": 40, **CROP}, "of which 32 pixels are cropped"),
        ({"size": {"height": 40, "width": 40}, **CROP}, "of which 32 pixels are cropped"),
        ({"size": 32, "do_center_crop": False}, "without a crop"),
        ({"size": {"longest_edge": 32}, **CROP}, "longest_edge"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}, **CROP}, "longest_edge"),
        ({"size": 32, **CROP, "resample": 1}, "resample 1"),
        ({"size": 32, **CROP, "do_resize": False}, "do_resize false"),
        ({"size": 32, **CROP, "image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor"),
    ],
)
def test_what_the_preprocessing_cannot_do(settings: dict[str, Any], found: str, tmp_path: Path) -> None:
    with pytest.raises(NotNativeError, match="lakeclip's own preprocessing cannot make the images") as error:
        fields(tmp_path, settings)
    assert found in error.value.found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 64, "crop_size": 64}, "other images(.|\n)*64 × 64(.|\n)*32 × 32"),
        ({"size": {"height": 32, "width": 48}, "do_center_crop": False}, "other images(.|\n)*32 × 48"),
        ({"size": 32}, "other images(.|\n)*224 × 224"),
        ({"size": 32, **CROP, "crop_pct": 0.9}, "does not know(.|\n)*crop_pct: 0.9"),
        ({"size": 32, **CROP, "image_mean": [0.5]}, "image_mean"),
        ({"size": 32, **CROP, "image_std": [0.5, 0, 0.5]}, "image_std"),
        ({"size": 32, **CROP, "rescale_factor": 0}, "rescale_factor: 0"),
        ({"size": {"shortest_edge": "32"}, **CROP}, "size"),
    ],
)
def test_what_is_unknown_or_does_not_fit(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        fields(tmp_path, settings)


def test_the_file_of_newer_versions_comes_first(tmp_path: Path) -> None:
    """Check that settings in processor_config.json win, unless they are those of a text processor alone."""
    write_processor(tmp_path, size=32, **CROP)
    file = tmp_path / "processor_config.json"
    file.write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert read_processing(tmp_path, CLIP_FAMILY, 32)[0]["resize_mode"] == "shortest"
    file.write_text(json.dumps({"image_processor": {"size": SQUARE, "do_center_crop": False}}))
    assert read_processing(tmp_path, CLIP_FAMILY, 32)[0]["resize_mode"] == "squash"


@pytest.mark.parametrize(("family", "mode"), [(CLIP_FAMILY, "shortest"), (SIGLIP_FAMILY, "squash")])
def test_a_folder_without_a_processor(family: Any, mode: str, tmp_path: Path) -> None:
    values, assumed = read_processing(tmp_path, family, 384)
    assert values["resize_mode"] == mode
    assert "there is no preprocessor_config.json" in assumed[0]
