"""An evaluation added from outside the package, as the guide "Add an evaluation" describes."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lakeclip
from lakeclip.cli.evaluate import run as evaluate_command
from lakeclip.config.schema import DataConfig, EvaluationConfig, TrainConfig, TrainerConfig
from lakeclip.errors import ConfigError
from lakeclip.evaluation.registry import ENTRY_POINT_GROUP
from lakeclip.report.charts import draw_charts
from lakeclip.report.curves import read_curves
from lakeclip.training.run import TrainResult, train

#: The code block of the guide.
MODULE = '''\
# separation.py
import lakeclip


def score(data: lakeclip.EvaluationData) -> dict[str, float]:
    """Return how much more similar images of the same class are than images of different classes."""
    similarity = data.features @ data.features.T
    same_class = data.targets[:, None] == data.targets[None, :]
    return {"separation": float(similarity[same_class].mean() - similarity[~same_class].mean())}


EVALUATION = lakeclip.Evaluation(
    score,
    about="Compare the similarity of images within and between classes.",
    needs=("labels",),
    curves={"separation": "class separation"},
)
lakeclip.EVALUATIONS["separation"] = EVALUATION
'''

pytestmark = pytest.mark.filterwarnings("ignore:.*(val_dataloader|many workers|logging interval)")


@pytest.fixture
def module_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write the guide's module into a folder on sys.path, and unregister the evaluation afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "separation.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    lakeclip.EVALUATIONS.pop("separation", None)
    sys.modules.pop("separation", None)


def train_scored(lake: Path, models: Path, runs: Path) -> TrainResult:
    return train(
        TrainConfig(
            model="tiny-vit",
            model_config=str(models),
            data=DataConfig(lake=str(lake), batch_size=16, num_workers=0, val_fraction=0.1),
            evaluation=EvaluationConfig(
                eval_lake=str(lake),
                eval_label_column="label",
                eval_scores=("zeroshot", "separation"),
                eval_rows=50,
                eval_every_steps=2,
            ),
            trainer=TrainerConfig(max_steps=4, accelerator="cpu", runs=str(runs), name="scored"),
        )
    )


def test_evaluation_runs_in_training_and_in_python(
    module_folder: Path, pairs_lake: Path, tiny_models: Path, tmp_path: Path
) -> None:
    importlib.import_module("separation")
    finished = train_scored(pairs_lake, tiny_models, tmp_path / "runs")
    assert set(finished.scores) >= {"zeroshot_top1", "separation"}
    with (finished.folder / "metrics.csv").open(newline="") as file:
        recorded = [row["eval/separation"] for row in csv.DictReader(file) if row.get("eval/separation")]
    assert len(recorded) == 2

    scores = lakeclip.evaluate(
        finished.folder / "checkpoints/last.ckpt", pairs_lake, ["separation"], label_column="label", rows=50
    )
    assert scores == pytest.approx({"separation": finished.scores["separation"]})
    assert float(recorded[-1]) == pytest.approx(scores["separation"])

    labels = [line.label for chart in draw_charts(read_curves(finished.folder / "metrics.csv")) for line in chart.lines]
    assert "class separation" in labels


def test_evaluation_of_an_installed_package_is_a_subcommand(
    module_folder: Path, pairs_lake: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = train(
        TrainConfig(
            model="tiny-vit",
            model_config=str(tiny_models),
            data=DataConfig(lake=str(pairs_lake), batch_size=16, num_workers=0, val_fraction=0.1),
            trainer=TrainerConfig(max_steps=1, accelerator="cpu", runs=str(tmp_path / "runs"), name="plain"),
        )
    )
    metadata = module_folder / "separation-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: separation\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\nseparation = separation:EVALUATION\n")
    file = tmp_path / "scores.json"
    data = ["--checkpoint", str(finished.folder), "--lake", str(pairs_lake), "--label-column", "label"]
    evaluate_command(["separation", *data, "--rows", "50", "--json", str(file)])
    expected = lakeclip.evaluate(finished.folder, pairs_lake, ["separation"], label_column="label", rows=50)
    assert json.loads(file.read_text())["separation"] == pytest.approx(expected["separation"])
    assert f"{expected['separation']:.4g}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        evaluate_command(["separation", "--help"])
    assert "Compare the similarity of images within and between classes." in capsys.readouterr().out


def test_missing_labels_and_unknown_names_are_reported_before_training(
    module_folder: Path, pairs_lake: Path, tiny_models: Path
) -> None:
    importlib.import_module("separation")
    with pytest.raises(ConfigError, match="needs labels"):
        lakeclip.EvaluationCallback(EvaluationConfig(eval_lake=str(pairs_lake), eval_scores=("separation",)))
    with pytest.raises(ConfigError, match="no evaluation 'seperation'") as error:
        lakeclip.EvaluationCallback(EvaluationConfig(eval_lake=str(pairs_lake), eval_scores=("seperation",)))
    assert error.value.allowed.endswith("separation")
