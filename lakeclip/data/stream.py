"""Build batches as a pure function of positions: samples, crops and captions.

A global batch is a range of consecutive positions. Each rank takes its slice of it, and any worker may build that
slice. So a batch holds the same pairs for any number of ranks and workers, and any batch can be rebuilt.
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

from lakeclip.data.counter_rng import keys, uniforms
from lakeclip.data.order import BLOCK_ROWS, WINDOW_BLOCKS
from lakeclip.data.plan import Plan
from lakeclip.data.positive_ids import compute_positive_ids
from lakeclip.data.quarantine import Quarantine
from lakeclip.data.transforms import EvalTransform, TrainTransform
from lakeclip.data.workers import WorkerSetup, raise_worker_errors, worker_context
from lakeclip.errors import DataError, ImageError, LakeclipError
from lakeclip.lake.rows import Row, RowSource
from lakeclip.text.tokenizer import Tokenizer, trim_padding
from lakeclip.types import Batch, Tokenize

# Random numbers per sample: three for its crop, one for its caption. Replacement rows use the next ones.
_NUM_DRAWS = 4
_Draws = Float64[np.ndarray, "4"]

_MAX_REPLACEMENTS = 100


class Span(NamedTuple):
    """Positions of an epoch from `start` up to but excluding `stop`.

    Attributes:
        image_size: side of the images in pixels; None for the stream's own.
    """

    epoch: int
    start: int
    stop: int
    image_size: int | None = None


class Sample(NamedTuple):
    """One training pair.

    Attributes:
        pixels: (3, image_size, image_size) uint8.
        caption: the chosen caption.
        row: the row that the pair was made from.
        draws: random numbers from [0, 1) that determine the crop and the caption.
        replaced: unusable rows that this one replaces, each with the reason.
    """

    pixels: Tensor
    caption: str
    row: Row
    draws: _Draws
    replaced: tuple[tuple[Row, str], ...] = ()


class PairStream(Dataset[Batch]):
    """Dataset of image–text pairs indexed by span: `stream[span]` is a batch. Picklable.

    A row is unusable if its image does not decode or it has no caption. It is logged once and replaced by another row,
    chosen by the position's key, so that every rank's batch is always full.

    Args:
        source: source of the rows.
        plan: mapping from positions to rows.
        transform: `TrainTransform` for a random crop and a random caption of the row; `EvalTransform` for the center
            crop and the first caption.
        tokenize: function from captions to token ids.
        same_by: properties that make samples positives of each other (`Batch.positive_ids`): `image`, `caption`, or the
            columns that the source reads with each row.

    Attributes:
        quarantine: log of the unusable rows.
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
        """Return the batch at a span of positions.

        Raises:
            DataError: a position found no usable row in 100 attempts, or the source cannot be read.
        """
        size = self._transform_for(span.image_size).image_size
        # Channels last: decoders return it, and convolutions prefer it.
        images = torch.empty((span.stop - span.start, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        captions: list[str] = []
        used: list[int] = []
        positive_ids: list[list[int]] = []
        for image, sample in zip(images, self.samples(span), strict=True):
            image.copy_(sample.pixels)
            captions.append(sample.caption)
            used.append(sample.row.row)
            for bad, reason in sample.replaced:
                self.quarantine.add(self.source, bad.row, reason)
            if self.same_by:
                positive_ids.append(compute_positive_ids(sample.row, sample.caption, self.same_by))
        texts = self.tokenize(captions)
        if isinstance(self.tokenize, Tokenizer):
            texts = trim_padding(texts)
        shared = torch.tensor(positive_ids, dtype=torch.int64) if self.same_by else None
        return Batch(images, texts, torch.tensor(used, dtype=torch.int64), shared)

    def samples(self, span: Span) -> Iterator[Sample]:
        """Yield the pairs of a batch one by one.

        Raises:
            DataError: as in `__getitem__`.
        """
        positions = np.arange(span.start, span.stop)
        rows = self.plan.rows(span.epoch, positions)
        self._prefetch(span)
        transform = self._transform_for(span.image_size)
        sample_keys = keys(self.plan.seed, span.epoch, positions)
        all_draws = uniforms(sample_keys, _NUM_DRAWS)
        for row, key, draws in zip(self.source.read(rows.tolist()), sample_keys, all_draws, strict=True):
            yield self._sample_or_replacement(row, span.epoch, key, draws, transform)

    def _prefetch(self, span: Span) -> None:
        """Begin to fetch the rows that are needed one window later, if rows come over a network.

        A batch has rows from nearly all blocks of its window, so a window's first batch requests most of the next one.
        """
        ahead = np.arange(span.start, span.stop) + WINDOW_BLOCKS * BLOCK_ROWS
        if self.source.is_remote and ahead[-1] < len(self):
            self.source.prefetch(self.plan.rows(span.epoch, ahead))

    def _transform_for(self, image_size: int | None) -> TrainTransform | EvalTransform:
        if image_size is None or isinstance(self.transform, EvalTransform):
            return self.transform
        return TrainTransform(image_size, self.transform.resize_ratio, self.transform.interpolation)

    def _sample_or_replacement(
        self, row: Row, epoch: int, key: np.uint64, draws: _Draws, transform: TrainTransform | EvalTransform
    ) -> Sample:
        failed: list[tuple[Row, ImageError]] = []
        for attempt in range(_MAX_REPLACEMENTS):
            try:
                replaced = tuple((bad, _reason(error)) for bad, error in failed)
                return Sample(_crop(row, draws, transform), self._caption(row, draws), row, draws, replaced)
            except ImageError as error:
                failed.append((row, error))
            position = keys(np.array([key]), _NUM_DRAWS + attempt) % np.uint64(len(self))
            (row,) = self.source.read(self.plan.rows(epoch, position.astype(np.int64)).tolist())
        raise DataError(
            f"{self.source.path} has hardly any usable rows",
            found=f"{_MAX_REPLACEMENTS} rows chosen at random, none of them usable; the last, row {failed[-1][0].row}: "
            f"{_reason(failed[-1][1])}",
            allowed="rows with an image that decodes and a caption",
        )

    def _caption(self, row: Row, draws: _Draws) -> str:
        if not row.captions:
            raise ImageError("the image has no caption")
        if not isinstance(self.transform, TrainTransform):
            return row.captions[0]
        return row.captions[int(draws[3] * len(row.captions))]


def _crop(row: Row, draws: _Draws, transform: TrainTransform | EvalTransform) -> Tensor:
    if row.damage:
        raise ImageError("the image is damaged", found=row.damage)
    if isinstance(transform, TrainTransform):
        return transform(row.image, draws[:3])
    return transform(row.image)


def _reason(error: ImageError) -> str:
    return f"{error.what} ({error.found})" if error.found else error.what


class TrainSampler(DistributedSampler[Span]):
    """Sampler of one rank's slices of the full global batches of an epoch, from the run's position on.

    It is a `DistributedSampler` so that Lightning does not shard the data again.

    Args:
        stream: the stream to sample.
        batch_size: pairs per rank.
        rank: rank of this process.
        world_size: number of processes that train together.
        start_position: called when an iteration begins; returns its epoch and the position in it to start from.
        batches_per_step: an epoch has a multiple of this number of batches.
        image_size_at: called with the epoch and position of each global batch; returns the image size of its span.
    """

    def __init__(
        self,
        stream: PairStream,
        batch_size: int,
        *,
        rank: int,
        world_size: int,
        start_position: Callable[[], tuple[int, int]],
        batches_per_step: int = 1,
        image_size_at: Callable[[int, int], int | None] | None = None,
    ) -> None:
        super().__init__(stream, num_replicas=world_size, rank=rank, shuffle=False, drop_last=True)
        self.batch_size = batch_size
        self.global_batch = batch_size * world_size
        self.samples_per_step = self.global_batch * batches_per_step
        self.num_rows = len(stream)
        self.start_position = start_position
        self.image_size_at = image_size_at

    def __iter__(self) -> Iterator[Span]:
        epoch, first = self.start_position()
        end = first + (self.num_rows - first) // self.samples_per_step * self.samples_per_step
        for batch_start in range(first, end, self.global_batch):
            start = batch_start + self.rank * self.batch_size
            image_size = self.image_size_at(epoch, batch_start) if self.image_size_at else None
            yield Span(epoch, start, start + self.batch_size, image_size)

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch."""
        return self.num_rows // self.samples_per_step * self.samples_per_step // self.global_batch


class EvalSampler(DistributedSampler[Span]):
    """Sampler of one rank's share of the pairs, each once, in as few batches as the batch size allows.

    All ranks have the same number of batches, and their sizes differ by at most one.

    Args:
        stream: the stream to sample.
        num_rows: number of its first positions to visit; at least one for each rank.
        batch_size: largest number of pairs per rank.
        rank: rank of this process.
        world_size: number of processes that evaluate together.
    """

    def __init__(self, stream: PairStream, num_rows: int, batch_size: int, *, rank: int, world_size: int) -> None:
        super().__init__(stream, num_replicas=world_size, rank=rank, shuffle=False)
        self.num_rows = num_rows
        self.num_batches = -(-num_rows // (batch_size * world_size))

    def __iter__(self) -> Iterator[Span]:
        num_spans = self.num_batches * self.num_replicas
        for index in range(self.rank, num_spans, self.num_replicas):
            yield Span(0, self.num_rows * index // num_spans, self.num_rows * (index + 1) // num_spans)

    def __len__(self) -> int:
        return self.num_batches


class PairLoader(DataLoader[Batch]):
    """`DataLoader` whose workers build whole batches and whose errors keep their type.

    Args:
        stream: dataset that builds the batches.
        sampler: sampler of the spans.
        num_workers: worker processes, kept for all epochs; 0 for the calling process.

    Raises:
        ProcessError: a worker was killed (during iteration).
        DataError: the source cannot be read (during iteration).
    """

    def __init__(self, stream: PairStream, sampler: TrainSampler | EvalSampler, num_workers: int) -> None:
        super().__init__(
            _ErrorsAsValues(stream),
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            collate_fn=_identity,
            worker_init_fn=WorkerSetup(),
            multiprocessing_context=worker_context() if num_workers else None,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # torch's SIGCHLD handler raises wherever the program happens to be when a worker dies. That may be in the
        # middle of an optimiser step, and a checkpoint saved then would be inconsistent. Without the handler, the death
        # is noticed up to five seconds later, when the next batch is missing, which is between two steps.
        is_main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGCHLD) if is_main else None
        batches = super().__iter__()
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)
        yield from raise_worker_errors(batches)


class _ErrorsAsValues(Dataset[Any]):
    """Dataset that returns errors instead of raising them: a DataLoader would reduce an error to its traceback text."""

    def __init__(self, stream: PairStream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, span: Span) -> Batch | LakeclipError:
        try:
            return self.stream[span]
        except LakeclipError as error:
            return error


def _identity(batch: Any) -> Any:
    return batch
