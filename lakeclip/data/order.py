"""Which row stands at which position: a pure function of (number of rows, seed, epoch, position), in constant memory.

Rows are stored in blocks that are cheap to read together. An epoch puts the blocks in a random order, cuts that into
windows of 8,000 to 16,000 rows, and shuffles the rows within each window. Both shuffles are keyed permutations (a
Feistel network over any number of things, with cycle walking: Black and Rogaway 2002), so nothing is stored and any
position is as quick to find as the first: ranks and workers take slices, a resumed run starts where it stopped, 4e8
rows cost what 400 do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from lakeclip.data.keys import Keys, keys, mix
from lakeclip.errors import ConfigError

Positions = Int64[np.ndarray, " positions"]

BLOCK_ROWS = 256
WINDOW_BLOCKS = 32

_ROUNDS = 6

# What the several keys of one (seed, epoch) are for.
_BLOCKS, _SHORT_BLOCK, _WINDOW, _HELD_OUT = range(4)


@dataclass(frozen=True)
class Order:
    """The order of the rows in each epoch: every row once.

    Attributes:
        num_rows: how many rows an epoch has.
        seed: another seed, another order.
        shuffle: False to keep the rows as they stand.
    """

    num_rows: int
    seed: int = 0
    shuffle: bool = True

    def rows(self, epoch: int | Positions, positions: Positions) -> Positions:
        """Rows at positions (each in 0 … num_rows - 1) of an epoch, or each of an epoch of its own."""
        if not self.shuffle:
            return positions
        num_blocks = -(-self.num_rows // BLOCK_ROWS)
        missing = num_blocks * BLOCK_ROWS - self.num_rows  # rows that the last block lacks
        # The short block stands at a random slot, the full ones in random order around it.
        short_slot = (keys(self.seed, epoch, _SHORT_BLOCK) % np.uint64(num_blocks)).astype(np.int64)
        short_end = (short_slot + 1) * BLOCK_ROWS - missing

        def first_position(slot: Positions) -> Positions:
            return slot * BLOCK_ROWS - np.where(slot > short_slot, missing, 0)

        def slot_of(position: Positions) -> Positions:
            return (position + np.where(position >= short_end, missing, 0)) // BLOCK_ROWS

        # Within its window, every position trades places with another.
        num_windows = max(1, num_blocks // WINDOW_BLOCKS)
        window = ((slot_of(positions) + 1) * num_windows - 1) // num_blocks
        start = first_position(window * num_blocks // num_windows)
        size = first_position((window + 1) * num_blocks // num_windows) - start
        place = start + permute(positions - start, size, keys(self.seed, epoch, _WINDOW, window))

        slot = slot_of(place)
        others = slot - (slot > short_slot)
        num_others = np.full_like(slot, max(1, num_blocks - 1))
        block = permute(np.minimum(others, num_others - 1), num_others, keys(self.seed, epoch, _BLOCKS))
        block = np.where(slot == short_slot, num_blocks - 1, block)
        rows: Positions = block * BLOCK_ROWS + place - first_position(slot)
        return rows


@dataclass(frozen=True)
class Rows:
    """Rows of a source that are on one side of a hold-out; indexing turns places in it into rows.

    Of every `1 / share` neighbouring rows one is held out, and a hash of their number says which. So rows that are
    added later leave the earlier ones on their side, and no list of rows is kept.
    """

    num_rows: int
    held_per_million: int
    is_held: bool

    def __len__(self) -> int:
        if self.held_per_million == 0:
            return 0 if self.is_held else self.num_rows
        num_groups = (self.num_rows * self.held_per_million - 1) // _MILLION + 1
        last_held = self._held(np.array([num_groups - 1]))[0]
        num_held = num_groups - int(last_held >= self.num_rows)
        return num_held if self.is_held else self.num_rows - num_held

    def __getitem__(self, places: Positions) -> Positions:
        if self.held_per_million == 0:
            return places
        if self.is_held:
            return self._held(places)
        group = places * self.held_per_million // (_MILLION - self.held_per_million)
        before = self._start(group) - group
        rows: Positions = places - before + self._start(group)
        rows += rows >= self._held(group)
        return rows

    def _start(self, group: Positions) -> Positions:
        return -(-group * _MILLION // self.held_per_million)

    def _held(self, group: Positions) -> Positions:
        start = self._start(group)
        # The first two rows are already divided, so that no data set of two rows or more has an empty side.
        size = np.where(group == 0, 2, self._start(group + 1) - start)
        return start + (keys(_HELD_OUT, group) % size.astype(np.uint64)).astype(np.int64)


_MILLION = 1_000_000


def hold_out(num_rows: int, fraction: float) -> tuple[Rows, Rows]:
    """Divide rows into those to train on and those to validate on, for ever the same way.

    Args:
        num_rows: how many rows there are; those that are added later do not move the earlier ones.
        fraction: share to hold out, to six decimals; 0 for none.

    Returns:
        The rows to train on and the rows held out. Neither is empty unless `fraction` is 0.

    Raises:
        ConfigError: the fraction is not in [0, 1), or there are not two rows to divide.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"cannot hold out a share of {fraction} of the rows", allowed="0 (none) up to, not with, 1")
    per_million = min(max(round(fraction * _MILLION), int(fraction > 0)), _MILLION - 1)
    if per_million and num_rows < 2:
        raise ConfigError(
            f"cannot hold out {fraction} of the rows for validation",
            found=f"{num_rows} row{'' if num_rows == 1 else 's'}",
            allowed="2 rows or more",
            next_step="bring validation data of its own, or set the fraction to 0",
        )
    # The rarer side is one row of every group, so a group has two rows or more.
    swapped = per_million > _MILLION // 2
    rare = _MILLION - per_million if swapped else per_million
    return Rows(num_rows, rare, is_held=swapped), Rows(num_rows, rare, is_held=not swapped)


def permute(index: Positions, size: Positions, key: Keys) -> Positions:
    """Permute 0 … size - 1, each element by its own size and key: equal sizes and keys make one bijection."""
    width = np.ceil(np.sqrt(size)).astype(np.uint64)
    height = -(-size.astype(np.int64) // width.astype(np.int64))
    key = np.broadcast_to(key, index.shape)
    result = _feistel(index.astype(np.uint64), width, height.astype(np.uint64), key)
    # The network permutes a rectangle a little larger than the set: what lands outside walks on until it is inside.
    while (outside := result >= size.astype(np.uint64)).any():
        result[outside] = _feistel(result[outside], width[outside], height.astype(np.uint64)[outside], key[outside])
    permuted: Positions = result.astype(np.int64)
    return permuted


def _feistel(value: Keys, width: Keys, height: Keys, key: Keys) -> Keys:
    column, row = value % width, value // width
    for round_key in (mix(key + np.uint64(number)) for number in range(_ROUNDS)):
        column, row = (column + mix(round_key ^ row)) % width, row
        column, row, width, height = row, column, height, width
    permuted: Keys = row * width + column
    return permuted


def draw_sample(positions: Sequence[int], most: int) -> list[int]:
    """At most so many of these rows, drawn at random but always the same, in their order."""
    if len(positions) <= most:
        return list(positions)
    chosen = np.random.default_rng(0).choice(len(positions), most, replace=False)
    return [positions[index] for index in sorted(chosen.tolist())]
