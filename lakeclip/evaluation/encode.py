"""Encoding of images and texts to unit-length features, in batches, on the model's device."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lakeclip.data.transforms import EvalTransform
from lakeclip.data.workers import WorkerSetup, raise_worker_errors, worker_context
from lakeclip.errors import ImageError, LakeclipError, ModelError
from lakeclip.lake.rows import Row, RowSource
from lakeclip.models.clip import CLIP, l2_normalize
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.text.tokenizer import Tokenizer, trim_padding
from lakeclip.types import Tokenize


class Undecodable(NamedTuple):
    """An image that could not be decoded: its row in the lake, and the reason."""

    row: int
    reason: str


@dataclass(frozen=True)
class EncodedImages:
    """Features of the images of a source that could be decoded.

    Attributes:
        features: (images, embed) float32 of unit length, on the model's device.
        positions: index of each image in the source.
        captions: captions of each image.
        undecodable: skipped images.
    """

    features: Float[Tensor, "images embed"]
    positions: list[int]
    captions: list[tuple[str, ...]]
    undecodable: list[Undecodable]


def encode_images(
    model: CLIP | DualEncoder,
    source: RowSource,
    transform: EvalTransform,
    *,
    positions: Sequence[int] | None = None,
    with_captions: bool = True,
    batch_size: int = 128,
    num_workers: int = 0,
) -> EncodedImages:
    """Encode the images of a source, in the order of the positions.

    Args:
        transform: an encoded image to (3, size, size) uint8.
        positions: indices of the source's rows; all by default.
        with_captions: False for a lake that need not have captions.
        num_workers: processes that read and decode; 0 decodes in this process, with one thread per core.

    Raises:
        LakeclipError: the source cannot be read, none of its images can be decoded, or the features are not finite.
    """
    rows = list(range(len(source)) if positions is None else positions)
    groups = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    batches = _Batches(source, transform, groups, with_captions=with_captions)
    features: list[Tensor] = []
    decoded: list[int] = []
    captions: list[tuple[str, ...]] = []
    undecodable: list[Undecodable] = []
    device = _device(model)
    with _evaluating(model), torch.inference_mode(), progress_bar("images", len(rows)) as advance:
        for batch in _decoded(batches, num_workers, ahead=0 if device.type == "cpu" else 1):
            if batch.positions:
                features.append(l2_normalize(model.encode_image(batch.images.to(device))))
            decoded += batch.positions
            captions += batch.captions
            undecodable += batch.undecodable
            advance(len(batch.positions) + len(batch.undecodable))
    if not features:
        first = f"row {undecodable[0].row}: {undecodable[0].reason}" if undecodable else "no rows"
        raise ImageError(f"none of the {len(rows)} images of {source.path} can be decoded", found=first)
    return EncodedImages(_finite(torch.cat(features), "images"), decoded, captions, undecodable)


def encode_texts(
    model: CLIP | DualEncoder, tokenize: Tokenize, texts: Sequence[str], *, batch_size: int = 256
) -> Float[Tensor, "texts embed"]:
    """Encode texts in order: (texts, embed) float32 of unit length, on the model's device.

    Equal texts are encoded once, and texts of similar length together, so that little padding is computed.

    Args:
        tokenize: texts to the model's input.

    Raises:
        ModelError: the features are not finite.
    """
    unique = sorted(dict.fromkeys(texts), key=len)
    index_of = {text: index for index, text in enumerate(unique)}
    features: list[Tensor] = []
    device = _device(model)
    with _evaluating(model), torch.inference_mode(), progress_bar("texts", len(unique)) as advance:
        for first in range(0, len(unique), batch_size):
            batch = unique[first : first + batch_size]
            tokens = tokenize(batch)
            # Other tokenizers may have their end of text, or padding that counts, beyond the highest id.
            tokens = trim_padding(tokens) if isinstance(tokenize, Tokenizer) else tokens
            features.append(l2_normalize(model.encode_text(tokens.to(device))))
            advance(len(batch))
    return _finite(torch.cat(features)[torch.tensor([index_of[text] for text in texts], device=device)], "texts")


class _Batch(NamedTuple):
    images: Tensor
    positions: list[int]
    captions: list[tuple[str, ...]]
    undecodable: list[Undecodable]


class _Batches(Dataset[Any]):
    """Dataset of decoded batches. A `LakeclipError` is returned as a value, as the loader would change its type."""

    def __init__(
        self, source: RowSource, transform: EvalTransform, groups: list[list[int]], *, with_captions: bool
    ) -> None:
        self.source = source
        self.with_captions = with_captions
        self.transform = transform
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> _Batch | LakeclipError:
        try:
            return self.batch(index)
        except LakeclipError as error:
            return error

    def batch(self, index: int, threads: Executor | None = None) -> _Batch:
        """Read a batch, and decode its images in these threads."""
        rows = self.source.read(self.groups[index], with_captions=self.with_captions)
        results = list((map if threads is None else threads.map)(self._decode, rows))
        squares = [result for result in results if isinstance(result, Tensor)]
        side = self.transform.image_size
        # Channels last, the layout of decoders and the faster one for convolutions.
        images = torch.empty((len(squares), side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        for image, square in zip(images, squares, strict=True):
            image.copy_(square)
        batch = _Batch(images, [], [], [])
        for position, row, result in zip(self.groups[index], rows, results, strict=True):
            if isinstance(result, ImageError):
                batch.undecodable.append(Undecodable(row.row, result.found or result.what))
            else:
                batch.positions.append(position)
                batch.captions.append(row.captions)
        return batch

    def _decode(self, row: Row) -> Tensor | ImageError:
        try:
            return self.transform(row.image)
        except ImageError as error:
            return error


def _decoded(batches: _Batches, num_workers: int, *, ahead: int) -> Iterator[_Batch]:
    """Yield all batches in order, decoded by worker processes or by threads.

    Args:
        ahead: batches that threads decode while the caller computes. Use 0 for a model on the CPU, which uses all cores
            itself and would wait for the decoding threads.
    """
    if num_workers:
        loader: DataLoader[Any] = DataLoader(
            batches,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=_identity,
            worker_init_fn=WorkerSetup(),
            multiprocessing_context=worker_context(),
        )
        yield from raise_worker_errors(iter(loader))
        return
    # Decoders release the GIL. The model's number of threads also respects OMP_NUM_THREADS.
    with ThreadPoolExecutor(torch.get_num_threads()) as threads, ThreadPoolExecutor(1) as maker:
        pending: deque[Future[_Batch]] = deque()
        for index in range(len(batches)):
            pending.append(maker.submit(batches.batch, index, threads))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _identity(batch: Any) -> Any:
    return batch


#: False inside `without_progress_bars`.
_has_bars: ContextVar[bool] = ContextVar("has_bars", default=True)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Disable progress bars in this context, for an evaluation inside a run that shows its own bar."""
    token = _has_bars.set(False)
    try:
        yield
    finally:
        _has_bars.reset(token)


@contextmanager
def progress_bar(unit: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error if it is a terminal; yield a function that advances the bar."""
    columns = (
        TextColumn(f"[bold]{unit}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    is_shown = sys.stderr.isatty() and _has_bars.get()
    with Progress(*columns, console=Console(stderr=True), disable=not is_shown, transient=True) as bar:
        task = bar.add_task(unit, total=total, rate="")

        def advance(count: int) -> None:
            bar.update(task, advance=count)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:,.0f} {unit}/s" if speed else "")

        yield advance


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Use evaluation mode in this context, and restore each submodule's mode: a run may have frozen some of them."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _finite(features: Tensor, of_what: str) -> Tensor:
    if bad := int((~features.isfinite().all(dim=1)).sum()):
        raise ModelError(
            f"the model's features are not finite for {bad} of {len(features)} {of_what}",
            next_step="an earlier checkpoint, and a lower learning rate: training has diverged",
        )
    # Of inference mode only the speed is wanted: callers may go on computing with these.
    return features.clone()
