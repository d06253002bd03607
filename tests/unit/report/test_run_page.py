from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lakeclip.errors import OutputError
from lakeclip.evaluation.forgetting import Forgetting, InterpolationPoint
from lakeclip.evaluation.prompts import TemplateSet
from lakeclip.evaluation.retrieval import Ranking, RetrievalResult
from lakeclip.evaluation.run import ZeroShotTestResult
from lakeclip.evaluation.zeroshot import ZeroShotResult
from lakeclip.report.charts import draw_charts
from lakeclip.report.curves import Curves
from lakeclip.report.data_summary import DataSummary, SkippedStep, Unusable, read_data_summary
from lakeclip.report.embedding_map import EmbeddingMap, embedding_map
from lakeclip.report.gallery import CaptionQuery, Gallery, ImageHit, ImageQuery, Picture, TextHit
from lakeclip.report.run_page import RetrievalSection, write_report
from lakeclip.report.run_summary import RunSummary, SummaryGroup, summarize_run

EVIL = "<script>alert(1)</script>\" onload='x' & {{ 7*7 }}"
SUMMARY = RunSummary("run-1", "ViT-B/32", (SummaryGroup("Data", (("lake", "/lakes/x"), ("rows", "1,234"))),))
CURVES: Curves = {
    "train/loss": [(step, 5.0 - step / 50) for step in range(1, 101)],
    "train/lr": [(step, 1e-3) for step in range(1, 101)],
    "val/loss": [(50, 4.2), (100, 3.4)],
    "val/image_to_text_R@1": [(50, 0.1), (100, 0.25)],
}
TIMED: Curves = CURVES | {"train/seconds": [(step, 3.0 * step) for step in range(1, 101)]}
DATA = DataSummary(
    (("/lakes/x", "abc@3"),),
    "a > 1",
    total_rows=2000,
    kept_rows=1000,
    train_rows=980,
    val_rows=20,
    val_lake=None,
    samples_seen=2450,
    unusable=(Unusable("the image cannot be decoded (… bytes)", 7, ("3", "14")),),
    skipped_steps=(SkippedStep(12, "the loss is nan"),),
)
VOID = {"meta", "img", "link", "br", "hr", "input"}


def pixel() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(buffer, "PNG")
    return buffer.getvalue()


def result(num_classes: int = 3, *, name: str = "class {}", right: int = 8) -> ZeroShotResult:
    confusion = np.full((num_classes, num_classes), 1)
    np.fill_diagonal(confusion, right)
    names = tuple(name.replace("{}", str(i)) for i in range(num_classes))
    top1 = float(np.trace(confusion) / confusion.sum())
    return ZeroShotResult(names, confusion, top1, 1.0, TemplateSet("simple", "", ("a photo of a {}.",)))


def gallery(caption: str) -> Gallery:
    picture = Picture(pixel(), "image/png", caption)
    hits = (ImageHit(picture, 0.9, True), ImageHit(picture, 0.5, False))
    texts = (TextHit(caption, 0.8, False), TextHit("fine", 0.1, True))
    return Gallery((CaptionQuery(caption, hits, 1, 600),), (ImageQuery(picture, texts, 2, 900),), "memory")


class Page(HTMLParser):
    """A parser that checks that tags are balanced, and collects tags, attributes and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def write(tmp_path: Path, **parts: object) -> Page:
    given = {"summary": SUMMARY, "curves": {}} | parts
    path = write_report(tmp_path, **given)  # type: ignore[arg-type]
    assert path == tmp_path / "report.html"
    return Page(path.read_text("utf-8"))


def test_page_with_all_sections(tmp_path: Path) -> None:
    ranking = Ranking({1: 0.5, 5: 0.75, 10: 1.0}, 2.0, 0.625)
    page = write(
        tmp_path,
        curves=CURVES,
        zeroshot=[
            ZeroShotTestResult("Unseen pairs", result(), "Never shown."),
            ZeroShotTestResult("Seen pairs", result()),
        ],
        retrieval=RetrievalSection(RetrievalResult(ranking, ranking, 600, 1200), "Rows held out."),
        gallery=gallery("a dog"),
    )
    assert "Unseen pairs: 80.0%, 2.4× chance" in page.text
    assert "Random guessing would reach 33.3%" in page.text
    for text in (
        "Loss",
        "Retrieval on the validation split",
        "Most common mistakes",
        "Classes, hardest first",
        "Images found by captions",
    ):
        assert text in page.text
    assert "/lakes/x" in page.text
    assert "rank 1 of 600" in page.text
    assert "Rows held out." in page.text
    assert page.tags.count("svg") == 3
    assert "input" not in page.tags, "a single axis needs no switch"


def test_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    page = write(tmp_path, curves=CURVES, zeroshot=[ZeroShotTestResult("x", result(30))], gallery=gallery("a dog"))
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "action"):
            assert value is not None
            assert value.startswith(("data:image/", "#")), (tag, name)
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_text_from_data_is_escaped(tmp_path: Path) -> None:
    summary = RunSummary(EVIL, EVIL, (SummaryGroup("Data", (("lake", EVIL),)),))
    section = ZeroShotTestResult(EVIL, result(name=EVIL + "{}"), EVIL)
    page = write(tmp_path, summary=summary, curves=CURVES, zeroshot=[section], gallery=gallery(EVIL))
    assert "script" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert EVIL in page.text
    assert ("img", "alt", EVIL) in page.attributes


def test_correct_and_wrong_hits_do_not_rely_on_colour(tmp_path: Path) -> None:
    page = write(tmp_path, gallery=gallery("a dog"))
    assert page.text.count("✓ correct") == page.text.count("✗ wrong") == 2
    frames = [
        value for tag, name, value in page.attributes if (tag, name) == ("div", "class") and "frame" in str(value)
    ]
    assert frames == ["frame", "frame wrong"]


def test_images_are_embedded(tmp_path: Path) -> None:
    page = write(tmp_path, gallery=gallery("a dog"))
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(sources) == 3
    assert base64.b64decode(str(sources[0]).partition(",")[2]) == pixel()


@pytest.mark.parametrize("num_classes", [2, 8, 24])
def test_few_classes_are_a_table_with_names(tmp_path: Path, num_classes: int) -> None:
    page = write(tmp_path, zeroshot=[ZeroShotTestResult("x", result(num_classes))])
    titles = [value for tag, name, value in page.attributes if (tag, name) == ("td", "title")]
    assert len(titles) == num_classes**2
    assert f"class 0 predicted as class 1: 1 of {8 + num_classes - 1}" in titles
    assert "img" not in page.tags
    assert "details" not in page.tags


def test_many_classes_are_an_image_and_a_collapsed_table(tmp_path: Path) -> None:
    page = write(tmp_path, zeroshot=[ZeroShotTestResult("x", result(100))])
    source = next(str(value) for tag, name, value in page.attributes if (tag, name) == ("img", "src"))
    image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert (image.size, image.mode) == ((100, 100), "RGBA")
    assert image.getpixel((5, 5))[3] > image.getpixel((5, 6))[3] > 0
    assert "the other 85 classes" in page.text
    assert "class 99" in page.text


def test_classes_without_images_and_without_mistakes(tmp_path: Path) -> None:
    confusion = np.array([[4, 0, 0], [0, 4, 0], [0, 0, 0]])
    perfect = ZeroShotResult(("a", "b", "c"), confusion, 1.0, 1.0, TemplateSet("t", "", ("{}",)))
    page = write(tmp_path, zeroshot=[ZeroShotTestResult("x", perfect)])
    assert "no images" in page.text
    assert "None." in page.text


def test_score_within_chance_is_reported(tmp_path: Path) -> None:
    page = write(tmp_path, zeroshot=[ZeroShotTestResult("x", result(3, right=1))])
    assert "does not differ significantly from guessing" in page.text


def test_page_without_scores(tmp_path: Path) -> None:
    page = write(tmp_path)
    assert "Trained ViT-B/32" in page.text
    assert "Training" not in page.text


def test_headline_without_zero_shot_is_retrieval(tmp_path: Path) -> None:
    ranking = Ranking({1: 0.5, 5: 0.75, 10: 1.0}, 2.5, 0.625)
    page = write(tmp_path, retrieval=RetrievalSection(RetrievalResult(ranking, ranking, 10, 20)))
    assert "Text → image retrieval: 50.0% R@1" in page.text


def test_old_report_is_replaced_without_leftovers(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, curves=CURVES)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_report(tmp_path / "gone", summary=SUMMARY, curves={})


def test_charts_use_the_page_colours_and_unique_ids() -> None:
    charts = draw_charts(TIMED)
    assert [chart.title for chart in charts] == ["Loss", "Retrieval on the validation split", "Learning rate"]
    assert charts[0].latest == ("3", "3.4")
    assert charts[1].latest == ("25.0%",)
    assert "training 4.98 at the start, 3 at the end" in charts[0].summary
    assert [[axis.label for axis, _ in chart.views] for chart in charts] == [["step", "minutes"]] * 3
    ids = [name for chart in charts for _, svg in chart.views for name in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    for _, svg in (view for chart in charts for view in chart.views):
        assert svg.startswith("<svg")
        assert "var(--series-" in svg
        assert "width=" not in svg[: svg.index(">")]
        for used in re.findall(r'(?:url\(|href=")#([^")]+)', svg):
            assert used in ids


def test_axes_are_switched_without_scripts(tmp_path: Path) -> None:
    page = write(
        tmp_path,
        curves=TIMED,
        forgetting=Forgetting("x", 0.9, (InterpolationPoint(0.0, 0.1, 0.9), InterpolationPoint(1.0, 0.5, 0.6))),
    )
    names = [value for tag, name, value in page.attributes if (tag, name) == ("input", "id")]
    assert names == ["over-steps", "over-time"]
    assert [value for tag, name, value in page.attributes if (tag, name) == ("label", "for")] == names
    views = [str(value) for tag, name, value in page.attributes if name == "class" and "view " in str(value)]
    assert views.count("view over-steps") == views.count("view over-time") == 3
    assert views.count("view only") == 1, "what is not over time is always there"
    css = (tmp_path / "report.html").read_text()
    assert all(f"#{name}:checked ~ .charts .{name} {{ display: block; }}" in css for name in names)


def dots(num: int = 40) -> EmbeddingMap:
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(num, 8), dim=1)
    labels = [f"{EVIL}{index % 12}" for index in range(num)]
    embeddings = embedding_map(features, [()] * num, labels=labels, predictions=labels[1:] + labels[:1], about=EVIL)
    assert embeddings is not None
    return embeddings


def test_map_is_embedded_and_escaped(tmp_path: Path) -> None:
    page = write(tmp_path, embeddings=dots())
    assert page.tags.count("circle") == page.tags.count("title") - 1 == 40
    assert "script" not in page.tags
    assert "2 more" in page.text
    assert f"{EVIL}0, predicted as {EVIL}1" in page.text
    radii = [value for tag, name, value in page.attributes if (tag, name) == ("circle", "class")]
    assert all("ring" in str(value) for value in radii if "s0" not in str(value))


def test_use_of_the_rows(tmp_path: Path) -> None:
    page = write(tmp_path, summary=RunSummary("a", "b", (), DATA))
    assert "in the lake 2,000 100.0% kept by the query 1,000 50.0% trained on 980 49.0%" in page.text
    assert "the image cannot be decoded (… bytes) 7 rows: 3, 14, …" in page.text
    assert "1 step skipped step 12 the loss is nan" in page.text


def test_summary_from_a_lineage() -> None:
    lineage = {
        "version": "0.1.0",
        "model": {"name": "ViT-B/32", "config": {"embed_dim": 512}},
        "image_size": 224,
        "tokenizer": {"kind": "clip-bpe", "context_length": 77, "fingerprint": ""},
        "data": {"path": "/lakes/x", "version": "abc@3", "query": "a > 1", "rows": 1000},
        "config": {
            "data": {"batch_size": 64, "val_fraction": 0.02, "resize_ratio": 0.75, "seed": 0},
            "optimizer": {"lr": None, "weight_decay": 0.2, "warmup_steps": None},
            "trainer": {"precision": "32"},
        },
        "progress": {"step": 1500, "epoch": 3, "samples_seen": 2500, "seconds": 3725.2},
    }
    data = read_data_summary(Path("nowhere"), lineage)
    summary = summarize_run("demo", lineage, num_parameters=151_277_313, curves=CURVES, data=data)
    values = {label: value for group in summary.groups for label, value in group.rows}
    assert summary.model == "ViT-B/32"
    assert values["lake"] == "/lakes/x"
    assert values["query"] == "a > 1"
    assert values["parameters"] == "151.3 million"
    assert values["peak learning rate"] == "0.001"
    assert values["passes over the data"] == "2.5"
    assert values["training time"] == "1 h 2 min"
    assert values["seed"] == "0"
    assert "warm-up" not in values
    assert "rows in the lake" not in values, "an older checkpoint does not know"
