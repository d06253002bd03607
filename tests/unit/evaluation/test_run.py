"""Python functions that evaluate a checkpoint or a loaded model on a lake, without the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lakeclip
from lakeclip.checkpoints.native import LoadedModel
from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import ConfigError, DeviceError
from lakeclip.evaluation.run import load_model
from lakeclip.ingestion.run import fill_lake
from lakeclip.ingestion.sources.base import Samples
from lakeclip.ingestion.sources.synthetic import scenes
from lakeclip.text.tokenizer import Tokenizer
from tests.unit.cli.test_evaluate_command import make_run
from tests.unit.evaluation.fixtures import tiny_clip

CPU = lakeclip.EncodeConfig(device="cpu", batch_size=7)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lakes") / "unseen"
    fill_lake([Samples("scenes", scenes("unseen", 40), 40)], str(path))
    return path


@pytest.fixture
def model() -> LoadedModel:
    return LoadedModel(tiny_clip(), Tokenizer(24), EvalTransform(32))


def test_zero_shot_accepts_a_loaded_model_and_a_checkpoint(model: LoadedModel, lake: Path, tmp_path: Path) -> None:
    result = lakeclip.evaluate_zeroshot(model, lake, label_column="label")
    assert result.num_samples == 40
    assert result.is_correct.mean() == result.top1
    folder = make_run(tmp_path / "run", str(lake))
    from_path = lakeclip.evaluate_zeroshot(folder, lake, label_column="label", encode=CPU)
    from_text = lakeclip.evaluate_zeroshot(str(folder), str(lake), label_column="label", encode=CPU)
    assert from_path.to_json() == from_text.to_json()


def test_class_names_are_a_list_or_the_text_of_the_flag(model: LoadedModel, lake: Path) -> None:
    query = "label == 'red circle'"
    as_list, as_text = (
        lakeclip.evaluate_zeroshot(model, lake, label_column="label", query=query, classes=classes, encode=CPU)
        for classes in (["red circle", "blue star"], "red circle,blue star")
    )
    assert as_list.classes == as_text.classes == ("red circle", "blue star")
    assert as_list.num_samples == as_text.num_samples == 5


def test_retrieval_probe_and_robustness(model: LoadedModel, lake: Path) -> None:
    retrieval = lakeclip.evaluate_retrieval(model, lake, encode=CPU)
    assert (retrieval.num_images, retrieval.num_texts, retrieval.num_undecodable) == (40, 80, 0)
    probe = lakeclip.evaluate_probe(model, lake, lake, label_column="label", few=[1], encode=CPU)
    assert (probe.num_train, probe.num_test, list(probe.few)) == (40, 40, [1])
    robustness = lakeclip.evaluate_robustness(
        model, lake, label_column="label", corruptions=["jpeg"], severities=[5, 1], shifted=[lake], encode=CPU
    )
    assert (robustness.severities, list(robustness.top1)) == ((1, 5), ["jpeg"])
    clean = lakeclip.evaluate_zeroshot(model, lake, label_column="label", encode=CPU).top1
    assert robustness.clean == robustness.shifts[0].top1 == clean


def test_registered_scores_are_those_of_the_functions(model: LoadedModel, lake: Path) -> None:
    scores = lakeclip.evaluate(model, lake, ["zeroshot", "retrieval"], label_column="label", encode=CPU)
    zeroshot = lakeclip.evaluate_zeroshot(model, lake, label_column="label", encode=CPU)
    retrieval = lakeclip.evaluate_retrieval(model, lake, encode=CPU)
    assert scores["zeroshot_top1"] == zeroshot.top1
    assert scores["text_to_image_R@5"] == pytest.approx(retrieval.text_to_image.recall[5])
    some = lakeclip.evaluate(model, lake, label_column="label", query="label == 'red circle'", classes="red circle,x")
    assert 0 <= some["zeroshot_top1"] <= 1


def test_compare_runs_and_report(lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / name, str(lake), seed=seed) for seed, name in enumerate(("a-run", "b-run"))]
    comparison = lakeclip.compare_runs(runs, lake=lake, label_column="label", encode=CPU)
    assert comparison.zeroshot is not None
    assert comparison.retrieval is not None
    assert [run.name for run in comparison.runs] == ["a-run", "b-run"]
    assert len(comparison.zeroshot.differences) == 1
    assert comparison.warnings == ()
    assert "a-run" in comparison.write_page(tmp_path / "page.html").read_text()
    report = lakeclip.make_report(runs[0], encode=CPU)
    assert report.page == runs[0] / "report.html"
    assert report.retrieval is not None
    assert "R@1" in report.card.read_text()
    assert capsys.readouterr().out == ""


def test_comparison_warns_if_the_rows_of_the_first_run_are_gone(lake: Path, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, str(lake)) for name in ("a-run", "b-run")]
    file = runs[0] / "checkpoints/last.ckpt"
    content = torch.load(file, weights_only=True)
    content["lakeclip"]["data"]["path"] = str(tmp_path / "gone")
    torch.save(content, file)
    comparison = lakeclip.compare_runs(runs, lake=lake, label_column="label", encode=CPU)
    assert comparison.retrieval is None
    (warning,) = comparison.warnings
    assert "no retrieval scores" in warning


def test_loaded_model_stays_as_it_is(model: LoadedModel) -> None:
    assert load_model(model, lakeclip.EncodeConfig(device="no-such-device", precision="bf16")) is model
    assert model.model.visual.proj.dtype == torch.float32


def test_invalid_settings(lake: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch size"):
        lakeclip.EncodeConfig(batch_size=0)
    folder = make_run(tmp_path / "run", str(lake))
    with pytest.raises(DeviceError, match="no device 'cuda:99'"):
        lakeclip.evaluate_retrieval(folder, lake, encode=lakeclip.EncodeConfig(device="cuda:99"))
    with pytest.raises(ConfigError, match="no corruption 'fog'"):
        lakeclip.evaluate_robustness(folder, lake, label_column="label", corruptions=["fog"])
