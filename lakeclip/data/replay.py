"""The batches of a run that is over, or of one that goes on: which samples a step was made of, made again.

The data is a function of positions, and a run's lineage says how it went through them, so nothing has to be kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from lakeclip.data.progress import Mark
from lakeclip.data.sizes import SizeSchedule
from lakeclip.data.stream import PairStream, Span, TrainSpans


@dataclass(frozen=True)
class Replay:
    """How a part of a run goes through its data.

    Attributes:
        stream: of its training pairs.
        sizes: of its images.
        began: where the part began.
        batch_size: pairs per process and batch.
        world_size: processes.
        batches_per_step: batches whose gradients are accumulated.
        max_steps, max_epochs: of which the run ends with the first; -1 or None for one that does not count.
    """

    stream: PairStream
    sizes: SizeSchedule
    began: Mark
    batch_size: int
    world_size: int
    batches_per_step: int
    max_steps: int
    max_epochs: int | None

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps in an epoch."""
        return len(self.stream) // (self.batch_size * self.world_size * self.batches_per_step)

    def place(self, step: int) -> Mark:
        """Where the data stands before a step, counted from 1."""
        a_step = self.batch_size * self.world_size * self.batches_per_step
        return self.began.after(step - 1, num_rows=len(self.stream), global_batch=a_step)

    def spans(self, step: int) -> Iterator[tuple[int, int, Span]]:
        """What a step is made of, as (batch of the step, process, span), by the samplers that the processes have."""
        mark = self.place(step)
        processes = [
            list(
                islice(
                    TrainSpans(
                        self.stream,
                        self.batch_size,
                        rank=rank,
                        world_size=self.world_size,
                        place=lambda: (mark.epoch, mark.position),
                        batches_per_step=self.batches_per_step,
                        side=self._side,
                    ),
                    self.batches_per_step,
                )
            )
            for rank in range(self.world_size)
        ]
        for batch, spans in enumerate(zip(*processes, strict=True)):
            for rank, span in enumerate(spans):
                yield batch, rank, span

    def _side(self, epoch: int, position: int) -> int | None:
        if not self.sizes.stages:
            return None
        done = epoch * self.steps_per_epoch + position // (self.batch_size * self.world_size * self.batches_per_step)
        return self.sizes.side_at(done, self.steps_per_epoch, max_steps=self.max_steps, max_epochs=self.max_epochs)
