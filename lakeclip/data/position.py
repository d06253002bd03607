"""Where a run stands in its data, counted from the steps it has taken: every step takes full global batches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """Where the data stands after so many steps.

    Attributes:
        step: optimiser steps since the run began.
        epoch: the epoch that the next batch is of.
        position: samples of that epoch that have been seen, over all devices.
        samples_seen: samples seen in all epochs.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    samples_seen: int = 0

    def after(
        self, step: int, *, num_rows: int, global_batch: int, max_batches: int | None = None, batches_per_step: int = 1
    ) -> Mark:
        """Where the data stands at a later step, if every batch since this mark was of one size.

        Args:
            step: optimiser steps since the run began.
            num_rows: rows in an epoch; those that do not fill a last batch are left out of it.
            global_batch: samples in a batch, over all devices.
            max_batches: end epochs after so many batches (Lightning's `limit_train_batches`).
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
        return Mark(step, epoch, position + within, seen + within)
