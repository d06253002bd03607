"""What a step of a run was made of as one page, whole in itself: each picture and caption as the model had them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lakeclip.data.decode import EncodedImage
from lakeclip.data.replay import Replay
from lakeclip.data.stream import Sample
from lakeclip.data.transforms import TrainTransform
from lakeclip.evaluation.pages.gallery import Picture
from lakeclip.evaluation.pages.page import page_template, write_page
from lakeclip.lake.rows import RowSource
from lakeclip.lake.several import Lakes


class BatchAccount(NamedTuple):
    """Which step, and of what.

    Attributes:
        position: pairs of the epoch before it.
        num_pairs: in the step, over all processes.
    """

    checkpoint: str
    step: int
    epoch: int
    position: int
    num_pairs: int
    data: str
    version: str

    def __str__(self) -> str:
        where = f"epoch {self.epoch + 1}, from position {self.position:,}"
        return (
            f"step {self.step:,} of {self.checkpoint}: {self.num_pairs:,} pairs, {where}\n{self.data} ({self.version})"
        )


@dataclass(frozen=True)
class ShownSample:
    """One pair of a step.

    Attributes:
        batch, rank: which batch of the step, on which process.
        lake, row: what it was made from.
        width, height: of the image as stored.
        crop: the part of it that was kept, as left, top and side in its pixels.
        replaced: rows that stood here and could not be used, and why.
        pixels: (side, side, 3), as the model had them.
    """

    batch: int
    rank: int
    lake: str
    row: int
    caption: str
    width: int
    height: int
    crop: str
    replaced: tuple[tuple[int, str], ...]
    pixels: UInt8[np.ndarray, "side side 3"]

    def to_json(self) -> dict[str, Any]:
        """All but the pixels."""
        return {name: value for name, value in vars(self).items() if name != "pixels"}


def shown_samples(replay: Replay, step: int, most: int | None = None) -> list[ShownSample]:
    """The pairs of a step, made again by the code that the loader has.

    Args:
        most: the first so many; all by default.

    Raises:
        DataError: the data cannot be read.
    """
    return list(islice(_samples(replay, step), most))


def _samples(replay: Replay, step: int) -> Iterator[ShownSample]:
    source = replay.stream.source
    for batch, rank, span in replay.spans(step):
        for sample in replay.stream.samples(span):
            lake, row = _located(source, sample.row.row)
            image = EncodedImage(sample.row.image)
            yield ShownSample(
                batch,
                rank,
                lake,
                row,
                sample.caption,
                image.width,
                image.height,
                _crop(replay, sample, image),
                tuple((_located(source, bad.row)[1], why) for bad, why in sample.replaced),
                sample.pixels.permute(1, 2, 0).contiguous().numpy(),
            )


def _located(source: RowSource, row: int) -> tuple[str, int]:
    return source.locate(row) if isinstance(source, Lakes) else (source.path, row)


def _crop(replay: Replay, sample: Sample, image: EncodedImage) -> str:
    transform = replay.stream.transform
    if not isinstance(transform, TrainTransform):
        return "the middle"
    left, top, side = TrainTransform(sample.pixels.shape[-1], transform.resize_ratio).place(image, sample.draws[:3])
    return f"{side} × {side} at {left}, {top}"


def write_batch_page(path: Path, account: BatchAccount, samples: Sequence[ShownSample]) -> None:
    """Write the page. Everything that comes from data is escaped, and the page forbids scripts and the network.

    Raises:
        OutputError: the file cannot be written.
    """
    cards = [(one, _picture(one)) for one in samples]
    page = page_template("batch_page.html.jinja").render(account=account, cards=cards, version=version("lakeclip"))
    write_page(path, page)


def _picture(sample: ShownSample) -> Picture:
    """Pixel for pixel."""
    buffer = io.BytesIO()
    Image.fromarray(sample.pixels).save(buffer, "PNG", optimize=True)
    return Picture(buffer.getvalue(), "image/png", sample.caption)
