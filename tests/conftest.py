"""Small real things that many tests need: drawn photos in folders and lakes, and models that train in seconds."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from lakeclip.config.schema import ModelConfig
from lakeclip.lake.ingest import fill_lake
from lakeclip.lake.sources.base import Sample, Samples
from lakeclip.lake.sources.scenes import scenes

# A shell starts what is in the background deaf to Ctrl-C, and so is every process that a test starts to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more of the machine's other work than of ours.
settings.register_profile("lakeclip", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lakeclip")

#: The smallest model that reads CLIP's token ids: made in milliseconds, and good for nothing else.
TINY = ModelConfig(
    embed_dim=16,
    image_resolution=32,
    vision_layers=1,
    vision_width=64,
    vision_patch_size=16,
    context_length=24,
    vocab_size=49408,
    transformer_width=8,
    transformer_heads=1,
    transformer_layers=1,
)

TINY_MODELS = """
tiny-vit:
  embed_dim: 32
  image_resolution: 32
  vision_layers: 2
  vision_width: 64
  vision_patch_size: 8
  context_length: 77
  vocab_size: 49408
  transformer_width: 64
  transformer_heads: 1
  transformer_layers: 2

tiny-resnet:
  embed_dim: 32
  image_resolution: 32
  vision_layers: [1, 1, 1, 1]
  vision_width: 16
  vision_patch_size: null
  context_length: 77
  vocab_size: 49408
  transformer_width: 64
  transformer_heads: 1
  transformer_layers: 2
"""


def drawn(num: int, *, seed: int = 0) -> Iterator[Sample]:
    """Scenes as a crawl of the web would have them: with an NSFW column, in which one row in four is doubtful."""
    for index, sample in enumerate(scenes("train", num, seed)):
        yield sample._replace(metadata={**sample.metadata, "NSFW": "UNSURE" if index % 4 == 3 else "UNLIKELY"})


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A --model-config file with `tiny-vit` and `tiny-resnet`."""
    path = tmp_path_factory.mktemp("models") / "tiny.yaml"
    path.write_text(TINY_MODELS)
    return path


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 photos and their captions, in two folders below one."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "photos").mkdir()
    (folder / "words").mkdir()
    for sample in drawn(48):
        (folder / "photos" / f"{sample.key}.jpg").write_bytes(sample.image)
        (folder / "words" / f"{sample.key}.txt").write_text("\n".join(sample.captions))
    return folder


@pytest.fixture(scope="session")
def pairs_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of 96 pairs with the columns `label` and `NSFW`; 180 of 240 are NSFW == 'UNLIKELY'."""
    path = tmp_path_factory.mktemp("lakes") / "pairs"
    fill_lake([Samples("scenes", drawn(240), 240)], str(path))
    return path
