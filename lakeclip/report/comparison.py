"""Several runs side by side: their recorded metrics, their settings, and their scores on the same data."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lakeclip.evaluation.retrieval import RetrievalResult
from lakeclip.evaluation.significance import Difference, holm_adjust, paired_difference
from lakeclip.evaluation.zeroshot import ZeroShotResult
from lakeclip.report.curves import Curves

#: Settings that say where a run is stored; they do not affect it.
_IGNORED_SETTINGS = ("trainer.runs", "trainer.name")

#: Settings that determine the validation rows.
_VALIDATION_SETTINGS = ("data.val_lake", "data.val_fraction", "data.max_val_rows")
#: Settings that determine the scale of the loss.
_LOSS_SETTINGS = ("data.batch_size", "loss.objective", "loss.label_smoothing", "trainer.num_nodes", "trainer.devices")


@dataclass(frozen=True)
class RunRecord:
    """Record of a run: what its checkpoints and its metrics.csv say about it.

    Attributes:
        name: name in the comparison.
        checkpoint: file with the weights that are compared.
        lineage: lineage of that checkpoint.
        last: lineage of the newest checkpoint, which has the length of the whole run.
        curves: curves in its metrics.csv.
        num_parameters: number of the model's parameters.
    """

    name: str
    checkpoint: str
    lineage: Mapping[str, Any]
    last: Mapping[str, Any]
    curves: Curves
    num_parameters: int

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self.lineage["model"]["name"])

    @property
    def steps(self) -> int:
        """Number of steps of the whole run."""
        return int(self.last["progress"]["step"])

    @property
    def samples_seen(self) -> int:
        """Number of pairs trained on in the whole run, repetitions included."""
        return int(self.last["progress"]["samples_seen"])

    @property
    def seconds(self) -> float | None:
        """Wall-clock time of the whole run; None if it was not recorded."""
        return self.last["progress"].get("seconds") or None

    @property
    def samples_per_second(self) -> float | None:
        """Median of the logged rates, without the first, which includes the selection of kernels."""
        rates = [rate for _, rate in self.curves.get("train/samples_per_second", [])]
        return statistics.median(rates[1:] or rates) if rates else None

    @property
    def recorded(self) -> dict[str, float]:
        """Validation metrics at the step with the lowest loss, with that step; empty for a run without validation."""
        losses = self.curves.get("val/loss", [])
        if not losses:
            return {}
        step, _ = min(losses, key=lambda point: point[1])
        values = {name: dict(points).get(step) for name, points in self.curves.items() if name.startswith("val/")}
        return {"step": step, **{name: value for name, value in values.items() if value is not None}}

    @property
    def settings(self) -> dict[str, str]:
        """Settings as text, under their names in a recipe, and the run's data."""
        data = self.lineage["data"]
        return {
            "lake": str(data["path"]),
            "lake version": str(data["version"]),
            "query": str(data["query"] or "none"),
            "rows": f"{data['rows']:,}",
            "lakeclip": str(self.lineage["version"]),
            **{name: value for name, value in _flat(self.lineage["config"]).items() if name not in _IGNORED_SETTINGS},
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
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
    """A setting in which the runs differ, with the value of each run; "–" for a run without it."""

    name: str
    values: tuple[str, ...]


def differing_settings(runs: Sequence[RunRecord]) -> list[Setting]:
    """List the settings in which the runs differ."""
    settings_of_runs = [run.settings for run in runs]
    names = dict.fromkeys(name for settings in settings_of_runs for name in settings)
    settings = [Setting(name, tuple(settings.get(name, "–") for settings in settings_of_runs)) for name in names]
    # "lake" already shows it.
    return [setting for setting in settings if len(set(setting.values)) > 1 and setting.name != "data.lake"]


def caveats(runs: Sequence[RunRecord]) -> list[str]:
    """List reasons why the recorded metrics of the runs are not comparable."""
    settings_of_runs = [run.settings for run in runs]

    def differs(names: Sequence[str]) -> bool:
        return len({tuple(settings.get(name) for name in names) for settings in settings_of_runs}) > 1

    reasons = []
    if not same_data(runs):
        reasons.append("The runs validated on different rows, so their recorded validation metrics are not comparable.")
    if differs(_LOSS_SETTINGS):
        reasons.append(
            "The runs differ in batch size or objective, so their losses are not comparable: a lower loss is not "
            "better."
        )
    return reasons


def same_data(runs: Sequence[RunRecord]) -> bool:
    """Return True if all runs held out the same rows of the same lake and trained on the others."""
    names = ("lake", "lake version", "query", *_VALIDATION_SETTINGS)
    return len({tuple(run.settings.get(name) for name in names) for run in runs}) == 1


@dataclass(frozen=True)
class ZeroShotScores:
    """Scores of all runs on one zero-shot test.

    Attributes:
        results: one per run.
        differences: of each run but the first from the first; the p-values are adjusted for their number.
    """

    title: str
    results: tuple[ZeroShotResult, ...]
    differences: tuple[Difference, ...]

    def to_json(self, runs: Sequence[RunRecord]) -> dict[str, Any]:
        """Return plain values."""
        against = [None, *(difference.to_json() for difference in self.differences)]
        return {
            "title": self.title,
            "runs": [
                {"name": run.name, **result.to_json(), "compare_with_first": difference}
                for run, result, difference in zip(runs, self.results, against, strict=True)
            ],
        }


@dataclass(frozen=True)
class RetrievalScores:
    """Retrieval scores of all runs on the same images and captions."""

    about: str
    results: tuple[RetrievalResult, ...]

    def to_json(self, runs: Sequence[RunRecord]) -> dict[str, Any]:
        """Return plain values."""
        scores = [{"name": run.name, **result.to_json()} for run, result in zip(runs, self.results, strict=True)]
        return {"about": self.about, "runs": scores}


def compare_with_first(results: Sequence[ZeroShotResult]) -> tuple[Difference, ...]:
    """Compare each further model with the first, by which of the same images they classify correctly.

    The p-values are adjusted for the number of comparisons.
    """
    first = results[0].is_correct
    return tuple(holm_adjust([paired_difference(first, result.is_correct) for result in results[1:]]))


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
