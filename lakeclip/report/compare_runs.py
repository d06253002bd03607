"""Comparison of runs as a function: reads them, scores them on the same data, and returns a `Comparison`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lakeclip.checkpoints.folder import LAST
from lakeclip.checkpoints.native import read_checkpoint
from lakeclip.config.schema import DataConfig
from lakeclip.errors import ConfigError, LakeclipError, print_warnings
from lakeclip.evaluation.run import EncodeConfig, load_model, open_labelled, score_retrieval
from lakeclip.lake.pairs import open_pairs
from lakeclip.report.charts import MAX_SERIES
from lakeclip.report.comparison import (
    RetrievalScores,
    RunRecord,
    ZeroShotScores,
    caveats,
    compare_with_first,
    differing_settings,
    same_data,
)
from lakeclip.report.comparison_page import render_comparison
from lakeclip.report.curves import read_curves
from lakeclip.report.page import write_page
from lakeclip.report.run import validation_rows

if TYPE_CHECKING:
    from lakeclip.checkpoints.native import Checkpoint
    from lakeclip.evaluation.zeroshot import ZeroShotResult
    from lakeclip.lake.rows import RowSource

#: Suffixes of batch norm's statistics, which are in a state dict and are not parameters.
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side.

    Attributes:
        runs: in the order given; the others are compared with the first.
        zeroshot: scores on the labelled lake; None without one.
        retrieval: retrieval scores; None if they were not requested or the data is unavailable.
        warnings: why something is missing.
    """

    runs: tuple[RunRecord, ...]
    zeroshot: ZeroShotScores | None = None
    retrieval: RetrievalScores | None = None
    warnings: tuple[str, ...] = ()

    @property
    def caveats(self) -> list[str]:
        """Reasons why the recorded metrics of the runs are not comparable."""
        return caveats(self.runs)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as written by `lakeclip evaluate compare --json`."""
        names = [run.name for run in self.runs]
        return {
            "runs": [run.to_json() for run in self.runs],
            "same_training_and_validation_rows": same_data(self.runs),
            "differing_settings": {
                setting.name: dict(zip(names, setting.values, strict=True)) for setting in differing_settings(self.runs)
            },
            "zeroshot": self.zeroshot.to_json(self.runs) if self.zeroshot else None,
            "retrieval": self.retrieval.to_json(self.runs) if self.retrieval else None,
        }

    def write_page(self, path: str | Path) -> Path:
        """Write the comparison as an HTML page, and return its path.

        Raises:
            OutputError: the file cannot be written.
        """
        return write_page(Path(path), render_comparison(self.runs, zeroshot=self.zeroshot, retrieval=self.retrieval))


def compare_runs(
    runs: Sequence[str | Path],
    *,
    lake: str | Path | None = None,
    label_column: str | None = None,
    query: str | None = None,
    templates: str = "simple",
    classes: str | Sequence[str] | None = None,
    retrieval_lake: str | Path | None = None,
    encode: EncodeConfig | None = None,
) -> Comparison:
    """Compare runs: their recorded metrics, their settings and, on request, their scores on the same data.

    Args:
        runs: two or more run folders or .ckpt files. The others are compared with the first.
        lake: Deep Lake dataset with images and labels, for a zero-shot test of all runs.
        label_column: its column with the labels.
        query: WHERE clause of a Deep Lake query that selects the rows to score.
        templates, classes: as in `evaluate_zeroshot`.
        retrieval_lake: Deep Lake dataset with images and captions, for retrieval by all runs. Default: with `lake`, the
            rows that the first run validated on.
        encode: batch size, workers, device and precision.

    Raises:
        ConfigError: fewer than two runs, too many, the same one twice, or a lake without a label column.
        LakeclipError: a checkpoint, a lake, its labels or the device is wrong.
    """
    encode = encode or EncodeConfig()
    if lake is None and (label_column or query or classes):
        raise ConfigError("a zero-shot test needs data", next_step="--lake LAKE, beside --label-column COLUMN")
    if lake is not None and label_column is None:
        raise ConfigError("a zero-shot test needs labels", next_step="--label-column COLUMN, beside --lake")
    records = _read_runs([str(run) for run in runs])
    zeroshot = retrieval = None
    warnings = []
    if lake is not None and label_column is not None:
        zeroshot = _score_zero_shot(records, lake, label_column, query, templates, classes, encode)
    if lake is not None or retrieval_lake is not None:
        try:
            rows = _retrieval_rows(records, retrieval_lake)
        except LakeclipError as error:
            if retrieval_lake is not None:
                raise
            warnings.append(f"the comparison has no retrieval scores. {error}")
        else:
            retrieval = _score_retrieval(records, rows, encode)
    return Comparison(tuple(records), zeroshot, retrieval, tuple(warnings))


# ── runs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_runs(paths: Sequence[str]) -> list[RunRecord]:
    """Read the record of each run.

    Raises:
        ConfigError: fewer than two runs, more than the charts have colours for, or one twice.
        CheckpointError: a path is not a run or a checkpoint.
    """
    if not 2 <= len(paths) <= MAX_SERIES:
        raise ConfigError(
            f"{len(paths) or 'no'} run{'' if len(paths) == 1 else 's'} to compare",
            found=", ".join(paths),
            allowed=f"2 to {MAX_SERIES} run folders or .ckpt files",
            next_step=f"lakeclip evaluate report --run {paths[0]} shows a single run" if len(paths) == 1 else "",
        )
    checkpoints = [read_checkpoint(path) for path in paths]
    files = [checkpoint.path.resolve() for checkpoint in checkpoints]
    for index, file in enumerate(files):
        if file in files[:index]:
            other = paths[files.index(file)]
            raise ConfigError(
                f"{paths[index]} is compared with itself", found=f"{other} and {paths[index]} are both {file}"
            )
    return [
        _make_record(name, Path(path), checkpoint)
        for name, path, checkpoint in zip(_short_names(paths), paths, checkpoints, strict=True)
    ]


def _make_record(name: str, path: Path, checkpoint: Checkpoint) -> RunRecord:
    folder = checkpoint.path.parent.parent
    curves = read_curves(folder / "metrics.csv")
    last = checkpoint.lineage
    if path.is_dir():
        last = read_checkpoint(folder / LAST).lineage if (folder / LAST).is_file() else last
    else:
        # The run may have continued after this checkpoint.
        num_steps = last["progress"]["step"]
        curves = {metric: [point for point in points if point[0] < num_steps] for metric, points in curves.items()}
    num_parameters = sum(value.numel() for key, value in checkpoint.state_dict.items() if not key.endswith(_BUFFERS))
    return RunRecord(
        name,
        str(checkpoint.path),
        checkpoint.lineage,
        last,
        {metric: points for metric, points in curves.items() if points},
        num_parameters,
    )


def _short_names(paths: Sequence[str]) -> list[str]:
    """Return the shortest ends of the paths that are all different."""
    parts_of = [Path(path).resolve().parts for path in paths]
    length = next(
        length
        for length in range(1, max(map(len, parts_of)) + 1)
        if len({parts[-length:] for parts in parts_of}) == len(parts_of)
    )
    return ["/".join(parts[-length:]) for parts in parts_of]


# ── scores on the same data ─────────────────────────────────────────────────────────────────────────────────────────


def _score_zero_shot(
    runs: Sequence[RunRecord],
    lake: str | Path,
    label_column: str,
    query: str | None,
    templates: str,
    classes: str | Sequence[str] | None,
    encode: EncodeConfig,
) -> ZeroShotScores:
    from lakeclip.evaluation.classifier import check_prompts
    from lakeclip.evaluation.prompts import find_templates
    from lakeclip.evaluation.zeroshot import zero_shot

    template_set = find_templates(templates)
    source, labels = open_labelled(lake, label_column, query=query, classes=classes)

    def score(run: RunRecord) -> ZeroShotResult:
        loaded = load_model(run.checkpoint, encode)
        print_warnings(check_prompts(loaded.tokenize, labels.classes, template_set.templates))
        return zero_shot(
            *loaded, source, labels, template_set, batch_size=encode.batch_size, num_workers=encode.num_workers
        )

    results = tuple(score(run) for run in runs)
    return ZeroShotScores(Path(lake).name, results, compare_with_first(results))


class _RetrievalRows(NamedTuple):
    """Rows for retrieval: a source, positions in it (None for all), and a sentence that names them."""

    source: RowSource
    positions: list[int] | None
    about: str


def _retrieval_rows(runs: Sequence[RunRecord], retrieval_lake: str | Path | None) -> _RetrievalRows:
    """Open the requested lake, or the rows that the first run validated on."""
    if retrieval_lake is not None:
        source = open_pairs(DataConfig(lake=str(retrieval_lake)))
        return _RetrievalRows(source, None, f"From {source.path}.")
    source, positions, about = validation_rows(dict(runs[0].lineage))
    about = f"The rows of {runs[0].name}: {about[0].lower()}{about[1:]}"
    if not same_data(runs):
        about += " The other runs were trained on other data or split it differently, and may have seen some of them."
    return _RetrievalRows(source, positions, about)


def _score_retrieval(runs: Sequence[RunRecord], rows: _RetrievalRows, encode: EncodeConfig) -> RetrievalScores:
    results = [
        score_retrieval(load_model(run.checkpoint, encode), rows.source, encode, rows.positions)[1] for run in runs
    ]
    return RetrievalScores(rows.about, tuple(results))
