"""Fixtures of the evaluation tests: a small model, and drawn scenes in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lakeclip.ingestion.sources.base import Sample
from lakeclip.ingestion.sources.synthetic import Split, scenes
from lakeclip.lake.rows import Row, RowSource
from lakeclip.models.clip import CLIP
from tests.conftest import TINY


def tiny_clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(TINY).eval()


class MemorySource(RowSource):
    """A `RowSource` of samples in memory; row numbers begin at 100, as a query's do."""

    path = "memory"
    version = "1"

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = list(samples)
        names = self.samples[0].metadata
        self.columns = {"image": "bytes", "captions": "text", **dict.fromkeys(names, "text")}

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, indices: Sequence[int], *, with_captions: bool = True) -> list[Row]:
        return [Row(100 + int(i), self.samples[int(i)].image, self.samples[int(i)].captions) for i in indices]

    def column(self, name: str) -> list[object]:
        return [sample.metadata.get(name) for sample in self.samples]

    def __getitem__(self, index: int) -> dict[str, object]:
        return dict(self.samples[index].metadata)


def scenery(num: int = 12, split: Split = "unseen") -> MemorySource:
    return MemorySource(list(scenes(split, num)))
