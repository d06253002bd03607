"""Compute the row at each position for weighted rows and mixtures of lakes, as a pure function like the order.

Nothing is sampled with state, so nothing has to be saved. A row of weight w occurs at its share of the positions,
rounded down or up, and each epoch rounds differently. In every 1,000 positions each lake of a mixture has exactly its
share. It goes through its own rows in its own order, epoch after epoch.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from lakeclip.data.counter_rng import keys, uniforms
from lakeclip.data.order import Order, Positions, hold_out, permute
from lakeclip.errors import ConfigError
from lakeclip.lake.rows import RowSource

#: Weights per stored running sum, so that memory is little more than one weight per row.
_GROUP = 64
#: Positions within which a mixture keeps its shares exactly.
_ROUND = 1_000

# Purposes of the different keys of one (seed, epoch); `order` uses the first ones.
_OFFSET, _SLOTS = 16, 17


@runtime_checkable
class RowSubset(Protocol):
    """Selection of a source's rows; indexing maps indices into the selection to rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Positions) -> Positions: ...


@runtime_checkable
class Plan(Protocol):
    """Mapping from the positions of an epoch to rows.

    Attributes:
        num_rows: positions in an epoch.
        seed: seed of the plan and of the random draws for each sample.
        fingerprint: hash of the plan. A position of one plan is meaningless in a plan with another fingerprint.
    """

    @property
    def num_rows(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def fingerprint(self) -> int: ...

    def rows(self, epoch: int, positions: Positions) -> Positions:
        """Return the rows of the source at positions (each in 0 … num_rows - 1)."""


class WeightedRows:
    """Rows resampled by weight: an epoch has as many indices as rows, and a row occurs in proportion to its weight.

    This is systematic resampling: the running sum of the weights is cut at equal distances, from an offset that each
    epoch draws. Neighbouring indices map to neighbouring rows, so reading stays cheap.

    Args:
        weights: one weight per row; none negative, not all 0.
    """

    def __init__(self, weights: Float32[np.ndarray, " rows"]) -> None:
        padded = np.zeros(-(-len(weights) // _GROUP) * _GROUP, np.float32)
        padded[: len(weights)] = weights
        self._weights = padded.reshape(-1, _GROUP)
        sums = self._weights.sum(axis=1, dtype=np.float64)
        self._before = np.cumsum(sums) - sums
        self._total = float(sums.sum())
        self._last = int(np.flatnonzero(weights)[-1])
        self._count = len(weights)
        self.fingerprint = zlib.crc32(padded.tobytes())

    def rows(self, seed: int, epoch: int | Positions, indices: Positions) -> Positions:
        """Return the rows at indices of an epoch, or of one epoch per index."""
        offset = uniforms(keys(seed, epoch, _OFFSET), 1)[..., 0]
        target = (indices + offset) * (self._total / self._count)
        group = np.searchsorted(self._before, target, "right") - 1
        sums = np.cumsum(self._weights[group], axis=1, dtype=np.float64)
        within = (sums <= (target - self._before[group])[:, None]).sum(axis=1)
        rows: Positions = np.minimum(group * _GROUP + np.minimum(within, _GROUP - 1), self._last)
        return rows


@dataclass(frozen=True)
class SourcePlan:
    """Plan for one source: each row occurs once an epoch, or in proportion to its weight.

    Attributes:
        subset: the rows of the source to visit.
        order: order of the subset's indices.
        weights: weights of the subset's rows; None if each occurs once.
        offset: number added to every row, for a source that follows others.
    """

    subset: RowSubset
    order: Order
    weights: WeightedRows | None = None
    offset: int = 0

    @property
    def num_rows(self) -> int:
        return self.order.num_rows

    @property
    def seed(self) -> int:
        return self.order.seed

    @property
    def fingerprint(self) -> int:
        weights = self.weights.fingerprint if self.weights else 0
        return zlib.crc32(f"{self.num_rows} {self.seed} {self.order.shuffle} {weights}".encode())

    def rows(self, epoch: int | Positions, positions: Positions) -> Positions:
        indices = self.order.rows(epoch, positions)
        if self.weights is not None:
            indices = self.weights.rows(self.seed, epoch, indices)
        rows: Positions = self.subset[indices] + self.offset
        return rows


class MixturePlan:
    """Plan for several sources, each with its share of the positions; a source that ends begins its next epoch.

    Args:
        plans: plan of each source.
        shares: share of the positions for each; they need not add up to 1.

    Raises:
        ConfigError: a share is so small that its source would never be drawn.
    """

    def __init__(self, plans: Sequence[SourcePlan], shares: Sequence[float]) -> None:
        self.plans = tuple(plans)
        self.num_rows = sum(plan.num_rows for plan in plans)
        self.seed = plans[0].seed
        exact = [share / sum(shares) * _ROUND for share in shares]
        slots = [int(count) for count in exact]
        for index in sorted(range(len(slots)), key=lambda i: slots[i] - exact[i])[: _ROUND - sum(slots)]:
            slots[index] += 1
        if min(slots) == 0:
            raise ConfigError(
                "a lake's share of the mixture is too small", found=f"{min(shares)}", allowed=f"1 in {_ROUND:,} or more"
            )
        self._slots = np.array(slots)
        self._ends = np.cumsum(slots)
        self.fingerprint = zlib.crc32(f"{slots} {[plan.fingerprint for plan in plans]}".encode())

    @property
    def epochs_per_epoch(self) -> list[float]:
        """Epochs of each source during one epoch of the mixture."""
        shares = self._slots / _ROUND
        return [float(share) * self.num_rows / plan.num_rows for share, plan in zip(shares, self.plans, strict=True)]

    def rows(self, epoch: int, positions: Positions) -> Positions:
        # Count positions across epochs, so that each source continues where it was at the end of the last epoch.
        round_index, within = np.divmod(positions + epoch * self.num_rows, _ROUND)
        slot = permute(within, np.full_like(within, _ROUND), keys(self.seed, round_index, _SLOTS))
        source = np.searchsorted(self._ends, slot, "right")
        count = round_index * self._slots[source] + slot - (self._ends - self._slots)[source]
        rows = np.empty_like(positions)
        for index, plan in enumerate(self.plans):
            selected = np.flatnonzero(source == index)
            rows[selected] = plan.rows(*np.divmod(count[selected], plan.num_rows))
        return rows


class ConcatSubset:
    """Concatenation of subsets of several sources.

    Args:
        subsets: subset of each source.
        offsets: number added to the rows of each.
    """

    def __init__(self, subsets: Sequence[RowSubset], offsets: Sequence[int]) -> None:
        self._subsets = list(subsets)
        self._offsets = list(offsets)
        self._ends = np.array(list(accumulate(len(subset) for subset in subsets)))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, indices: Positions) -> Positions:
        source = np.searchsorted(self._ends, indices, "right")
        rows = np.empty_like(indices)
        for number, (subset, offset) in enumerate(zip(self._subsets, self._offsets, strict=True)):
            selected = source == number
            rows[selected] = subset[indices[selected] - (int(self._ends[number]) - len(subset))] + offset
        return rows


def all_rows(source: RowSource) -> RowSubset:
    """Return all rows of a source, with none held out."""
    return ConcatSubset([hold_out(len(part), 0.0)[0] for part in source.parts], source.offsets)


def make_plans(source: RowSource, held_fraction: float, *, seed: int, shuffle: bool) -> tuple[Plan, RowSubset]:
    """Split a source and plan its training; return the plan and the held-out rows.

    Args:
        source: a lake, a folder or a mixture, each part of which is split separately.
        held_fraction: share of the rows to hold out.
        seed: seed of the order.
        shuffle: False to keep the rows in their stored order.

    Raises:
        ConfigError: see `hold_out`; or all training rows of a lake have weight 0.
    """
    plans: list[SourcePlan] = []
    held_out_subsets: list[RowSubset] = []
    for number, (part, offset) in enumerate(zip(source.parts, source.offsets, strict=True)):
        train, held_out = hold_out(len(part), held_fraction)
        weights = None
        if part.weights is not None:
            train_weights = part.weights[train[np.arange(len(train))]]
            if not train_weights.any():
                raise ConfigError(f"all training rows of {part.path} have weight 0")
            weights = WeightedRows(train_weights)
        # Derive a seed per lake, or lakes of equal size would be read in the same order.
        order = Order(len(train), seed if number == 0 else int(keys(seed, number)[0] >> np.uint64(1)), shuffle)
        plans.append(SourcePlan(train, order, weights, offset))
        held_out_subsets.append(held_out)
    plan: Plan = MixturePlan(plans, source.shares) if len(plans) > 1 else plans[0]
    return plan, ConcatSubset(held_out_subsets, source.offsets)
