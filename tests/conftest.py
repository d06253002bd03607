"""Fixtures for many tests: drawn photos in folders and lakes, models that train in seconds; and options of pytest."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from lakeclip.config.schema import ModelConfig
from lakeclip.ingestion.run import fill_lake
from lakeclip.ingestion.sources.base import Sample, Samples
from lakeclip.ingestion.sources.synthetic import scenes

# A shell makes processes in the background ignore Ctrl-C, and the processes that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: how long an example takes depends on the other work of the machine.
# The same examples each time: a test that fails does so for everybody, and new examples are what tests/fuzz looks for.
settings.register_profile(
    "lakeclip",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("lakeclip")


#: Files whose tests share what takes seconds to make: a server, a pretrained model, a run to resume.
ONE_PROCESS_EACH = {
    "tests/contract/test_docs.py",
    "tests/integration/test_faults_data.py",
    "tests/integration/test_finetune.py",
    "tests/integration/test_remote.py",
    "tests/integration/test_resume.py",
    "tests/integration/test_resume_schedule.py",
}


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each file of ONE_PROCESS_EACH to one test process, largest first, and then single tests to any.

    xdist's `--dist loadgroup` with marks does the same up to pytest 8; pytest 9 no longer reads what it sets.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file in ONE_PROCESS_EACH else nodeid

    return Scheduler(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run files and their tests in random order")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the tests into the order of `--shuffle`; those of a file stay together, as they share what it sets up."""
    seed = config.getoption("shuffle")
    if seed is not None:
        generator = random.Random(seed)
        files = sorted({item.path for item in items})
        generator.shuffle(files)
        order = {path: number for number, path in enumerate(files)}
        items.sort(key=lambda item: (order[item.path], generator.random()))


#: The smallest model that reads CLIP's token ids: made in milliseconds.
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


def scene_samples(num: int, *, seed: int = 0) -> Iterator[Sample]:
    """Yield drawn scenes with an NSFW column, as a crawl of the web has it; one row in four is "UNSURE"."""
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
    for sample in scene_samples(48):
        (folder / "photos" / f"{sample.key}.jpg").write_bytes(sample.image)
        (folder / "words" / f"{sample.key}.txt").write_text("\n".join(sample.captions))
    return folder


@pytest.fixture(scope="session")
def pairs_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of 96 pairs with the columns `label` and `NSFW`; 180 of 240 are NSFW == 'UNLIKELY'."""
    path = tmp_path_factory.mktemp("lakes") / "pairs"
    fill_lake([Samples("scenes", scene_samples(240), 240)], str(path))
    return path
