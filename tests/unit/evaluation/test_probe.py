"""Linear probe: separable classes are learned, noise stays at chance, and the sweep chooses the best penalty."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lakeclip.errors import DataError
from lakeclip.evaluation.probe import _halves, linear_probe


def clusters(num: int, *, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Sample three classes around three of eight axes."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(num) % 3
    return torch.eye(8)[targets] + spread * torch.randn(num, 8, generator=generator), targets


def test_separable_classes_are_learned() -> None:
    result = linear_probe(*clusters(150, spread=0.05, seed=0), *clusters(60, spread=0.05, seed=1), few=(1, 4))
    assert result.top1 == 1.0
    assert result.chance == pytest.approx(1 / 3)
    assert (result.num_train, result.num_test, result.num_classes) == (150, 60, 3)
    assert result.few[4] >= result.few[1] > 0.9


def test_noise_stays_at_chance() -> None:
    features, _ = clusters(300, spread=5.0, seed=0)
    targets = torch.randint(3, (300,), generator=torch.Generator().manual_seed(2))
    others = torch.randint(3, (300,), generator=torch.Generator().manual_seed(3))
    result = linear_probe(features, targets, clusters(300, spread=5.0, seed=4)[0], others)
    assert result.top1 < 0.45


def test_sweep_chooses_the_best_penalty() -> None:
    result = linear_probe(*clusters(90, spread=0.6, seed=0), *clusters(90, spread=0.6, seed=1))
    strengths, scores = zip(*result.sweep, strict=True)
    assert list(strengths) == sorted(strengths)
    assert min(strengths) <= 1e-6
    assert max(strengths) >= 1e6
    assert dict(result.sweep)[result.regularisation] == max(scores)


def test_same_seed_gives_the_same_result() -> None:
    data = (*clusters(90, spread=0.6, seed=0), *clusters(90, spread=0.6, seed=1))
    assert linear_probe(*data, few=(2,), seed=5) == linear_probe(*data, few=(2,), seed=5)


@pytest.mark.parametrize(
    ("num", "classes", "few", "message"), [(9, 3, (), "ten"), (30, 1, (), "two classes"), (30, 3, (11,), "11 examples")]
)
def test_too_few_images_are_rejected(num: int, classes: int, few: tuple[int, ...], message: str) -> None:
    features, targets = clusters(num, spread=0.1, seed=0)
    with pytest.raises(DataError, match=message):
        linear_probe(features, targets % classes, features, targets % classes, few=few)


def imbalanced(*counts: int, spread: float = 0.05, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Sample classes of given sizes around the axes of eight dimensions."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return torch.eye(8)[targets] + spread * torch.randn(len(targets), 8, generator=generator), targets


@pytest.mark.parametrize("counts", [(19, 1), (1, 29), (12, 1, 1, 1), (2, 2, 2, 2, 2), (1, 1, 1, 1, 1, 5)])
@pytest.mark.parametrize("seed", range(5))
def test_rare_classes_are_always_fitted(counts: tuple[int, ...], seed: int) -> None:
    """The random fifth that is held out may have all images of a class: they are fitted, not held out."""
    result = linear_probe(*imbalanced(*counts), *imbalanced(*[3] * len(counts), seed=1), seed=seed)
    assert result.top1 == 1.0, "every class is known"
    assert result.num_single == counts.count(1)
    assert result.num_classes == len(counts)


def test_one_image_of_every_class_is_refused() -> None:
    with pytest.raises(DataError, match="several images of some classes") as error:
        linear_probe(torch.eye(12), torch.arange(12), torch.eye(12), torch.arange(12))
    assert error.value.found == "12 training images of 12 classes"


def test_few_shot_leaves_out_classes_with_fewer_images_and_counts_them() -> None:
    result = linear_probe(*imbalanced(10, 10, 3, 1), *imbalanced(4, 4, 4, 4, seed=1), few=(1, 2, 4))
    assert result.few_left_out == {1: 0, 2: 1, 4: 2}
    assert result.few == {1: 1.0, 2: 1.0, 4: 1.0}, "the score leaves the same classes out"
    assert result.to_json()["few_shot_classes_left_out"] == {"1": 0, "2": 1, "4": 2}


def test_test_images_of_unseen_classes_count_as_wrong() -> None:
    features, targets = imbalanced(4, 4, 2, seed=1)
    result = linear_probe(*imbalanced(10, 10), features, targets)
    assert result.num_unseen == 2
    assert result.top1 == pytest.approx(8 / 10)


def test_halves_have_every_class_that_has_two_images() -> None:
    targets = torch.tensor([0] * 37 + [1, 1] + [2])
    train, test = _halves(targets)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(40))
    assert {0, 1} <= set(targets[train].tolist())
    assert {0, 1} <= set(targets[test].tolist())
