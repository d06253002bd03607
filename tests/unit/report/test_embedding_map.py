from __future__ import annotations

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

from lakeclip.data.order import draw_sample
from lakeclip.evaluation.embedding_map import embedding_map
from lakeclip.evaluation.pages.charts import MAX_SERIES


def clusters(num_classes: int, each: int, *, spread: float = 0.05) -> tuple[Tensor, list[str]]:
    torch.manual_seed(0)
    centres = torch.eye(max(16, num_classes))[:num_classes].repeat_interleave(each, dim=0)
    labels = [f"class {i:02}" for i in range(num_classes) for _ in range(each)]
    return F.normalize(centres + spread * torch.randn_like(centres), dim=1), labels


def test_what_is_alike_lies_together() -> None:
    features, labels = clusters(4, 25)
    found = embedding_map(features, [()] * 100, labels=labels)
    assert found is not None
    places = torch.tensor([(dot.x, dot.y) for dot in found.dots])
    distances = torch.cdist(places, places).fill_diagonal_(9.0)
    nearest = distances.argmin(dim=1).tolist()
    assert all(labels[i] == labels[j] for i, j in enumerate(nearest))
    assert 0 <= places.min() <= places.max() <= 1
    assert (places.amax(dim=0) - places.amin(dim=0)).max() > 0.99, "the longer side fills the map"


def test_it_is_the_same_each_time_on_any_number_of_threads() -> None:
    features, labels = clusters(3, 20)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(embedding_map(features, [()] * 60, labels=labels))
    assert found[0] == found[1]
    assert found[0] != embedding_map(features.roll(1, dims=0), [()] * 60, labels=labels)


def test_the_commonest_classes_have_colours_and_the_others_are_grey() -> None:
    features, labels = clusters(14, 4)
    labels[:6] = ["class 13"] * 6
    labels[6] = ""
    found = embedding_map(features, [()] * len(labels), labels=labels)
    assert found is not None
    assert len(found.groups) == MAX_SERIES
    assert sorted(group.series for group in found.groups) == list(range(1, MAX_SERIES + 1))
    assert next(group for group in found.groups if group.name == "class 13").num_images == 10
    assert found.num_other_classes == len(set(labels) - {""}) - MAX_SERIES
    grey = {label for label, dot in zip(labels, found.dots, strict=True) if dot.series == 0}
    assert grey.isdisjoint({group.name for group in found.groups})
    assert "" in grey


def test_a_dot_says_what_it_is_and_what_it_is_taken_for() -> None:
    features, labels = clusters(2, 10)
    answers = ["class 00"] * 20
    found = embedding_map(features, [("a drawing",), *[()] * 19], labels=labels, answers=answers)
    assert found is not None
    assert found.has_answers
    assert found.dots[0].about == "class 00 · a drawing"
    assert found.dots[19].about == "class 01, taken for class 00"
    assert [dot.is_wrong for dot in found.dots] == [False] * 10 + [True] * 10


def test_without_classes_there_are_captions_alone() -> None:
    features, _ = clusters(2, 10)
    found = embedding_map(features, [("x" * 500,)] * 20)
    assert found is not None
    assert found.groups == ()
    assert {dot.series for dot in found.dots} == {0}
    assert len(found.dots[0].about) < 200


def test_what_has_no_neighbourhoods_is_no_map() -> None:
    features, _ = clusters(2, 5)
    assert embedding_map(features, [()] * 10) is None
    assert embedding_map(features[:1].repeat(50, 1), [()] * 50) is None, "a model that maps all to one point"


def test_the_sample_is_drawn_at_random_once() -> None:
    rows = range(100, 400)
    drawn = draw_sample(rows, 50)
    assert drawn == sorted(set(drawn)) == draw_sample(rows, 50)
    assert set(drawn) <= set(rows)
    assert drawn != list(range(100, 150))
    assert draw_sample([7, 3], 50) == [7, 3]
