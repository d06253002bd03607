"""Self-contained HTML page on one training step: each image and caption as the model received them."""

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
from lakeclip.report.gallery import Picture
from lakeclip.report.page import page_template, write_page


class BatchSummary(NamedTuple):
    """Summary of a training step's global batch.

    Attributes:
        position: number of pairs of the epoch before the step.
        num_pairs: pairs in the step, over all processes.
    """

    checkpoint: str
    step: int
    epoch: int
    position: int
    num_pairs: int
    data: str
    version: str

    def __str__(self) -> str:
        pairs = f"{self.num_pairs:,} pairs, epoch {self.epoch + 1}, from position {self.position:,}"
        return f"step {self.step:,} of {self.checkpoint}: {pairs}\n{self.data} ({self.version})"


@dataclass(frozen=True)
class ShownSample:
    """One pair of a training step.

    Attributes:
        batch, rank: index of the batch within the step, and of the process.
        lake, row: source of the pair.
        width, height: size of the stored image.
        crop: the crop box, as side, left and top in pixels of the stored image.
        replaced: unusable rows that this one replaced, with reasons.
        pixels: (side, side, 3), as the model received them.
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
        """Return plain values, without the pixels."""
        return {name: value for name, value in vars(self).items() if name != "pixels"}


def shown_samples(replay: Replay, step: int, most: int | None = None) -> list[ShownSample]:
    """Recompute the pairs of a step with the code of the data loader.

    Args:
        most: number of pairs, from the first; all by default.

    Raises:
        DataError: the data cannot be read.
    """
    return list(islice(_samples(replay, step), most))


def _samples(replay: Replay, step: int) -> Iterator[ShownSample]:
    source = replay.stream.source
    for batch, rank, span in replay.spans(step):
        for sample in replay.stream.samples(span):
            lake, row = source.locate(sample.row.row)
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
                tuple((source.locate(bad.row)[1], why) for bad, why in sample.replaced),
                sample.pixels.permute(1, 2, 0).contiguous().numpy(),
            )


def _crop(replay: Replay, sample: Sample, image: EncodedImage) -> str:
    transform = replay.stream.transform
    if not isinstance(transform, TrainTransform):
        return "centre crop"
    left, top, side = TrainTransform(sample.pixels.shape[-1], transform.resize_ratio).crop_box(image, sample.draws[:3])
    return f"{side} × {side} at {left}, {top}"


def write_batch_page(path: Path, batch: BatchSummary, samples: Sequence[ShownSample]) -> None:
    """Write the page. All text from data is escaped, and the page forbids scripts and network access.

    Raises:
        OutputError: the file cannot be written.
    """
    cards = [(sample, _picture(sample)) for sample in samples]
    page = page_template("batch_page.html.jinja").render(batch=batch, cards=cards, version=version("lakeclip"))
    write_page(path, page)


def _picture(sample: ShownSample) -> Picture:
    """Encode the pixels losslessly."""
    buffer = io.BytesIO()
    Image.fromarray(sample.pixels).save(buffer, "PNG", optimize=True)
    return Picture(buffer.getvalue(), "image/png", sample.caption)
