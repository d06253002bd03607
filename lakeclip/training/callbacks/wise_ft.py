"""What a model knew before, and is not to forget: scored before, during and after, and the best of old and new found.

After training, the weights between those at the start and those at the end are tried (WiSE-FT: Wortsman et al. 2021,
arXiv 2109.01903, section 3): on the way, what was known is often regained before much of what is new is lost.
"""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.utils import parametrize

from lakeclip.checkpoints.file import write_torch_file
from lakeclip.checkpoints.folder import MIXED
from lakeclip.config.schema import KeepConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.order import draw_sample
from lakeclip.data.transforms import EvalTransform
from lakeclip.evaluation.encode import without_bars
from lakeclip.evaluation.forgetting import FILE_NAME, Forgetting, Mix
from lakeclip.evaluation.labels import Labels, parse_classes, read_labels
from lakeclip.evaluation.prompts import TemplateSet, find_templates
from lakeclip.evaluation.retrieval import retrieval_metrics
from lakeclip.evaluation.zeroshot import zero_shot
from lakeclip.lake.dataset import Lake, open_lake
from lakeclip.models.clip import CLIP, unit
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.training.ema import averaged
from lakeclip.training.module import ContrastiveModule
from lakeclip.training.recovery import lineage
from lakeclip.types import Tokenize

#: Shares of the new weights that are tried.
_SHARES = tuple(step / 10 for step in range(11))


@dataclass(frozen=True)
class KeptTest:
    """A zero-shot test of what is not to be forgotten."""

    source: Lake
    labels: Labels
    templates: TemplateSet
    tokenize: Tokenize
    transform: EvalTransform

    def score(self, model: CLIP | DualEncoder) -> float:
        """Share of the images whose nearest class is theirs."""
        with without_bars():
            return zero_shot(model, self.tokenize, self.transform, self.source, self.labels, self.templates).top1


def keeping_of(config: KeepConfig, datamodule: PairDataModule) -> Keeping:
    """The guard that a configuration asks for; its test is opened here.

    Raises:
        LakeclipError: the lake, its labels or the prompts cannot be had.
    """
    assert config.keep_lake is not None
    assert config.keep_label_column is not None
    source = open_lake(config.keep_lake)
    classes = parse_classes(config.keep_classes) if config.keep_classes else None
    labels = read_labels(source, config.keep_label_column, classes)
    labels = labels.at(draw_sample(labels.positions, config.keep_rows))
    size = datamodule.image_size
    return Keeping(
        KeptTest(source, labels, find_templates(config.keep_templates), datamodule.tokenize, EvalTransform(size))
    )


class Keeping(Callback):
    """Scores a `KeptTest` at the start, at each validation and at the end, and mixes the weights of both ends.

    It leaves forgetting.json in the run's folder, and the best mix as checkpoints/mixed.ckpt.
    """

    def __init__(self, test: KeptTest) -> None:
        self._test = test
        self._start: dict[str, Tensor] | None = None
        self._before = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The weights of the start: a run that goes on has to know them."""
        return {"start": self._start, "before": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The opposite of `state_dict`."""
        self._start, self._before = state_dict["start"], state_dict["before"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._start is None:
            model = _model(pl_module)
            self._start = {name: value.cpu() for name, value in plain(model).state_dict().items()}
            self._before = self._test.score(model)
            if trainer.is_global_zero:
                sys.stdout.write(f"what is to be kept: {self._before:.1%} before training ({self._test.source.path})\n")
                sys.stdout.flush()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Every process scores the same images, and so has the same number. By now the average is put back.
        with averaged(trainer, pl_module):
            pl_module.log("val/kept_top1", self._test.score(_model(pl_module)), rank_zero_only=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ContrastiveModule)
        assert self._start is not None
        if trainer.is_global_zero:
            found = self._mix(trainer, pl_module)
            folder = Path(trainer.default_root_dir)
            (folder / FILE_NAME).write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
            sys.stdout.write(f"{found}\n")
            sys.stdout.flush()
        trainer.strategy.barrier()

    def _mix(self, trainer: L.Trainer, module: ContrastiveModule) -> Forgetting:
        """Try the weights between start and end, and save the best."""
        assert self._start is not None
        model = plain(_model(module))
        end = {name: value.clone() for name, value in model.state_dict().items()}
        batches = _validation_batches(trainer)
        mixes = []
        for share in _SHARES:
            model.load_state_dict(between(self._start, end, share))
            mixes.append(Mix(share, _recall(model, batches), self._test.score(model)))
        found = Forgetting(str(self._test.source.path), self._before, tuple(mixes))
        content = {
            "state_dict": {
                f"model.{name}": value for name, value in between(self._start, end, found.best.share).items()
            },
            "lakeclip": lineage.of(module),
        }
        write_torch_file(content, Path(trainer.default_root_dir) / MIXED)
        return found


def plain(model: CLIP | DualEncoder) -> CLIP | DualEncoder:
    """A copy in evaluation mode, low-rank additions added to the weights."""
    copied = copy.deepcopy(model).requires_grad_(False).eval()
    for part in list(copied.modules()):
        for name in list(getattr(part, "parametrizations", {})):
            parametrize.remove_parametrizations(part, name, leave_parametrized=True)
    return copied


def between(start: dict[str, Tensor], end: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) · start + share · end of everything that is not a count."""
    return {
        name: start[name].to(last.device).lerp(last, share) if last.is_floating_point() else last
        for name, last in end.items()
    }


def _model(module: L.LightningModule) -> CLIP | DualEncoder:
    assert isinstance(module, ContrastiveModule)
    return module.model


def _validation_batches(trainer: L.Trainer) -> list[Any]:
    datamodule = getattr(trainer, "datamodule", None)
    assert isinstance(datamodule, PairDataModule)
    return list(datamodule.whole_validation())


@torch.no_grad()
def _recall(model: CLIP | DualEncoder, batches: list[Any]) -> float:
    """R@1 on the validation rows, the mean of both directions."""
    device = next(model.parameters()).device
    images = torch.cat([unit(model.encode_image(batch[0].to(device))) for batch in batches])
    texts = torch.cat([unit(model.encode_text(batch[1].to(device))) for batch in batches])
    result = retrieval_metrics(images.cpu(), texts.cpu(), torch.arange(len(images)))
    return (result.image_to_text.recall[1] + result.text_to_image.recall[1]) / 2
