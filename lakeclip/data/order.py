"""Compute the row at a position: a pure function of (number of rows, seed, epoch, position), in constant memory.

Rows are stored in blocks that are cheap to read together. An epoch shuffles the blocks, cuts the result into windows of
8,000 to 16,000 rows, and shuffles the rows within each window. Both shuffles are keyed permutations (a Feistel network
over a set of any size, with cycle walking: Black and Rogaway 2002). So nothing is stored, and every position takes the
same time to compute: ranks and workers take slices, a resumed run starts where it stopped, and 400 million rows cost no
more than 400.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from lakeclip.data.counter_rng import Keys, keys, mix
from lakeclip.errors import ConfigError

Positions = Int64[np.ndarray, " positions"]

BLOCK_ROWS = 256
WINDOW_BLOCKS = 32

_ROUNDS = 6

# Purposes of the different keys of one (seed, epoch).
_BLOCKS, _SHORT_BLOCK, _WINDOW, _HELD_OUT = range(4)


@dataclass(frozen=True)
class Order:
    """Order of the rows in each epoch; every row occurs once.

    Attributes:
        num_rows: number of rows in an epoch.
        seed: seed of the order.
        shuffle: False to keep the rows in their stored order.
    """

    num_rows: int
    seed: int = 0
    shuffle: bool = True

    def rows(self, epoch: int | Positions, positions: Positions) -> Positions:
        """Return the rows at positions (each in 0 … num_rows - 1) of an epoch, or of one epoch per position."""
        if not self.shuffle:
            return positions
        num_blocks = -(-self.num_rows // BLOCK_ROWS)
        missing = num_blocks * BLOCK_ROWS - self.num_rows  # rows missing from the last block
        # The short block is at a random slot; the full blocks are in random order around it.
        short_slot = (keys(self.seed, epoch, _SHORT_BLOCK) % np.uint64(num_blocks)).astype(np.int64)
        short_end = (short_slot + 1) * BLOCK_ROWS - missing

        def first_position(slot: Positions) -> Positions:
            return slot * BLOCK_ROWS - np.where(slot > short_slot, missing, 0)

        def slot_of(position: Positions) -> Positions:
            return (position + np.where(position >= short_end, missing, 0)) // BLOCK_ROWS

        # Permute the positions within each window.
        num_windows = max(1, num_blocks // WINDOW_BLOCKS)
        window = ((slot_of(positions) + 1) * num_windows - 1) // num_blocks
        start = first_position(window * num_blocks // num_windows)
        size = first_position((window + 1) * num_blocks // num_windows) - start
        shuffled = start + permute(positions - start, size, keys(self.seed, epoch, _WINDOW, window))

        slot = slot_of(shuffled)
        full_index = slot - (slot > short_slot)
        num_full_blocks = np.full_like(slot, max(1, num_blocks - 1))
        block = permute(np.minimum(full_index, num_full_blocks - 1), num_full_blocks, keys(self.seed, epoch, _BLOCKS))
        block = np.where(slot == short_slot, num_blocks - 1, block)
        rows: Positions = block * BLOCK_ROWS + shuffled - first_position(slot)
        return rows


@dataclass(frozen=True)
class SplitSubset:
    """One side of a train/validation split; indexing maps positions in it to rows of the source.

    Of every `1 / share` neighbouring rows one is held out, chosen by a hash of their number. So rows that are added
    later leave the earlier rows on their side, and no list of rows is stored.
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

    def __getitem__(self, indices: Positions) -> Positions:
        if self.held_per_million == 0:
            return indices
        if self.is_held:
            return self._held(indices)
        group = indices * self.held_per_million // (_MILLION - self.held_per_million)
        before = self._start(group) - group
        rows: Positions = indices - before + self._start(group)
        rows += rows >= self._held(group)
        return rows

    def _start(self, group: Positions) -> Positions:
        return -(-group * _MILLION // self.held_per_million)

    def _held(self, group: Positions) -> Positions:
        start = self._start(group)
        # One of the first two rows is held out, so that any source of two or more rows has rows on both sides.
        size = np.where(group == 0, 2, self._start(group + 1) - start)
        return start + (keys(_HELD_OUT, group) % size.astype(np.uint64)).astype(np.int64)


_MILLION = 1_000_000


def hold_out(num_rows: int, fraction: float) -> tuple[SplitSubset, SplitSubset]:
    """Split rows into training and validation rows, in the same way every time.

    Args:
        num_rows: number of rows; rows that are added later do not change the side of earlier ones.
        fraction: share to hold out, to six decimals; 0 for none.

    Returns:
        The training rows and the held-out rows. Neither is empty unless `fraction` is 0.

    Raises:
        ConfigError: the fraction is not in [0, 1), or there are fewer than two rows to split.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"cannot hold out a share of {fraction} of the rows", allowed="at least 0 (none) and below 1")
    per_million = min(max(round(fraction * _MILLION), int(fraction > 0)), _MILLION - 1)
    if per_million and num_rows < 2:
        raise ConfigError(
            f"cannot hold out {fraction} of the rows for validation",
            found=f"{num_rows} row{'' if num_rows == 1 else 's'}",
            allowed="2 rows or more",
            next_step="use a separate validation set, or set the fraction to 0",
        )
    # Each group contributes one row to the rarer side, so every group has at least two rows.
    swapped = per_million > _MILLION // 2
    rare = _MILLION - per_million if swapped else per_million
    return SplitSubset(num_rows, rare, is_held=swapped), SplitSubset(num_rows, rare, is_held=not swapped)


def permute(index: Positions, size: Positions, key: Keys) -> Positions:
    """Permute 0 … size - 1, each element by its own size and key; equal ones share a bijection."""
    width = np.ceil(np.sqrt(size)).astype(np.uint64)
    height = -(-size.astype(np.int64) // width.astype(np.int64))
    key = np.broadcast_to(key, index.shape)
    result = _feistel(index.astype(np.uint64), width, height.astype(np.uint64), key)
    # The network permutes a rectangle slightly larger than the set. Apply it again to results outside the set, until
    # they are inside (cycle walking).
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


def sample_positions(positions: Sequence[int], max_count: int) -> list[int]:
    """Return a fixed random sample of at most `max_count` positions, in their original order."""
    if len(positions) <= max_count:
        return list(positions)
    chosen = np.random.default_rng(0).choice(len(positions), max_count, replace=False)
    return [positions[index] for index in sorted(chosen.tolist())]
