"""Linear probes: what is told by a line is found, what is not stays at chance, and the sweep finds its strength."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lakeclip.errors import DataError
from lakeclip.evaluation.probe import linear_probe


def clusters(num: int, *, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Three classes around three directions of eight."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(num) % 3
    return torch.eye(8)[targets] + spread * torch.randn(num, 8, generator=generator), targets


def test_what_a_line_tells_is_told() -> None:
    found = linear_probe(*clusters(150, spread=0.05, seed=0), *clusters(60, spread=0.05, seed=1), few=(1, 4))
    assert found.top1 == 1.0
    assert found.chance == pytest.approx(1 / 3)
    assert (found.num_train, found.num_test, found.num_classes) == (150, 60, 3)
    assert found.few[4] >= found.few[1] > 0.9


def test_noise_stays_at_chance() -> None:
    features, _ = clusters(300, spread=5.0, seed=0)
    targets = torch.randint(3, (300,), generator=torch.Generator().manual_seed(2))
    others = torch.randint(3, (300,), generator=torch.Generator().manual_seed(3))
    found = linear_probe(features, targets, clusters(300, spread=5.0, seed=4)[0], others)
    assert found.top1 < 0.45


def test_the_sweep_goes_from_coarse_to_fine_and_takes_the_best() -> None:
    found = linear_probe(*clusters(90, spread=0.6, seed=0), *clusters(90, spread=0.6, seed=1))
    strengths, scores = zip(*found.sweep, strict=True)
    assert list(strengths) == sorted(strengths)
    assert min(strengths) <= 1e-6
    assert max(strengths) >= 1e6
    assert dict(found.sweep)[found.regularisation] == max(scores)


def test_the_same_seed_gives_the_same_figures() -> None:
    data = (*clusters(90, spread=0.6, seed=0), *clusters(90, spread=0.6, seed=1))
    assert linear_probe(*data, few=(2,), seed=5) == linear_probe(*data, few=(2,), seed=5)


@pytest.mark.parametrize(
    ("num", "classes", "few", "what"), [(9, 3, (), "ten"), (30, 1, (), "two classes"), (30, 3, (11,), "11 examples")]
)
def test_too_little_is_refused(num: int, classes: int, few: tuple[int, ...], what: str) -> None:
    features, targets = clusters(num, spread=0.1, seed=0)
    with pytest.raises(DataError, match=what):
        linear_probe(features, targets % classes, features, targets % classes, few=few)
