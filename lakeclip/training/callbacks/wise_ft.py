"""WiSE-FT: a zero-shot test of the pretrained abilities, and interpolation of the weights after fine-tuning.

After training, interpolations between the initial and the final weights are scored (Wortsman et al. 2021, arXiv
2109.01903, section 3): they often regain the pretrained abilities before they lose much of the new ones.
"""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import dataclass, replace
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
from lakeclip.data.order import sample_positions
from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import InputWarning
from lakeclip.evaluation.classifier import check_prompts
from lakeclip.evaluation.encode import without_progress_bars
from lakeclip.evaluation.forgetting import FILE_NAME, Forgetting, InterpolationPoint
from lakeclip.evaluation.labels import Labels, parse_classes, read_labels
from lakeclip.evaluation.prompts import TemplateSet, find_templates
from lakeclip.evaluation.retrieval import retrieval_metrics
from lakeclip.evaluation.zeroshot import zero_shot
from lakeclip.lake.dataset import Lake, open_lake
from lakeclip.models.clip import CLIP, l2_normalize
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.training.callbacks.ema import averaged_weights
from lakeclip.training.module import ContrastiveModule
from lakeclip.types import Tokenize

#: Shares of the final weights that are scored.
_SHARES = tuple(step / 10 for step in range(11))


@dataclass(frozen=True)
class RetentionTest:
    """Zero-shot classification test that fine-tuning should not make worse."""

    source: Lake
    labels: Labels
    templates: TemplateSet
    tokenize: Tokenize
    transform: EvalTransform

    def score(self, model: CLIP | DualEncoder) -> float:
        """Return the zero-shot top-1 accuracy, 0…1."""
        with without_progress_bars():
            return zero_shot(model, self.tokenize, self.transform, self.source, self.labels, self.templates).top1


def build_wise_ft(config: KeepConfig, datamodule: PairDataModule) -> WiseFT:
    """Build the callback from a configuration, and open its test.

    Raises:
        LakeclipError: the lake, its labels or the prompts cannot be read.
    """
    assert config.keep_lake is not None
    assert config.keep_label_column is not None
    source = open_lake(config.keep_lake)
    classes = parse_classes(config.keep_classes) if config.keep_classes else None
    labels = read_labels(source, config.keep_label_column, classes)
    labels = labels.select_rows(sample_positions(labels.positions, config.keep_rows))
    templates = find_templates(config.keep_templates)
    equal_prompts = check_prompts(datamodule.tokenize, labels.classes, templates.templates)
    labels = replace(labels, warnings=(*labels.warnings, *equal_prompts))
    transform = datamodule.eval_transform
    return WiseFT(RetentionTest(source, labels, templates, datamodule.tokenize, transform))


class WiseFT(Callback):
    """Callback that scores a `RetentionTest` before, during and after training, and interpolates the weights.

    It writes the scores to forgetting.json in the run's folder, and the best interpolation to checkpoints/mixed.ckpt.
    """

    def __init__(self, test: RetentionTest) -> None:
        self._test = test
        self._initial_weights: dict[str, Tensor] | None = None
        self._initial_score = 0.0

    @property
    def warnings(self) -> tuple[InputWarning, ...]:
        """Warnings about the labels of the test and their prompts."""
        return self._test.labels.warnings

    @property
    def state_key(self) -> str:
        """Key of the callback's state in a checkpoint: the callback's former name, so that older runs resume."""
        return "Keeping"

    def state_dict(self) -> dict[str, Any]:
        """Return the weights and the score before training, which a resumed run needs."""
        return {"start": self._initial_weights, "before": self._initial_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._initial_weights, self._initial_score = state_dict["start"], state_dict["before"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._initial_weights is None:
            model = _model(pl_module)
            self._initial_weights = {name: value.cpu() for name, value in merged_copy(model).state_dict().items()}
            self._initial_score = self._test.score(model)
            if trainer.is_global_zero:
                score = f"{self._initial_score:.1%} before training"
                sys.stdout.write(f"zero-shot top-1 to be kept: {score} ({self._test.source.path})\n")
                sys.stdout.flush()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Every process scores the same images and gets the same result. Validation has swapped the average out by now.
        with averaged_weights(trainer, pl_module):
            pl_module.log("val/kept_top1", self._test.score(_model(pl_module)), rank_zero_only=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ContrastiveModule)
        if trainer.is_global_zero:
            forgetting = self._interpolate(trainer, pl_module)
            folder = Path(trainer.default_root_dir)
            (folder / FILE_NAME).write_text(json.dumps(forgetting.to_json(), indent=1) + "\n", encoding="utf-8")
            sys.stdout.write(f"{forgetting}\n")
            sys.stdout.flush()
        trainer.strategy.barrier()

    def _interpolate(self, trainer: L.Trainer, module: ContrastiveModule) -> Forgetting:
        """Score interpolations of the initial and the final weights, and save the best one."""
        assert self._initial_weights is not None
        model = merged_copy(_model(module))
        final_weights = {name: value.clone() for name, value in model.state_dict().items()}
        batches = _validation_batches(trainer)
        points = []
        for share in _SHARES:
            model.load_state_dict(interpolate_weights(self._initial_weights, final_weights, share))
            points.append(InterpolationPoint(share, _recall(model, batches), self._test.score(model)))
        forgetting = Forgetting(str(self._test.source.path), self._initial_score, tuple(points))
        best_weights = interpolate_weights(self._initial_weights, final_weights, forgetting.best.share)
        content = {
            "state_dict": {f"model.{name}": value for name, value in best_weights.items()},
            "lakeclip": module.lineage(),
        }
        write_torch_file(content, Path(trainer.default_root_dir) / MIXED)
        return forgetting


def merged_copy(model: CLIP | DualEncoder) -> CLIP | DualEncoder:
    """Return a copy in evaluation mode, with LoRA merged into the weights."""
    merged = copy.deepcopy(model).requires_grad_(False).eval()
    for part in list(merged.modules()):
        for name in list(getattr(part, "parametrizations", {})):
            parametrize.remove_parametrizations(part, name, leave_parametrized=True)
    return merged


def interpolate_weights(start: dict[str, Tensor], end: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return (1 - share) · start + share · end of all floating-point tensors; integer counters are those of `end`."""
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
    return list(datamodule.full_val_dataloader())


@torch.no_grad()
def _recall(model: CLIP | DualEncoder, batches: list[Any]) -> float:
    """Return R@1 on the validation rows, the mean of both directions."""
    device = next(model.parameters()).device
    images = torch.cat([l2_normalize(model.encode_image(batch[0].to(device))) for batch in batches])
    texts = torch.cat([l2_normalize(model.encode_text(batch[1].to(device))) for batch in batches])
    result = retrieval_metrics(images.cpu(), texts.cpu(), torch.arange(len(images)))
    return (result.image_to_text.recall[1] + result.text_to_image.recall[1]) / 2
