"""Rebuild the batches of any step of a finished or running run.

The data is a pure function of positions, and a run's lineage records its segments, so no batches have to be stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from lakeclip.data.image_size_schedule import ImageSizeSchedule
from lakeclip.data.position import DataPosition
from lakeclip.data.stream import PairStream, Span, TrainSampler


@dataclass(frozen=True)
class Replay:
    """A segment of a run and its path through the data.

    Attributes:
        stream: the run's training pairs.
        image_sizes: schedule of the image size.
        start: position in the data at which the segment began.
        batch_size: pairs per process and batch.
        world_size: number of processes.
        batches_per_step: batches whose gradients are accumulated.
        max_steps, max_epochs: limits of the run; the smaller one counts. -1 or None means no limit.
        total_steps: length of the run; None in older checkpoints, which follow from the limits alone.
    """

    stream: PairStream
    image_sizes: ImageSizeSchedule
    start: DataPosition
    batch_size: int
    world_size: int
    batches_per_step: int
    max_steps: int
    max_epochs: int | None
    total_steps: int | None = None

    @property
    def samples_per_step(self) -> int:
        """Pairs of a step, over all processes and accumulated batches."""
        return self.batch_size * self.world_size * self.batches_per_step

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps in an epoch."""
        return len(self.stream) // self.samples_per_step

    def position_before(self, step: int) -> DataPosition:
        """Return the position in the data before a step, counted from 1."""
        return self.start.advance_to(step - 1, num_rows=len(self.stream), global_batch=self.samples_per_step)

    def spans(self, step: int) -> Iterator[tuple[int, int, Span]]:
        """Yield (batch within the step, rank, span) for each batch of a step, from the samplers that training uses."""
        position = self.position_before(step)
        spans_of_ranks = [
            list(
                islice(
                    TrainSampler(
                        self.stream,
                        self.batch_size,
                        rank=rank,
                        world_size=self.world_size,
                        start_position=lambda: (position.epoch, position.position),
                        batches_per_step=self.batches_per_step,
                        image_size_at=self._image_size_at,
                    ),
                    self.batches_per_step,
                )
            )
            for rank in range(self.world_size)
        ]
        for batch, spans in enumerate(zip(*spans_of_ranks, strict=True)):
            for rank, span in enumerate(spans):
                yield batch, rank, span

    def _image_size_at(self, epoch: int, position: int) -> int | None:
        if not self.image_sizes.stages:
            return None
        if self.total_steps is not None:
            step = self.start.step_at(
                epoch, position, num_rows=len(self.stream), samples_per_step=self.samples_per_step
            )
            return self.image_sizes.size_at(step / self.total_steps)
        step = epoch * self.steps_per_epoch + position // self.samples_per_step
        return self.image_sizes.size_at_step(
            step, self.steps_per_epoch, max_steps=self.max_steps, max_epochs=self.max_epochs
        )
