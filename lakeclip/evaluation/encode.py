"""Images and texts to unit-length features, in batches, on the model's device."""

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
from lakeclip.data.workers import handed_over
from lakeclip.errors import ImageError, LakeclipError, ModelError
from lakeclip.lake.dataset import Lake
from lakeclip.lake.rows import Row, RowSource
from lakeclip.models.clip import CLIP, unit
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.text.tokenizer import trim
from lakeclip.types import Tokenize


class Undecodable(NamedTuple):
    """An image that could not be scored: its row in the lake, and why."""

    row: int
    reason: str


@dataclass(frozen=True)
class EncodedImages:
    """The images of a source that could be decoded.

    Attributes:
        features: (images, embed) float32 of unit length, on the model's device.
        positions: index of each in the source.
        captions: of each.
        undecodable: what is left out, to be reported.
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
    """Encode the images of a source, in its order.

    Args:
        transform: an encoded image to (3, size, size) uint8.
        positions: which of the source's rows; all by default.
        with_captions: False for a lake that may have none.
        num_workers: processes that read and decode; 0 to do it here, in a thread for each core.

    Raises:
        LakeclipError: the source cannot be read, none of its images can be decoded, or the features are not finite.
    """
    chosen = list(range(len(source)) if positions is None else positions)
    groups = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
    batches = _Batches(source, transform, groups, with_captions=with_captions)
    features: list[Tensor] = []
    kept: list[int] = []
    captions: list[tuple[str, ...]] = []
    undecodable: list[Undecodable] = []
    device = _device(model)
    with _evaluating(model), torch.inference_mode(), progress("images", len(chosen)) as advance:
        for batch in _decoded(batches, num_workers, ahead=0 if device.type == "cpu" else 1):
            if batch.positions:
                features.append(unit(model.encode_image(batch.images.to(device))))
            kept += batch.positions
            captions += batch.captions
            undecodable += batch.undecodable
            advance(len(batch.positions) + len(batch.undecodable))
    if not features:
        first = f"row {undecodable[0].row}: {undecodable[0].reason}" if undecodable else "no rows"
        raise ImageError(f"none of the {len(chosen)} images of {source.path} can be decoded", found=first)
    return EncodedImages(_finite(torch.cat(features), "images"), kept, captions, undecodable)


def encode_texts(
    model: CLIP | DualEncoder, tokenize: Tokenize, texts: Sequence[str], *, batch_size: int = 256
) -> Float[Tensor, "texts embed"]:
    """Encode texts, in their order: (texts, embed) float32 of unit length, on the model's device.

    Equal texts are encoded once, and those of like length together, so that little padding is computed.

    Args:
        tokenize: texts → what the model takes.

    Raises:
        ModelError: the features are not finite.
    """
    unique = sorted(dict.fromkeys(texts), key=len)
    number = {text: i for i, text in enumerate(unique)}
    features: list[Tensor] = []
    device = _device(model)
    with _evaluating(model), torch.inference_mode(), progress("texts", len(unique)) as advance:
        for first in range(0, len(unique), batch_size):
            part = unique[first : first + batch_size]
            tokens = tokenize(part)
            tokens = trim(tokens) if isinstance(tokens, Tensor) else tokens
            features.append(unit(model.encode_text(tokens.to(device))))
            advance(len(part))
    return _finite(torch.cat(features)[torch.tensor([number[text] for text in texts], device=device)], "texts")


class _Batch(NamedTuple):
    images: Tensor
    positions: list[int]
    captions: list[tuple[str, ...]]
    undecodable: list[Undecodable]


class _Batches(Dataset[Any]):
    """Decoded batches by their number. A user's error is handed over as a value: the loader would garble it."""

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
        """A batch, its images decoded by these threads."""
        rows = self._read(self.groups[index])
        tried = list((map if threads is None else threads.map)(self._decode, rows))
        squares = [square for square in tried if isinstance(square, Tensor)]
        side = self.transform.image_size
        # Channels last, as a decoder gives them and as convolutions want them.
        images = torch.empty((len(squares), side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        for image, square in zip(images, squares, strict=True):
            image.copy_(square)
        batch = _Batch(images, [], [], [])
        for position, row, found in zip(self.groups[index], rows, tried, strict=True):
            if isinstance(found, ImageError):
                batch.undecodable.append(Undecodable(row.row, found.found or found.what))
            else:
                batch.positions.append(position)
                batch.captions.append(row.captions)
        return batch

    def _decode(self, row: Row) -> Tensor | ImageError:
        try:
            return self.transform(row.image)
        except ImageError as error:
            return error

    def _read(self, positions: list[int]) -> list[Row]:
        if self.with_captions or not isinstance(self.source, Lake):
            return self.source.read(positions)
        rows = self.source.base_rows(positions).tolist()
        return [Row(row, image, ()) for row, image in zip(rows, self.source.images(positions), strict=True)]


def _decoded(batches: _Batches, num_workers: int, *, ahead: int) -> Iterator[_Batch]:
    """All batches in order, made by worker processes or by threads.

    Args:
        ahead: how many threads make while the caller computes. None where that is on the CPU: the model has all cores
            then, and each step of it would wait for the thread whose core decodes.
    """
    if num_workers:
        # The lake's reader has threads, and a fork while one of them runs crashes.
        loader: DataLoader[Any] = DataLoader(
            batches, batch_size=None, num_workers=num_workers, collate_fn=_as_it_is, multiprocessing_context="spawn"
        )
        yield from handed_over(iter(loader))
        return
    # Decoders let other threads run. As many as the model has: OMP_NUM_THREADS is heeded by both.
    with ThreadPoolExecutor(torch.get_num_threads()) as threads, ThreadPoolExecutor(1) as maker:
        coming: deque[Future[_Batch]] = deque()
        for index in range(len(batches)):
            coming.append(maker.submit(batches.batch, index, threads))
            if len(coming) > ahead:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _as_it_is(batch: Any) -> Any:
    return batch


#: Whether bars are drawn: not over another's.
_has_bars: ContextVar[bool] = ContextVar("has_bars", default=True)


@contextmanager
def without_bars() -> Iterator[None]:
    """No bars in here: for scores within a run, which has one of its own."""
    token = _has_bars.set(False)
    try:
        yield
    finally:
        _has_bars.reset(token)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with the rate and the time left on standard error, where that is a terminal; yields what moves it."""
    columns = (
        TextColumn(f"[bold]{what}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    is_shown = sys.stderr.isatty() and _has_bars.get()
    with Progress(*columns, console=Console(stderr=True), disable=not is_shown, transient=True) as bar:
        task = bar.add_task(what, total=total, rate="")

        def advance(count: int) -> None:
            bar.update(task, advance=count)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:,.0f} {what}/s" if speed else "")

        yield advance


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and each part back to what it was: a run may score itself while it trains, some of it locked."""
    training = {part: part.training for part in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for part, was in training.items():
            part.training = was


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
