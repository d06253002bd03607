"""Several runs side by side: what each recorded, how they were set, and how they do on the same data."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from lakeclip.data.transforms import EvalTransform
from lakeclip.evaluation.classifier import classifier_weights, classify
from lakeclip.evaluation.labelled import encode_labelled
from lakeclip.evaluation.labels import Labels
from lakeclip.evaluation.pages.history import Curves
from lakeclip.evaluation.prompts import TemplateSet
from lakeclip.evaluation.retrieval import RetrievalResult
from lakeclip.evaluation.significance import Difference, adjust, paired_difference
from lakeclip.evaluation.zeroshot import ZeroShotResult, count_answers
from lakeclip.lake.rows import RowSource
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.types import Tokenize

#: Settings that say where a run was put, not what it is.
_NO_MATTER = ("trainer.runs", "trainer.name")

#: What decides which rows a run validated on.
_VALIDATION = ("data.val_lake", "data.val_fraction", "data.max_val_rows")
#: What decides what a loss is over.
_LOSS = ("data.batch_size", "loss.objective", "loss.label_smoothing", "trainer.num_nodes", "trainer.devices")


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run without looking at its weights.

    Attributes:
        name: what it is called beside the others.
        checkpoint: the file whose weights stand for it.
        lineage: of that checkpoint.
        last: lineage of the newest checkpoint, with the length of the whole run.
        curves: of its metrics.csv.
        num_parameters: of the model.
    """

    name: str
    checkpoint: str
    lineage: Mapping[str, Any]
    last: Mapping[str, Any]
    curves: Curves
    num_parameters: int

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.lineage["model"]["name"])

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return int(self.last["progress"]["step"])

    @property
    def samples_seen(self) -> int:
        """Pairs trained on in the whole run."""
        return int(self.last["progress"]["samples_seen"])

    @property
    def seconds(self) -> float | None:
        """Wall-clock time of the whole run; None where nobody kept it."""
        return self.last["progress"].get("seconds") or None

    @property
    def samples_per_second(self) -> float | None:
        """The median of what was logged, but for the first, in which kernels are chosen."""
        rates = [rate for _, rate in self.curves.get("train/samples_per_second", [])]
        return statistics.median(rates[1:] or rates) if rates else None

    @property
    def recorded(self) -> dict[str, float]:
        """The validation's metrics where its loss was lowest, with the step; empty for a run that did not validate."""
        losses = self.curves.get("val/loss", [])
        if not losses:
            return {}
        step, _ = min(losses, key=lambda point: point[1])
        values = {name: dict(points).get(step) for name, points in self.curves.items() if name.startswith("val/")}
        return {"step": step, **{name: value for name, value in values.items() if value is not None}}

    @property
    def settings(self) -> dict[str, str]:
        """Every setting as text, under its name in a recipe, and what the run was given besides."""
        data = self.lineage["data"]
        return {
            "lake": str(data["path"]),
            "lake version": str(data["version"]),
            "query": str(data["query"] or "none"),
            "rows": f"{data['rows']:,}",
            "lakeclip": str(self.lineage["version"]),
            **{name: value for name, value in _flat(self.lineage["config"]).items() if name not in _NO_MATTER},
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "checkpoint": self.checkpoint,
            "model": self.model,
            "parameters": self.num_parameters,
            "steps": self.steps,
            "samples_seen": self.samples_seen,
            "seconds": self.seconds,
            "samples_per_second": self.samples_per_second,
            "recorded": self.recorded,
        }


class Setting(NamedTuple):
    """A setting that not all runs share, with the value of each; "–" for a run that does not have it."""

    name: str
    values: tuple[str, ...]


def differing_settings(runs: Sequence[RunRecord]) -> list[Setting]:
    """What the runs do not have in common."""
    every = [run.settings for run in runs]
    names = dict.fromkeys(name for settings in every for name in settings)
    found = [Setting(name, tuple(settings.get(name, "–") for settings in every)) for name in names]
    # The lake is in the configuration, too, where lakeclip opened it.
    return [setting for setting in found if len(set(setting.values)) > 1 and setting.name != "data.lake"]


def caveats(runs: Sequence[RunRecord]) -> list[str]:
    """Why the figures that the runs recorded might not compare."""
    every = [run.settings for run in runs]

    def differs(names: Sequence[str]) -> bool:
        return len({tuple(settings.get(name) for name in names) for settings in every}) > 1

    found = []
    if not same_data(runs):
        found.append("The runs validated on different rows, so what they recorded of that does not compare.")
    if differs(_LOSS):
        found.append(
            "Losses are over a batch: with other batch sizes or another objective they are other numbers, and the "
            "lower is not the better."
        )
    return found


def same_data(runs: Sequence[RunRecord]) -> bool:
    """Whether all runs held the same rows of the same lake out and trained on the others."""
    names = ("lake", "lake version", "query", *_VALIDATION)
    return len({tuple(run.settings.get(name) for name in names) for run in runs}) == 1


@dataclass(frozen=True)
class ZeroShotScores:
    """All runs on one zero-shot test.

    Attributes:
        results: of each run.
        differences: of each run but the first, from the first; p-values are adjusted for their number.
    """

    title: str
    results: tuple[ZeroShotResult, ...]
    differences: tuple[Difference, ...]

    def to_json(self, runs: Sequence[RunRecord]) -> dict[str, Any]:
        """Plain values."""
        against = [None, *(difference.to_json() for difference in self.differences)]
        return {
            "title": self.title,
            "runs": [
                {"name": run.name, **result.to_json(), "against_first": difference}
                for run, result, difference in zip(runs, self.results, against, strict=True)
            ],
        }


@dataclass(frozen=True)
class RetrievalScores:
    """All runs on the same images and captions."""

    about: str
    results: tuple[RetrievalResult, ...]

    def to_json(self, runs: Sequence[RunRecord]) -> dict[str, Any]:
        """Plain values."""
        scores = [{"name": run.name, **result.to_json()} for run, result in zip(runs, self.results, strict=True)]
        return {"about": self.about, "runs": scores}


def zero_shot_answers(
    model: CLIP | DualEncoder,
    tokenize: Tokenize,
    transform: EvalTransform,
    source: RowSource,
    labels: Labels,
    templates: TemplateSet,
    *,
    batch_size: int = 128,
    num_workers: int = 0,
) -> tuple[ZeroShotResult, Bool[np.ndarray, " images"]]:
    """As `zero_shot`, and for each image that could be decoded whether its class was found."""
    weights = classifier_weights(model, tokenize, labels.classes, templates.templates)
    images = encode_labelled(model, transform, source, labels, batch_size=batch_size, num_workers=num_workers)
    answers = classify(images.features, weights, model.logit_scale)
    result = count_answers(answers, images.targets, labels, templates, num_undecodable=len(images.undecodable))
    return result, (answers.nearest[:, 0] == images.targets).numpy()


def against_first(right: Sequence[Bool[np.ndarray, " images"]]) -> tuple[Difference, ...]:
    """Each further model against the first, by which of the same images they get right."""
    return tuple(adjust([paired_difference(right[0], other) for other in right[1:]]))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            flat[prefix + name] = ", ".join(map(str, value)) or "none"
        else:
            flat[prefix + name] = (
                "not set" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
            )
    return flat
