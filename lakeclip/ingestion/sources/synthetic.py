"""Synthetic image-caption pairs: small rendered scenes with compositional captions, for the demo and for tests.

Nothing is downloaded. A scene holds one or two coloured shapes; its captions name colour, shape, size and layout ("a
small red circle left of a large blue square"). Some pairs of colour and shape never occur in training, neither in
images nor in captions. The zero-shot score on these pairs shows whether the model generalizes compositionally.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lakeclip.ingestion.sources.base import Sample

Split = Literal["train", "unseen", "seen"]

IMAGE_SIZE = 64
#: Shapes are drawn larger by this factor and scaled down, which smooths their edges.
_SUPERSAMPLE = 4

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 35, 35),
    "orange": (240, 135, 20),
    "yellow": (245, 222, 45),
    "green": (35, 150, 55),
    "blue": (40, 75, 205),
    "purple": (135, 45, 165),
    "white": (246, 246, 246),
    "black": (18, 18, 18),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent")

#: Four colours by four shapes: half of the sixteen pairs are held out, half are the matched control. Each colour and
#: each shape is in two pairs of either half, so a model that knows only colours, or only shapes, reaches at most 50 %.
_TEST_COLOURS = ("red", "green", "blue", "yellow")
_TEST_SHAPES = ("circle", "triangle", "star", "heart")
UNSEEN_PAIRS: tuple[tuple[str, str], ...] = tuple(
    (colour, _TEST_SHAPES[(i + k) % 4]) for i, colour in enumerate(_TEST_COLOURS) for k in (0, 1)
)
SEEN_PAIRS: tuple[tuple[str, str], ...] = tuple(
    (colour, _TEST_SHAPES[(i + k) % 4]) for i, colour in enumerate(_TEST_COLOURS) for k in (2, 3)
)
TRAIN_PAIRS: tuple[tuple[str, str], ...] = tuple(
    (colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in UNSEEN_PAIRS
)

#: Relation → the equivalent relation with the two objects exchanged.
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_PHRASES = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_OPENINGS = ("{}", "{}", "a picture of {}", "there is {}")
_SINGLE_OPENINGS = ("a photo of {}", "a photo of {}", "{}", "a picture of {}", "there is {}")


class SceneObject(NamedTuple):
    """A shape in a scene. Centre and radius (of the circumscribed circle) are in pixels, `angle` is in radians."""

    colour: str
    shape: str
    size: Literal["small", "large"]
    x: float
    y: float
    radius: float
    angle: float


class Scene(NamedTuple):
    """Content of an image: its objects, and the relation of the first to the second ("" if there is only one)."""

    objects: tuple[SceneObject, ...]
    relation: str
    captions: tuple[str, ...]

    @property
    def summary(self) -> str:
        """Canonical description without sizes, equal for equivalent scenes: "red circle left of blue square"."""
        names = [f"{item.colour} {item.shape}" for item in self.objects]
        if self.relation in ("right of", "below"):
            return f"{names[1]} {_OPPOSITE[self.relation]} {names[0]}"
        return f" {self.relation} ".join(names)


def scenes(split: Split, num: int, seed: int = 0) -> Iterator[Sample]:
    """Generate the first `num` scenes of a split; the same seed always gives the same scenes.

    Args:
        split: "train" (one or two objects, never a held-out pair), "unseen" (one object, of a held-out pair) or "seen"
            (one object, of a training pair: as many classes as "unseen", with the same colours and shapes).
        num: number of scenes; scene i does not depend on it.
        seed: seed of the random numbers.

    Yields:
        Samples with a 64 px JPEG, two captions, and the metadata `label` ("red circle": the first object), `scene` (see
        `Scene.summary`), `relation` ("left of", or "" for one object) and `num_things`.
    """
    for index in range(num):
        rng = np.random.default_rng((seed, ("train", "unseen", "seen").index(split), index))
        scene = make_scene(split, index, rng)
        metadata: dict[str, str | int | float] = {
            "label": f"{scene.objects[0].colour} {scene.objects[0].shape}",
            "scene": scene.summary,
            "relation": scene.relation,
            "num_things": len(scene.objects),
        }
        yield Sample(f"{split}-{index:06d}", render(scene, rng), scene.captions, metadata)


def make_scene(split: Split, index: int, rng: np.random.Generator) -> Scene:
    """Choose the objects and the captions of scene `index` of a split."""
    if split != "train":
        pairs = UNSEEN_PAIRS if split == "unseen" else SEEN_PAIRS
        return _single_object(pairs[index % len(pairs)], rng)
    if rng.random() < 0.5:
        return _single_object(TRAIN_PAIRS[rng.integers(len(TRAIN_PAIRS))], rng)
    first, second = rng.choice(len(TRAIN_PAIRS), size=2, replace=False)
    return _object_pair(TRAIN_PAIRS[first], TRAIN_PAIRS[second], rng)


def _single_object(pair: tuple[str, str], rng: np.random.Generator) -> Scene:
    size, radius = _draw_size(rng, small=(9.0, 13.0), large=(18.0, 26.0))
    x, y = rng.uniform(radius + 1, IMAGE_SIZE - radius - 1, size=2)
    item = SceneObject(*pair, size, float(x), float(y), radius, _draw_angle(rng))
    openings = rng.choice(len(_SINGLE_OPENINGS), size=2, replace=False)
    captions = tuple(_SINGLE_OPENINGS[i].format(_noun_phrase(item, rng)) for i in openings)
    return Scene((item,), "", captions)


def _object_pair(first: tuple[str, str], second: tuple[str, str], rng: np.random.Generator) -> Scene:
    relation = tuple(_OPPOSITE)[rng.integers(4)]
    sizes = [_draw_size(rng, small=(6.0, 8.5), large=(11.5, 14.5)) for _ in range(2)]
    (near, far) = (0, 1) if relation in ("left of", "above") else (1, 0)
    # On the axis of the relation the two do not overlap; the free space is divided before, between and behind them.
    free_space = IMAGE_SIZE - 4 - 2 * (sizes[0][1] + sizes[1][1])
    before, between, _ = rng.dirichlet((1.0, 1.0, 1.0)) * free_space
    along = [0.0, 0.0]
    along[near] = 1 + before + sizes[near][1]
    along[far] = along[near] + sizes[near][1] + 2 + between + sizes[far][1]
    # On the other axis they differ by less than half of that, so that the relation is obvious.
    across = [float(rng.uniform(sizes[0][1] + 1, IMAGE_SIZE - sizes[0][1] - 1)), 0.0]
    reach = abs(along[1] - along[0]) / 2
    low, high = sizes[1][1] + 1, IMAGE_SIZE - sizes[1][1] - 1
    across[1] = float(rng.uniform(min(max(low, across[0] - reach), high), max(min(high, across[0] + reach), low)))
    sideways = relation in ("left of", "right of")
    objects = tuple(
        SceneObject(
            *pair,
            sizes[i][0],
            along[i] if sideways else across[i],
            across[i] if sideways else along[i],
            sizes[i][1],
            _draw_angle(rng),
        )
        for i, pair in enumerate((first, second))
    )
    captions = (_caption(objects, relation, rng), _caption(objects[::-1], _OPPOSITE[relation], rng))
    return Scene(objects, relation, captions)


def _caption(objects: tuple[SceneObject, ...], relation: str, rng: np.random.Generator) -> str:
    phrase = _PHRASES[relation][rng.integers(2)]
    opening = _OPENINGS[rng.integers(len(_OPENINGS))]
    return opening.format(f"{_noun_phrase(objects[0], rng)} {phrase} {_noun_phrase(objects[1], rng)}")


def _noun_phrase(item: SceneObject, rng: np.random.Generator) -> str:
    """Return "a small red circle", for example; half of the time without the size."""
    size = f"{item.size} " if rng.random() < 0.5 else ""
    article = "an" if f"{size}{item.colour}".startswith("o") else "a"
    return f"{article} {size}{item.colour} {item.shape}"


def _draw_size(
    rng: np.random.Generator, small: tuple[float, float], large: tuple[float, float]
) -> tuple[Literal["small", "large"], float]:
    if rng.random() < 0.5:
        return "small", float(rng.uniform(*small))
    return "large", float(rng.uniform(*large))


def _draw_angle(rng: np.random.Generator) -> float:
    return float(rng.uniform(-0.5, 0.5))


def render(scene: Scene, rng: np.random.Generator) -> bytes:
    """Render a scene as a JPEG of 64 px: a shaded, noisy, slightly tinted grey background with the objects on it."""
    level = rng.uniform(85, 165) + rng.uniform(-14, 14, size=3)
    slope = rng.uniform(-0.4, 0.4, size=2)
    shade = slope[0] * _RAMP[None, :] + slope[1] * _RAMP[:, None]
    pixels = (level + shade[:, :, None]).astype(np.float32)
    for item in scene.objects:
        _paint(pixels, item, np.asarray(COLOURS[item.colour]) + rng.uniform(-14, 14, size=3))
    pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(rng.uniform(1, 7))
    buffer = io.BytesIO()
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    image.save(buffer, format="JPEG", quality=90, subsampling=0)
    return buffer.getvalue()


def _paint(pixels: NDArray[np.float32], item: SceneObject, colour: NDArray[np.float64]) -> None:
    left, top = int(item.x - item.radius), int(item.y - item.radius)
    side = int(2 * item.radius) + 3
    mask = Image.new("L", (side * _SUPERSAMPLE, side * _SUPERSAMPLE))
    draw = ImageDraw.Draw(mask)
    cos, sin = np.cos(item.angle), np.sin(item.angle)
    turn = np.array([[cos, sin], [-sin, cos]]) * (item.radius * _SUPERSAMPLE)
    centre = np.array([item.x - left, item.y - top]) * _SUPERSAMPLE
    for outline, fill in _OUTLINES[item.shape]:
        draw.polygon((outline @ turn + centre).ravel().tolist(), fill=fill)
    cover = np.asarray(mask.reduce(_SUPERSAMPLE), dtype=np.float32)[:, :, None] / 255
    window = pixels[max(top, 0) : top + side, max(left, 0) : left + side]
    cover = cover[max(-top, 0) :, max(-left, 0) :][: window.shape[0], : window.shape[1]]
    window += cover * (colour.astype(np.float32) - window)


_RAMP = np.arange(IMAGE_SIZE) - (IMAGE_SIZE - 1) / 2


def _outlines() -> dict[str, tuple[tuple[NDArray[np.float64], int], ...]]:
    """Return shape → polygons within the unit circle, painted in order (255 fills, 0 cuts out); y grows downwards."""
    turn = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=1)

    def ngon(corners: int) -> NDArray[np.float64]:
        angles = np.arange(corners) * 2 * np.pi / corners - np.pi / 2
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)

    star = ngon(10)
    star[1::2] *= 0.42
    arm = 0.3
    quarter = np.array([[arm, -0.95], [arm, -arm], [0.95, -arm]])
    cross = np.concatenate([quarter @ np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))])
    heart = np.stack(
        [
            16 * np.sin(turn) ** 3,
            -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)),
        ],
        axis=1,
    )
    return {
        "circle": ((0.92 * circle, 255),),
        "square": ((ngon(4) @ np.array([[1, 1], [-1, 1]]) / np.sqrt(2), 255),),
        "triangle": ((ngon(3), 255),),
        "star": ((star, 255),),
        "cross": ((cross, 255),),
        "ring": ((0.95 * circle, 255), (0.55 * circle, 0)),
        "heart": ((heart / 17, 255),),
        "crescent": ((circle, 255), (0.85 * circle + np.array([0.45, 0.0]), 0)),
    }


_OUTLINES = _outlines()
