"""Track the position of a run in its data, computed from the steps taken: every step takes full global batches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataPosition:
    """A run's position in its data after a number of steps.

    Attributes:
        step: optimiser steps since the run began.
        epoch: epoch of the next batch.
        position: samples of that epoch that have been seen, over all devices.
        samples_seen: samples seen in all epochs.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    samples_seen: int = 0

    def advance_to(
        self, step: int, *, num_rows: int, global_batch: int, max_batches: int | None = None, batches_per_step: int = 1
    ) -> DataPosition:
        """Compute the position at a later step, if every batch until then has the same size.

        Args:
            step: optimiser steps since the run began.
            num_rows: rows in an epoch; rows that do not fill a last batch are dropped.
            global_batch: samples in a batch, over all devices.
            max_batches: batches after which an epoch ends (Lightning's `limit_train_batches`).
            batches_per_step: batches whose gradients are accumulated; the last step of an epoch may have fewer.
        """
        batches = num_rows // global_batch if max_batches is None else min(num_rows // global_batch, max_batches)
        left = (num_rows - self.position) // global_batch
        left = max(0, min(left, batches - self.position // global_batch))

        steps = step - self.step
        epoch, position, seen = self.epoch, self.position, self.samples_seen
        if steps >= (steps_left := -(-left // batches_per_step)):
            epochs, steps = divmod(steps - steps_left, max(1, -(-batches // batches_per_step)))
            epoch, position = epoch + 1 + epochs, 0
            seen += (left + epochs * batches) * global_batch
        within = steps * batches_per_step * global_batch
        return DataPosition(step, epoch, position + within, seen + within)

    def step_at(
        self, epoch: int, position: int, *, num_rows: int, samples_per_step: int, max_steps_per_epoch: int | None = None
    ) -> int:
        """Return the steps done before a later position, if every step until then has the same size.

        Args:
            epoch, position: the later position.
            num_rows: rows in an epoch.
            samples_per_step: pairs of a step, over all devices and accumulated batches.
            max_steps_per_epoch: steps after which an epoch ends, if not all of its rows are used.
        """
        if epoch == self.epoch:
            return self.step + (position - self.position) // samples_per_step
        first, each = (
            steps_left(start, num_rows, samples_per_step, max_steps_per_epoch) for start in (self.position, 0)
        )
        return self.step + first + (epoch - self.epoch - 1) * each + position // samples_per_step


def steps_left(position: int, num_rows: int, samples_per_step: int, max_steps_per_epoch: int | None = None) -> int:
    """Return the number of whole steps from a position to the end of its epoch."""
    left = (num_rows - position) // samples_per_step
    if max_steps_per_epoch is not None:
        left = min(left, max_steps_per_epoch - position // samples_per_step)
    return max(0, left)
