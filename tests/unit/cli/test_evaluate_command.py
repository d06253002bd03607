"""`lakeclip evaluate` on lakes of drawn scenes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from lakeclip.cli.evaluate import run
from lakeclip.config.schema import DataConfig, TrainConfig
from lakeclip.errors import CheckpointError, ConfigError, DataError, DeviceError, LakeError, OutputError
from lakeclip.evaluation.run import EncodeConfig, ZeroShotTest, load_model
from lakeclip.ingestion.run import fill_lake
from lakeclip.ingestion.sources.base import Samples
from lakeclip.ingestion.sources.synthetic import scenes
from lakeclip.lake import engine
from lakeclip.models.clip import CLIP
from lakeclip.provenance.lineage import make_lineage
from lakeclip.report.run import make_report
from lakeclip.text.tokenizer import Tokenizer
from tests.conftest import TINY


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("lakes") / "unseen")
    fill_lake([Samples("scenes", scenes("unseen", 40), 40)], path)
    return path


@pytest.fixture
def a_run(tmp_path: Path, lake: str) -> Path:
    return make_run(tmp_path / "a-run", lake)


def make_run(folder: Path, lake: str, *, seed: int = 0, val_fraction: float = 0.25) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    torch.manual_seed(seed)
    entry = make_lineage(
        model_name="tiny",
        model_config=TINY,
        tokenizer=Tokenizer(24),
        data={"path": lake, "version": "1", "query": None, "rows": 40},
        config=TrainConfig(model="tiny", data=DataConfig(lake=lake, val_fraction=val_fraction, seed=seed)),
        progress={"step": 3, "epoch": 0, "samples_seen": 96},
    )
    weights = {f"model.{key}": value for key, value in CLIP(TINY).state_dict().items()}
    torch.save({"state_dict": weights, "lakeclip": entry}, folder / "checkpoints/last.ckpt")
    (folder / "metrics.csv").write_text("step,train/loss\n1,3.5\n2,3.1\n3,2.9\n")
    return folder


def test_zeroshot(a_run: Path, lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "scores.json"
    run(["zeroshot", "--checkpoint", str(a_run), "--lake", lake, "--label-column", "label", "--json", str(file)])
    content = json.loads(file.read_text())
    assert content["num_samples"] == 40
    assert 0 <= content["top1"] <= content["top5"] <= 1
    assert len(content["classes"]) == 8
    assert content["lake"] == lake
    shown = capsys.readouterr()
    assert f"{content['top1']:.1%}" in shown.out
    confidence = content["calibration"]["mean_confidence"]
    assert f"mean confidence {confidence:.0%}, accuracy {content['top1']:.0%}" in shown.out
    assert "red circle" in shown.out
    assert "× chance (12.5%)" in shown.out
    assert shown.err == ""


def test_prompts_are_encoded_once_for_all_evaluations(
    a_run: Path, lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAKECLIP_CACHE", str(tmp_path / "cache"))
    flags = f"zeroshot --checkpoint {a_run} --lake {lake} --label-column label --templates openai-80".split()
    contents = []
    for _ in range(2):
        run([*flags, "--json", str(tmp_path / "scores.json")])
        contents.append(json.loads((tmp_path / "scores.json").read_text()))
    assert contents[0] == contents[1]
    assert len(list((tmp_path / "cache" / "classifiers").iterdir())) == 1


def test_robustness(a_run: Path, lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, plot = tmp_path / "scores.json", tmp_path / "robust.svg"
    data = ["--checkpoint", str(a_run), "--lake", lake, "--label-column", "label"]
    run(["zeroshot", *data, "--json", str(file)])
    clean = json.loads(file.read_text())["top1"]
    capsys.readouterr()
    some = ["--corruptions", "gaussian noise", "jpeg", "--severities", "5", "1"]
    run(["robustness", *data, *some, "--shifted", lake, "--json", str(file), "--plot", str(plot)])
    content = json.loads(file.read_text())
    assert content["clean"] == content["shifts"][0]["top1"] == clean
    assert content["severities"] == [1, 5]
    assert list(content["top1"]) == ["gaussian noise", "jpeg"]
    assert plot.read_text().startswith("<?xml")
    shown = capsys.readouterr().out
    assert f"{content['mean']:.1%}" in shown
    assert "jpeg" in shown


def test_unknown_corruptions_and_severities_are_rejected(a_run: Path, lake: str) -> None:
    data = ["robustness", "--checkpoint", str(a_run), "--lake", lake, "--label-column", "label"]
    with pytest.raises(ConfigError, match="no corruption 'fog'") as error:
        run([*data, "--corruptions", "fog"])
    assert "gaussian blur" in error.value.allowed
    with pytest.raises(ConfigError, match="severities of the corruptions are out of range") as error:
        run([*data, "--severities", "0", "6"])
    assert error.value.found == "--severities 0 6"


@pytest.mark.parametrize("kind", ["zeroshot", "retrieval", "probe"])
def test_plots(kind: str, a_run: Path, lake: str, tmp_path: Path) -> None:
    more = {"probe": ["--test-lake", lake, "--few", "1", "2"]}.get(kind, [])
    labels = [] if kind == "retrieval" else ["--label-column", "label"]
    flags = [kind, "--checkpoint", str(a_run), "--lake", lake, *labels, *more]
    run([*flags, "--plot", str(tmp_path / "plot.pdf")])
    assert (tmp_path / "plot.pdf").read_bytes().startswith(b"%PDF")


def test_zeroshot_with_query_classes_and_templates(a_run: Path, lake: str, tmp_path: Path) -> None:
    file, templates = tmp_path / "scores.json", tmp_path / "t.txt"
    templates.write_text("{}\nthe {}\n")
    flags = f"--checkpoint {a_run}/checkpoints/last.ckpt --lake {lake} --label-column label --batch-size 3 --device cpu"
    flags += f" --templates {templates} --json {file}"
    query, classes = "label == 'red circle'", "red circle,blue star"
    run(["zeroshot", *flags.split(), "--query", query, "--classes", classes])
    content = json.loads(file.read_text())
    assert content["num_samples"] == 5
    assert content["classes"] == ["red circle", "blue star"]
    assert content["templates"] == ["{}", "the {}"]


def test_zeroshot_in_bfloat16(a_run: Path, lake: str, tmp_path: Path) -> None:
    weights = [
        load_model(str(a_run), EncodeConfig(device="cpu", precision=name)).model.visual.proj for name in ("32", "bf16")
    ]
    assert [weight.dtype for weight in weights] == [torch.float32, torch.bfloat16]
    words = ["zeroshot", "--checkpoint", str(a_run), "--lake", lake, "--label-column", "label", "--device", "cpu"]
    run([*words, "--precision", "bf16", "--json", str(tmp_path / "scores.json")])
    assert json.loads((tmp_path / "scores.json").read_text())["num_samples"] == 40


def test_zeroshot_needs_no_captions(a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Score a lake with images and numbers, but without captions."""
    samples = list(scenes("unseen", 4))
    deeplake = engine.deeplake()
    dataset = deeplake.create(str(tmp_path / "other"))
    dataset.add_column("photo", deeplake.types.Bytes())
    dataset.add_column("species", deeplake.types.Int64())
    dataset.append({"photo": [sample.image for sample in samples], "species": [0, 1, 1, 0]})
    dataset.commit()
    run(
        f"zeroshot --checkpoint {a_run} --lake {tmp_path}/other --label-column species --classes cat,dog "
        "--image-column photo".split()
    )
    assert "cat" in capsys.readouterr().out


def test_retrieval_from_a_lake_and_from_a_folder(
    a_run: Path, lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = tmp_path / "pairs", tmp_path / "scores.json"
    folder.mkdir()
    for sample in scenes("unseen", 40):
        (folder / f"{sample.key}.jpg").write_bytes(sample.image)
        (folder / f"{sample.key}.txt").write_text("\n".join(sample.captions))
    contents = []
    for data in (["--lake", lake], ["--folder", str(folder)]):
        run(["retrieval", "--checkpoint", str(a_run), *data, "--json", str(file)])
        contents.append(json.loads(file.read_text()))
        assert "text → image" in capsys.readouterr().out
    for content in contents:
        assert (content["num_images"], content["num_texts"]) == (40, 80)
        for direction in ("image_to_text", "text_to_image"):
            assert set(content[direction]) == {"R@1", "R@5", "R@10", "median_rank", "mAP"}
            assert 0 <= content[direction]["R@1"] <= content[direction]["R@10"] <= 1
    assert contents[0]["text_to_image"] == pytest.approx(contents[1]["text_to_image"], abs=0.02)


def test_probe(a_run: Path, lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "probe.json"
    lakes = ["--lake", lake, "--test-lake", lake, "--label-column", "label"]
    run(["probe", "--checkpoint", str(a_run), *lakes, "--few", "1", "2", "--json", str(file)])
    content = json.loads(file.read_text())
    assert content["num_train"] == content["num_test"] == 40
    assert set(content["few_shot"]) == {"1", "2"}
    shown = capsys.readouterr().out
    assert f"{content['top1']:.1%}" in shown
    low, high = content["top1_interval_95"]
    assert f"95% interval {low:.1%} to {high:.1%}" in shown
    assert (content["verdict"] == "learning") == (low > content["chance"])
    assert ("no better than always predicting the most frequent class" in shown) == (low <= content["chance"])


def test_report(a_run: Path, lake: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(["report", "--run", str(a_run), "--lake", lake, "--label-column", "label", "--match-column", "scene"])
    shown = capsys.readouterr()
    assert str(a_run / "report.html") in shown.out
    assert shown.err == ""
    page = (a_run / "report.html").read_text()
    assert "Zero-shot on unseen:" in page
    assert "Among 10 images and 20 captions" in page
    assert "Images found by captions" in page


def test_report_with_several_tests(a_run: Path, lake: str) -> None:
    tests = [ZeroShotTest("First", lake, "label", "About."), ZeroShotTest("Second", lake, "label", templates="scenes")]
    report = make_report(a_run, tests, encode=EncodeConfig(device="cpu"))
    assert [test.title for test in report.zeroshot] == ["First", "Second"]
    assert report.zeroshot[0].result.num_samples == 40
    assert "<h1>First: " in report.page.read_text()


def test_report_without_the_training_data(
    a_run: Path, lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = a_run / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    content["lakeclip"]["data"]["path"] = str(tmp_path / "gone")
    torch.save(content, path)
    run(["report", "--run", str(a_run)])
    assert "has no retrieval scores" in capsys.readouterr().err
    assert "Images found by captions" not in (a_run / "report.html").read_text()


def test_unwritable_outputs_are_reported_first(tmp_path: Path) -> None:
    """Report the output file although checkpoint and lake are missing, too."""
    nothing = ["--checkpoint", str(tmp_path / "none"), "--lake", str(tmp_path / "none")]
    for file in (tmp_path, tmp_path / "no/such/folder.json"):
        with pytest.raises(OutputError, match="cannot write"):
            run(["zeroshot", *nothing, "--label-column", "label", "--json", str(file)])
        with pytest.raises(OutputError, match="cannot write"):
            run(["retrieval", *nothing, "--json", str(file)])
    with pytest.raises(OutputError, match="cannot write"):
        run(["retrieval", *nothing, "--plot", str(tmp_path / "no/such/folder.png")])
    for file in (tmp_path / "plot.jpg", tmp_path / "plot"):
        with pytest.raises(ConfigError, match="cannot be written") as error:
            run(["retrieval", *nothing, "--plot", str(file)])
        assert error.value.allowed == ".png, .svg, .pdf"


def test_failed_evaluation_keeps_the_old_scores(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    for before in (None, "old"):
        if before:
            file.write_text(before)
        with pytest.raises(CheckpointError):
            run(f"zeroshot --checkpoint {tmp_path} --lake x --label-column y --json {file}".split())
        assert (file.read_text() if file.exists() else None) == before


def test_invalid_flags_are_rejected(a_run: Path, lake: str, tmp_path: Path) -> None:
    model = ["--checkpoint", str(a_run)]
    with pytest.raises(ConfigError, match="neither a lake nor a folder"):
        run(["retrieval", *model])
    with pytest.raises(ConfigError, match="both a lake and a folder"):
        run(["retrieval", *model, "--lake", lake, "--folder", str(tmp_path)])
    with pytest.raises(ConfigError, match="cannot be queried"):
        run(["retrieval", *model, "--folder", str(tmp_path), "--query", "a > 1"])
    with pytest.raises(ConfigError, match="needs labels"):
        run(["report", "--run", str(a_run), "--lake", lake])
    with pytest.raises(ConfigError, match="needs data"):
        run(["report", "--run", str(a_run), "--label-column", "label"])
    with pytest.raises(ConfigError, match="no run at"):
        run(["report", "--run", str(tmp_path / "none")])
    with pytest.raises(ConfigError, match="batch size or the number of workers is too small"):
        run(["retrieval", *model, "--lake", lake, "--batch-size", "0"])
    with pytest.raises(DeviceError, match="no device 'cuda:99'") as error:
        run(["retrieval", *model, "--lake", lake, "--device", "cuda:99"])
    assert "cpu" in error.value.found
    with pytest.raises(LakeError, match="no column 'species'") as lake_error:
        run(["zeroshot", *model, "--lake", lake, "--label-column", "species"])
    assert "--label-column label" in lake_error.value.next_step


def test_retrieval_without_captions_is_rejected(a_run: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "silent")
    fill_lake([Samples("scenes", (s._replace(captions=()) for s in scenes("unseen", 3)), 3)], path)
    with pytest.raises(DataError, match="no captions to retrieve"):
        run(["retrieval", "--checkpoint", str(a_run), "--lake", path])


# ── comparing runs ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_compare_recorded_metrics(
    a_run: Path, lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_run(tmp_path / "b-run", lake, seed=1)
    monkeypatch.chdir(tmp_path)
    run(["compare", str(a_run), str(other), "--json", "scores.json"])
    shown = capsys.readouterr()
    assert "data.seed" in shown.out
    assert "page: compare.html" in shown.out
    assert shown.err == ""
    content = json.loads((tmp_path / "scores.json").read_text())
    assert [run_["name"] for run_ in content["runs"]] == ["a-run", "b-run"]
    assert content["runs"][0]["parameters"] == sum(value.numel() for value in CLIP(TINY).parameters())
    assert content["differing_settings"] == {"data.seed": {"a-run": "0", "b-run": "1"}}
    assert content["zeroshot"] is content["retrieval"] is None
    assert "a-run and b-run side by side" in (tmp_path / "compare.html").read_text()


def test_compare_on_the_same_data(a_run: Path, lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(a_run), str(make_run(tmp_path / "b-run", lake, seed=1)), f"{a_run}/checkpoints/copy.ckpt"]
    Path(runs[2]).write_bytes((a_run / "checkpoints/last.ckpt").read_bytes())
    files = ["--out", str(tmp_path / "page.html"), "--json", str(tmp_path / "scores.json")]
    run(["compare", *runs, "--lake", lake, "--label-column", "label", *files])
    shown = capsys.readouterr()
    assert "copy.ckpt and a-run classify the same images correctly." in shown.out
    assert (
        "Among 10 images and 20 captions, the same for all runs. The rows of a-run: rows that training never"
        in shown.out
    )
    content = json.loads((tmp_path / "scores.json").read_text())
    first, other, copy = content["zeroshot"]["runs"]
    assert first["compare_with_first"] is None
    assert copy["compare_with_first"]["difference"] == 0.0
    assert other["compare_with_first"]["difference"] == pytest.approx(other["top1"] - first["top1"])
    retrieval = content["retrieval"]["runs"]
    assert {key: value for key, value in retrieval[0].items() if key != "name"} == {
        key: value for key, value in retrieval[2].items() if key != "name"
    }
    # The comparison and the evaluation of a single run agree.
    run(["zeroshot", "--checkpoint", runs[1], "--lake", lake, "--label-column", "label", *files[2:]])
    assert json.loads((tmp_path / "scores.json").read_text())["top1"] == other["top1"]


def test_compare_warns_about_rows_seen_in_training(
    a_run: Path, lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_run(tmp_path / "b-run", lake, val_fraction=0.5)
    page = ["--out", str(tmp_path / "page.html")]
    run(["compare", str(a_run), str(other), "--lake", lake, "--label-column", "label", *page])
    assert "may have seen some of them" in capsys.readouterr().out
    run(["compare", str(a_run), str(other), "--retrieval-lake", lake, *page])
    shown = capsys.readouterr().out
    assert "may have seen" not in shown
    assert "Among 40 images and 80 captions" in shown
    assert "validated on different rows" in shown


def test_invalid_comparisons_are_rejected(a_run: Path, lake: str, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "page.html")]
    other = str(make_run(tmp_path / "b-run", lake))
    with pytest.raises(ConfigError, match="no runs to compare"):
        run(["compare", *out])
    with pytest.raises(ConfigError, match="1 run to compare") as error:
        run(["compare", str(a_run), *out])
    assert f"lakeclip evaluate report --run {a_run}" in error.value.next_step
    with pytest.raises(ConfigError, match="11 runs to compare"):
        run(["compare", *[str(a_run)] * 11, *out])
    with pytest.raises(ConfigError, match="is compared with itself"):
        run(["compare", str(a_run), other, f"{a_run}/checkpoints/last.ckpt", *out])
    with pytest.raises(CheckpointError, match="not a run with a checkpoint"):
        run(["compare", str(a_run), str(tmp_path), *out])
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        run(["compare", str(a_run), str(tmp_path / "gone"), *out])
    with pytest.raises(ConfigError, match="needs labels"):
        run(["compare", str(a_run), other, "--lake", lake, *out])
    with pytest.raises(ConfigError, match="needs data"):
        run(["compare", str(a_run), other, "--label-column", "label", *out])
    with pytest.raises(OutputError, match="cannot write"):
        run(["compare", str(a_run), other, "--out", str(tmp_path / "no/such/page.html")])
    assert not (tmp_path / "page.html").exists()


def test_report_of_an_older_run(a_run: Path) -> None:
    """Report a run without clock and row counts; its unusable rows and skipped steps are still listed."""
    (a_run / "quarantine.jsonl").write_text('{"lake": "x", "row": 7, "reason": "cut off"}\n')
    (a_run / "skipped.jsonl").write_text('{"step": 2, "fault": "the loss is nan"}\n')
    page = make_report(a_run, encode=EncodeConfig(device="cpu")).page.read_text()
    assert "over-time" not in page.partition("</style>")[2]
    assert "cut off" in page
    assert "the loss is nan" in page
    card = (a_run / "MODEL_CARD.md").read_text()
    digest = hashlib.sha256((a_run / "checkpoints/last.ckpt").read_bytes()).hexdigest()
    assert f"| checkpoints/last.ckpt | sha256 {digest}" in card
    assert 'lakeclip.load("checkpoints/last.ckpt")' in card
    assert "| cut off | 1: row 7 |" in card
    assert "To cite the data: " in card
