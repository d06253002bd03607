"""Which row stands at each position where rows have weights or several lakes are mixed: a function, as the order is.

Nothing is drawn by chance, so nothing has to be remembered. A row of weight w stands at its share of the positions,
rounded down or up, and each epoch rounds anew. Of every 1,000 positions each lake of a mixture has its share exactly,
and goes through its own rows in its own order, again and again.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from lakeclip.data.keys import keys, uniforms
from lakeclip.data.order import Order, Positions, hold_out, permute
from lakeclip.errors import ConfigError
from lakeclip.lake.dataset import Lake
from lakeclip.lake.rows import RowSource
from lakeclip.lake.several import Lakes

#: Weights that one running sum stands for: the memory is a weight a row, and little more.
_GROUP = 64
#: Positions within which a mixture keeps its shares.
_ROUND = 1_000

# What the several keys of one (seed, epoch) are for; `order` has the first.
_OFFSET, _SLOTS = 16, 17


@runtime_checkable
class Places(Protocol):
    """Rows of a source, by place."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: Positions) -> Positions: ...


@runtime_checkable
class Plan(Protocol):
    """The rows of an epoch, by position.

    Attributes:
        num_rows: positions in an epoch.
        seed: of the plan, and of what is drawn for each sample.
        fingerprint: another number, another plan: a position of one means nothing in the other.
    """

    @property
    def num_rows(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def fingerprint(self) -> int: ...

    def rows(self, epoch: int, positions: Positions) -> Positions:
        """Rows of the source at positions (each in 0 … num_rows - 1)."""


class Weights:
    """Turns equal shares into weighted ones: of as many places as there are rows, a row has as many as it weighs.

    Systematic resampling: the running sum of the weights is cut at equal distances, from an offset that each epoch
    draws. Neighbours stay neighbours, so what is cheap to read together still is.

    Args:
        weights: one for each row, none negative, not all 0.
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

    def rows(self, seed: int, epoch: int | Positions, places: Positions) -> Positions:
        """Rows that stand at places of an epoch, or each of an epoch of its own."""
        offset = uniforms(keys(seed, epoch, _OFFSET), 1)[..., 0]
        mark = (places + offset) * (self._total / self._count)
        group = np.searchsorted(self._before, mark, "right") - 1
        sums = np.cumsum(self._weights[group], axis=1, dtype=np.float64)
        within = (sums <= (mark - self._before[group])[:, None]).sum(axis=1)
        rows: Positions = np.minimum(group * _GROUP + np.minimum(within, _GROUP - 1), self._last)
        return rows


@dataclass(frozen=True)
class Pass:
    """One source's rows, each once an epoch, or as often as it weighs.

    Attributes:
        places: which of the source's rows.
        order: of the places.
        weights: how often each place stands in an epoch; None for once.
        offset: added to every row, for a source that follows others.
    """

    places: Places
    order: Order
    weights: Weights | None = None
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
        places = self.order.rows(epoch, positions)
        if self.weights is not None:
            places = self.weights.rows(self.seed, epoch, places)
        rows: Positions = self.places[places] + self.offset
        return rows


class Mixture:
    """Several passes, each with its share of every batch; one that comes to its end begins its next epoch.

    Args:
        passes: what is mixed.
        shares: of the positions, for each; they need not add up to 1.

    Raises:
        ConfigError: a share so small that it would never be drawn.
    """

    def __init__(self, passes: Sequence[Pass], shares: Sequence[float]) -> None:
        self.passes = tuple(passes)
        self.num_rows = sum(one.num_rows for one in passes)
        self.seed = passes[0].seed
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
        self.fingerprint = zlib.crc32(f"{slots} {[one.fingerprint for one in passes]}".encode())

    @property
    def epochs_per_epoch(self) -> list[float]:
        """How often each pass goes through its rows while the mixture goes through one epoch."""
        shares = self._slots / _ROUND
        return [float(share) * self.num_rows / one.num_rows for share, one in zip(shares, self.passes, strict=True)]

    def rows(self, epoch: int, positions: Positions) -> Positions:
        # Counted on through the epochs, so that a pass goes on where the last epoch left it.
        turn, within = np.divmod(positions + epoch * self.num_rows, _ROUND)
        slot = permute(within, np.full_like(within, _ROUND), keys(self.seed, turn, _SLOTS))
        which = np.searchsorted(self._ends, slot, "right")
        count = turn * self._slots[which] + slot - (self._ends - self._slots)[which]
        rows = np.empty_like(positions)
        for index, one in enumerate(self.passes):
            own = np.flatnonzero(which == index)
            rows[own] = one.rows(*np.divmod(count[own], one.num_rows))
        return rows


class Chain:
    """Places of several sources, one after another.

    Args:
        parts: the places of each.
        offsets: what to add to the rows of each.
    """

    def __init__(self, parts: Sequence[Places], offsets: Sequence[int]) -> None:
        self._parts = list(parts)
        self._offsets = list(offsets)
        self._ends = np.array(list(accumulate(len(part) for part in parts)))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, places: Positions) -> Positions:
        which = np.searchsorted(self._ends, places, "right")
        rows = np.empty_like(places)
        for index, (part, offset) in enumerate(zip(self._parts, self._offsets, strict=True)):
            own = which == index
            rows[own] = part[places[own] - (int(self._ends[index]) - len(part))] + offset
        return rows


def parts_of(source: RowSource) -> list[RowSource]:
    """The lakes that a source mixes, or the source itself."""
    return list(source.parts) if isinstance(source, Lakes) else [source]


def every_place(source: RowSource) -> Places:
    """All rows of a source, none held out."""
    offsets = source.offsets if isinstance(source, Lakes) else [0]
    return Chain([hold_out(len(part), 0.0)[0] for part in parts_of(source)], offsets)


def make_plans(source: RowSource, held_fraction: float, *, seed: int, shuffle: bool) -> tuple[Plan, Places]:
    """Which rows of a source to train on and in which order, and which are held out from that.

    Args:
        source: one lake or folder, or a mixture, each part of which is divided by itself.
        held_fraction: share of the rows to hold out.
        seed: of the order.
        shuffle: False to take the rows as they stand.

    Raises:
        ConfigError: see `hold_out`; or the weights leave nothing to train on.
    """
    parts = parts_of(source)
    offsets = source.offsets if isinstance(source, Lakes) else [0]
    passes: list[Pass] = []
    held: list[Places] = []
    for number, (part, offset) in enumerate(zip(parts, offsets, strict=True)):
        train, held_out = hold_out(len(part), held_fraction)
        weights = None
        if isinstance(part, Lake) and part.weights is not None:
            own = part.weights[train[np.arange(len(train))]]
            if not own.any():
                raise ConfigError(f"every row of {part.path} to train on has weight 0")
            weights = Weights(own)
        # Two lakes of one size are not to be read in the same order.
        order = Order(len(train), seed if number == 0 else int(keys(seed, number)[0] >> np.uint64(1)), shuffle)
        passes.append(Pass(train, order, weights, offset))
        held.append(held_out)
    plan: Plan = Mixture(passes, source.shares) if isinstance(source, Lakes) else passes[0]
    return plan, Chain(held, offsets)
