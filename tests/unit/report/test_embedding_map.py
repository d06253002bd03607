"""Map of images: neighbourhoods, colours, titles, and determinism."""

from __future__ import annotations

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

from lakeclip.data.order import sample_positions
from lakeclip.report.charts import MAX_SERIES
from lakeclip.report.embedding_map import embedding_map


def clusters(num_classes: int, each: int, *, spread: float = 0.05) -> tuple[Tensor, list[str]]:
    torch.manual_seed(0)
    centres = torch.eye(max(16, num_classes))[:num_classes].repeat_interleave(each, dim=0)
    labels = [f"class {i:02}" for i in range(num_classes) for _ in range(each)]
    return F.normalize(centres + spread * torch.randn_like(centres), dim=1), labels


def test_similar_images_are_neighbours() -> None:
    features, labels = clusters(4, 25)
    embeddings = embedding_map(features, [()] * 100, labels=labels)
    assert embeddings is not None
    coordinates = torch.tensor([(dot.x, dot.y) for dot in embeddings.dots])
    distances = torch.cdist(coordinates, coordinates).fill_diagonal_(9.0)
    nearest = distances.argmin(dim=1).tolist()
    assert all(labels[i] == labels[j] for i, j in enumerate(nearest))
    assert 0 <= coordinates.min() <= coordinates.max() <= 1
    assert (coordinates.amax(dim=0) - coordinates.amin(dim=0)).max() > 0.99, "the longer axis spans the map"


def test_map_is_deterministic_for_any_number_of_threads() -> None:
    features, labels = clusters(3, 20)
    embeddings = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            embeddings.append(embedding_map(features, [()] * 60, labels=labels))
    assert embeddings[0] == embeddings[1]
    assert embeddings[0] != embedding_map(features.roll(1, dims=0), [()] * 60, labels=labels)


def test_most_common_classes_have_colours_and_others_are_grey() -> None:
    features, labels = clusters(14, 4)
    labels[:6] = ["class 13"] * 6
    labels[6] = ""
    embeddings = embedding_map(features, [()] * len(labels), labels=labels)
    assert embeddings is not None
    assert len(embeddings.groups) == MAX_SERIES
    assert sorted(group.series for group in embeddings.groups) == list(range(1, MAX_SERIES + 1))
    assert next(group for group in embeddings.groups if group.name == "class 13").num_images == 10
    assert embeddings.num_other_classes == len(set(labels) - {""}) - MAX_SERIES
    grey = {label for label, dot in zip(labels, embeddings.dots, strict=True) if dot.series == 0}
    assert grey.isdisjoint({group.name for group in embeddings.groups})
    assert "" in grey


def test_title_of_a_dot_has_class_and_wrong_prediction() -> None:
    features, labels = clusters(2, 10)
    predictions = ["class 00"] * 20
    embeddings = embedding_map(features, [("a drawing",), *[()] * 19], labels=labels, predictions=predictions)
    assert embeddings is not None
    assert embeddings.has_predictions
    assert embeddings.dots[0].about == "class 00 · a drawing"
    assert embeddings.dots[19].about == "class 01, predicted as class 00"
    assert [dot.is_wrong for dot in embeddings.dots] == [False] * 10 + [True] * 10


def test_titles_without_classes_are_captions() -> None:
    features, _ = clusters(2, 10)
    embeddings = embedding_map(features, [("x" * 500,)] * 20)
    assert embeddings is not None
    assert embeddings.groups == ()
    assert {dot.series for dot in embeddings.dots} == {0}
    assert len(embeddings.dots[0].about) < 200


def test_too_few_distinct_images_give_no_map() -> None:
    features, _ = clusters(2, 5)
    assert embedding_map(features, [()] * 10) is None
    assert embedding_map(features[:1].repeat(50, 1), [()] * 50) is None, "constant features"


def test_sample_of_rows_is_random_and_repeatable() -> None:
    rows = range(100, 400)
    drawn = sample_positions(rows, 50)
    assert drawn == sorted(set(drawn)) == sample_positions(rows, 50)
    assert set(drawn) <= set(rows)
    assert drawn != list(range(100, 150))
    assert sample_positions([7, 3], 50) == [7, 3]
