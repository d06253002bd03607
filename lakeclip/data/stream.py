"""Batches as a function of positions: which samples, which crop, which caption.

A global batch is a run of consecutive positions. Each rank takes its slice of it and any worker may make that slice, so
the same pairs meet in the same batch whatever the number of ranks and workers, and any batch can be made again.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lakeclip.data.keys import keys, uniforms
from lakeclip.data.order import BLOCK_ROWS, WINDOW_BLOCKS
from lakeclip.data.plan import Plan
from lakeclip.data.quarantine import Quarantine
from lakeclip.data.same import same_keys
from lakeclip.data.transforms import EvalTransform, TrainTransform
from lakeclip.data.workers import handed_over
from lakeclip.errors import DataError, ImageError, LakeclipError
from lakeclip.lake.dataset import Lake
from lakeclip.lake.rows import Row, RowSource
from lakeclip.lake.several import Lakes
from lakeclip.text.tokenizer import Tokenizer, trim
from lakeclip.types import Batch, Tokenize

# Random numbers of each sample: three for its crop, one for its caption. Its replacements take the next ones.
_DRAWS = 4
_Draw = Float64[np.ndarray, "4"]

_MOST_REPLACEMENTS = 100


class Span(NamedTuple):
    """Positions `start` up to, not with, `stop` of an epoch.

    Attributes:
        side: of the images in pixels; the stream's own when None.
    """

    epoch: int
    start: int
    stop: int
    side: int | None = None


class Sample(NamedTuple):
    """One pair as a model is trained on it.

    Attributes:
        pixels: (3, side, side) uint8.
        row: what it was made from.
        draws: what the crop and the choice of the caption are a function of.
        replaced: rows that stood here and could not be used, and why.
    """

    pixels: Tensor
    caption: str
    row: Row
    draws: _Draw
    replaced: tuple[tuple[Row, str], ...] = ()


class PairStream(Dataset[Batch]):
    """The pairs of a source by position: `stream[span]` is a batch. Picklable.

    A row that cannot be used (its image does not decode, it has no caption) is logged once and another, chosen by the
    position's key, stands in for it: every rank's batch is always full.

    Args:
        source: where rows are read.
        plan: which of its rows stands at each position.
        transform: `TrainTransform` for random crops and one caption of several at random; `EvalTransform` for the
            middle of the image and its first caption.
        tokenize: captions to ids.

        same_by: what makes samples right answers for each other (`Batch.same`): `image`, `caption`, or the columns that
            the source reads with each row.

    Attributes:
        quarantine: where rows that cannot be used are noted.
    """

    def __init__(
        self,
        source: RowSource,
        plan: Plan,
        transform: TrainTransform | EvalTransform,
        tokenize: Tokenize,
        same_by: Sequence[str] = (),
    ) -> None:
        self.source = source
        self.same_by = tuple(same_by)
        self.plan = plan
        self.transform = transform
        self.tokenize = tokenize
        self.quarantine = Quarantine()

    def __len__(self) -> int:
        return self.plan.num_rows

    def __getitem__(self, span: Span) -> Batch:
        """The batch at a span of positions.

        Raises:
            DataError: a hundred rows in a row cannot be used, or the source cannot be read.
        """
        size = self._transform(span.side).image_size
        # Channels last, as a decoder gives them and as convolutions want them.
        images = torch.empty((span.stop - span.start, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        captions: list[str] = []
        used: list[int] = []
        same: list[list[int]] = []
        for image, sample in zip(images, self.samples(span), strict=True):
            image.copy_(sample.pixels)
            captions.append(sample.caption)
            used.append(sample.row.row)
            for bad, reason in sample.replaced:
                self.quarantine.add(self.source, bad.row, reason)
            if self.same_by:
                same.append(same_keys(sample.row, sample.caption, self.same_by))
        texts = self.tokenize(captions)
        if isinstance(self.tokenize, Tokenizer):
            texts = trim(texts)
        shared = torch.tensor(same, dtype=torch.int64) if self.same_by else None
        return Batch(images, texts, torch.tensor(used, dtype=torch.int64), shared)

    def samples(self, span: Span) -> Iterator[Sample]:
        """The pairs at a span of positions, one after the other: what a batch is made of.

        Raises:
            DataError: as for a batch.
        """
        positions = np.arange(span.start, span.stop)
        rows = self.plan.rows(span.epoch, positions)
        self._prefetch(span)
        transform = self._transform(span.side)
        sample_keys = keys(self.plan.seed, span.epoch, positions)
        draws = uniforms(sample_keys, _DRAWS)
        for row, key, draw in zip(self.source.read(rows.tolist()), sample_keys, draws, strict=True):
            yield self._usable(row, span.epoch, key, draw, transform)

    def _prefetch(self, span: Span) -> None:
        """Begin to fetch what will be wanted a window of rows from now, where rows come over a network.

        A batch has rows of nearly all blocks of its window, so the first batch of a window asks for all of the next.
        """
        ahead = np.arange(span.start, span.stop) + WINDOW_BLOCKS * BLOCK_ROWS
        if isinstance(self.source, (Lake, Lakes)) and self.source.is_remote and ahead[-1] < len(self):
            self.source.prefetch(self.plan.rows(span.epoch, ahead))

    def _transform(self, side: int | None) -> TrainTransform | EvalTransform:
        if side is None or isinstance(self.transform, EvalTransform):
            return self.transform
        return TrainTransform(side, self.transform.resize_ratio)

    def _usable(
        self, row: Row, epoch: int, key: np.uint64, draw: _Draw, transform: TrainTransform | EvalTransform
    ) -> Sample:
        failed: list[tuple[Row, ImageError]] = []
        for attempt in range(_MOST_REPLACEMENTS):
            try:
                replaced = tuple((bad, _reason(why)) for bad, why in failed)
                return Sample(_image(row, draw, transform), self._caption(row, draw), row, draw, replaced)
            except ImageError as error:
                failed.append((row, error))
            place = keys(np.array([key]), _DRAWS + attempt) % np.uint64(len(self))
            (row,) = self.source.read(self.plan.rows(epoch, place.astype(np.int64)).tolist())
        raise DataError(
            f"{self.source.path} has hardly a usable row",
            found=f"{_MOST_REPLACEMENTS} rows chosen at random, all without use; the last, row {failed[-1][0].row}: "
            f"{_reason(failed[-1][1])}",
            allowed="rows with an image that decodes and a caption",
        )

    def _caption(self, row: Row, draw: _Draw) -> str:
        if not row.captions:
            raise ImageError("the image has no caption")
        if not isinstance(self.transform, TrainTransform):
            return row.captions[0]
        return row.captions[int(draw[3] * len(row.captions))]


def _image(row: Row, draw: _Draw, transform: TrainTransform | EvalTransform) -> Tensor:
    if row.damage:
        raise ImageError("the image is damaged", found=row.damage)
    if isinstance(transform, TrainTransform):
        return transform(row.image, draw[:3])
    return transform(row.image)


def _reason(error: ImageError) -> str:
    return f"{error.what} ({error.found})" if error.found else error.what


class TrainSpans(DistributedSampler[Span]):
    """One rank's slices of an epoch's full global batches, from where the run stands.

    A `DistributedSampler` also so that Lightning sees the sharding done.

    Args:
        stream: what is sampled.
        batch_size: pairs per rank.
        rank: this process among `world_size`.
        world_size: number of processes that train together.
        place: asked when an iteration begins: its epoch, and the position within it to start from.
        batches_per_step: an epoch has a multiple of so many batches.
        side: asked for each global batch, by its epoch and position: the side of its images, or None for the stream's.
    """

    def __init__(
        self,
        stream: PairStream,
        batch_size: int,
        *,
        rank: int,
        world_size: int,
        place: Callable[[], tuple[int, int]],
        batches_per_step: int = 1,
        side: Callable[[int, int], int | None] | None = None,
    ) -> None:
        super().__init__(stream, num_replicas=world_size, rank=rank, shuffle=False, drop_last=True)
        self.batch_size = batch_size
        self.global_batch = batch_size * world_size
        self.a_step = self.global_batch * batches_per_step
        self.num_rows = len(stream)
        self.place = place
        self.side = side

    def __iter__(self) -> Iterator[Span]:
        epoch, first = self.place()
        whole_steps = first + (self.num_rows - first) // self.a_step * self.a_step
        for start in range(first, whole_steps, self.global_batch):
            own = start + self.rank * self.batch_size
            yield Span(epoch, own, own + self.batch_size, self.side(epoch, start) if self.side else None)

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.num_rows // self.a_step * self.a_step // self.global_batch


class EvalSpans(DistributedSampler[Span]):
    """One rank's share of every pair once, in as few batches as the size allows and as even as can be.

    All ranks have the same number of batches; their sizes differ by one at most.

    Args:
        stream: what is sampled.
        num_rows: how many of its first positions; at least one for each rank.
        batch_size: largest number of pairs per rank.
        rank: this process among `world_size`.
        world_size: number of processes that evaluate together.
    """

    def __init__(self, stream: PairStream, num_rows: int, batch_size: int, *, rank: int, world_size: int) -> None:
        super().__init__(stream, num_replicas=world_size, rank=rank, shuffle=False)
        self.num_rows = num_rows
        self.num_batches = -(-num_rows // (batch_size * world_size))

    def __iter__(self) -> Iterator[Span]:
        parts = self.num_batches * self.num_replicas
        for part in range(self.rank, parts, self.num_replicas):
            yield Span(0, self.num_rows * part // parts, self.num_rows * (part + 1) // parts)

    def __len__(self) -> int:
        return self.num_batches


class PairLoader(DataLoader[Batch]):
    """A `DataLoader` whose batches are made whole by its workers, and whose errors arrive as they were raised.

    Args:
        stream: makes the batches.
        spans: which ones.
        num_workers: processes to make them in, kept for all epochs; 0 for the calling process.

    Raises:
        ProcessError: while it is iterated: one of those processes was killed.
        DataError: likewise: the source cannot be read.
    """

    def __init__(self, stream: PairStream, spans: TrainSpans | EvalSpans, num_workers: int) -> None:
        super().__init__(
            _Guarded(stream),
            batch_size=None,
            sampler=spans,
            num_workers=num_workers,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_interrupts_to_the_trainer,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # torch answers the death of a worker with an exception wherever the program stands, in the middle of an
        # optimiser's step too, and what is saved then is torn. Without its handler it is noticed where the batch is
        # missed, between two steps, up to five seconds later.
        is_main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGCHLD) if is_main else None
        batches = super().__iter__()
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)
        yield from handed_over(batches)


class _Guarded(Dataset[Any]):
    """Errors as values: a data loader would turn one into its traceback's text on the way out of the worker."""

    def __init__(self, stream: PairStream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, span: Span) -> Batch | LakeclipError:
        try:
            return self.stream[span]
        except LakeclipError as error:
            return error


def _leave_interrupts_to_the_trainer(worker: int) -> None:
    # A terminal's Ctrl-C reaches every process; the trainer finishes its step and saves, and needs its workers to.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    return batch
