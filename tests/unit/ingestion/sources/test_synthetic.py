from __future__ import annotations

import io
import re
import time

import numpy as np
import pytest
from PIL import Image

from lakeclip.ingestion.sources.synthetic import (
    COLOURS,
    IMAGE_SIZE,
    SEEN_PAIRS,
    SHAPES,
    TRAIN_PAIRS,
    UNSEEN_PAIRS,
    Scene,
    SceneObject,
    Split,
    make_scene,
    render,
    scenes,
)

PHRASES = {
    "left of": ("x", -1),
    "to the left of": ("x", -1),
    "right of": ("x", 1),
    "to the right of": ("x", 1),
    "above": ("y", -1),
    "over": ("y", -1),
    "below": ("y", 1),
    "under": ("y", 1),
}
OBJECT = rf"an? (?:(small|large) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
CAPTION = re.compile(rf"(?:a photo of |a picture of |there is )?{OBJECT}(?: ({'|'.join(PHRASES)}) {OBJECT})?")


def make_scenes(split: Split, num: int) -> list[Scene]:
    return [make_scene(split, i, np.random.default_rng((3, i))) for i in range(num)]


def decode(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG"
        return np.asarray(image.convert("RGB")).astype(int)


def test_training_covers_every_colour_and_shape() -> None:
    assert len(UNSEEN_PAIRS) == len(set(UNSEEN_PAIRS)) == 8
    assert not set(UNSEEN_PAIRS) & set(TRAIN_PAIRS)
    assert set(SEEN_PAIRS) <= set(TRAIN_PAIRS)
    assert len(TRAIN_PAIRS) == len(COLOURS) * len(SHAPES) - 8
    for position, names in ((0, tuple(COLOURS)), (1, SHAPES)):
        for name in names:
            assert sum(pair[position] == name for pair in TRAIN_PAIRS) >= 6


def test_colour_or_shape_alone_do_not_identify_a_class() -> None:
    for pairs in (UNSEEN_PAIRS, SEEN_PAIRS):
        for position in (0, 1):
            parts = [pair[position] for pair in pairs]
            assert all(parts.count(part) == 2 for part in parts)
    assert {pair[0] for pair in UNSEEN_PAIRS} == {pair[0] for pair in SEEN_PAIRS}
    assert {pair[1] for pair in UNSEEN_PAIRS} == {pair[1] for pair in SEEN_PAIRS}


def test_held_out_pairs_do_not_occur_in_training() -> None:
    for scene in make_scenes("train", 2000):
        assert all((item.colour, item.shape) in TRAIN_PAIRS for item in scene.objects)
        for caption in scene.captions:
            assert not any(f"{colour} {shape}" in caption for colour, shape in UNSEEN_PAIRS)


@pytest.mark.parametrize(("split", "pairs"), [("unseen", UNSEEN_PAIRS), ("seen", SEEN_PAIRS)])
def test_test_splits_are_balanced(split: Split, pairs: tuple[tuple[str, str], ...]) -> None:
    labels = [sample.metadata["label"] for sample in scenes(split, 32)]
    assert all(labels.count(f"{colour} {shape}") == 4 for colour, shape in pairs)


def test_captions_match_the_layout() -> None:
    relations = set()
    for scene in make_scenes("train", 1000) + make_scenes("unseen", 50):
        for caption in scene.captions:
            match = CAPTION.fullmatch(caption)
            assert match, caption
            parts = [match.groups()[:3]] + ([match.groups()[4:]] if match[4] else [])
            assert len(parts) == len(scene.objects)
            named: list[SceneObject] = []
            for size, colour, shape in parts:
                named += [t for t in scene.objects if (t.colour, t.shape) == (colour, shape) and size in (None, t.size)]
            assert len(named) == len(scene.objects)
            if match[4]:
                relations.add(match[4])
                axis, side = PHRASES[match[4]]
                apart = {a: getattr(named[0], a) - getattr(named[1], a) for a in ("x", "y")}
                assert apart[axis] * side > 0
                assert abs(apart[axis]) > sum(t.radius for t in named), "the two overlap"
                assert abs(apart[axis]) >= abs(apart["y" if axis == "x" else "x"]) * 1.9
    assert relations == set(PHRASES)


def test_objects_are_inside_the_image() -> None:
    for item in (item for scene in make_scenes("train", 1000) for item in scene.objects):
        assert item.radius <= item.x <= IMAGE_SIZE - item.radius
        assert item.radius <= item.y <= IMAGE_SIZE - item.radius


def test_articles_match_the_following_word() -> None:
    text = " ".join(caption for scene in make_scenes("train", 500) for caption in scene.captions)
    assert "an orange" in text
    assert "a orange" not in text
    assert "an small" not in text


def test_rendered_colours_match_the_scene() -> None:
    solid = ("square", "circle", "triangle", "star", "cross")
    for index, scene in enumerate(make_scenes("train", 200)):
        pixels = decode(render(scene, np.random.default_rng(index)))
        assert pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
        for item in scene.objects:
            if item.shape in solid:
                x, y = round(item.x), round(item.y)
                seen = pixels[y - 1 : y + 2, x - 1 : x + 2].mean(axis=(0, 1))
                distance = {name: np.abs(seen - rgb).sum() for name, rgb in COLOURS.items()}
                assert min(distance, key=lambda name: distance[name]) == item.colour


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_cover_part_of_their_circumscribed_circle(shape: str) -> None:
    item = SceneObject("white", shape, "large", 32.0, 32.0, 24.0, 0.3)
    pixels = decode(render(Scene((item,), "", ()), np.random.default_rng(0)))
    away = np.hypot(*np.mgrid[-31.5:32, -31.5:32])
    bright = pixels.min(axis=2) > 215
    assert not bright[away > 26].any()
    assert 0.2 < bright[away < 24].mean() < 0.95


def test_scenes_depend_on_the_seed_but_not_on_their_number() -> None:
    few, many = list(scenes("train", 5, seed=1)), list(scenes("train", 9, seed=1))
    assert few == many[:5]
    other = list(scenes("train", 5, seed=2))
    assert [s.image for s in few] != [s.image for s in other]
    assert not {s.image for s in scenes("seen", 5, seed=1)} & {s.image for s in few}
    assert len({sample.key for sample in many}) == 9


def test_metadata_describes_the_scene() -> None:
    for sample in scenes("train", 50):
        assert set(sample.metadata) == {"label", "scene", "relation", "num_things"}
        assert (sample.metadata["num_things"] == 2) == bool(sample.metadata["relation"])
        assert str(sample.metadata["label"]) in sample.captions[0]


def test_equivalent_scenes_have_the_same_summary() -> None:
    a, b = SceneObject("red", "ring", "small", 9, 9, 5, 0), SceneObject("blue", "star", "large", 40, 9, 5, 0)
    assert Scene((a,), "", ()).summary == "red ring"
    assert Scene((a, b), "left of", ()).summary == Scene((b, a), "right of", ()).summary == "red ring left of blue star"
    assert Scene((a, b), "below", ()).summary == Scene((b, a), "above", ()).summary == "blue star above red ring"


def test_rendering_speed() -> None:
    start = time.process_time()
    list(scenes("train", 300))
    assert 300 / (time.process_time() - start) > 500
