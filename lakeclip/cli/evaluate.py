"""`lakeclip evaluate`: how good a trained model is. Scores on screen and as JSON, and a run's report."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lakeclip.cli.report import Effort, ZeroShotTest, load_model, make_report, retrieve, score
from lakeclip.config.schema import DataConfig
from lakeclip.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from lakeclip.evaluation.retrieval import RetrievalResult
    from lakeclip.evaluation.zeroshot import ZeroShotResult

#: Rows of a table on the screen; the JSON file has them all.
_MAX_SHOWN_CLASSES = 20


@dataclass(frozen=True)
class ZeroShot:
    """Classify a lake's images by the class names alone, and count how many are right."""

    checkpoint: str
    """A run folder or a .ckpt file; or openai:FILE, open_clip:FILE, huggingface:FOLDER."""
    lake: str
    """Deep Lake dataset with images and labels."""
    label_column: str
    """Column with the labels: texts, or integers together with --classes."""
    query: str | None = None
    """Which rows to score: the WHERE clause of a Deep Lake query."""
    templates: str = "simple"
    """Sentences for the class names: simple, openai-7, openai-80, cifar, scenes, or a file with one a line, {} for
    the name."""
    classes: str | None = None
    """Names to choose among: a file with one a line, or cat,dog,… Default: the labels that there are."""
    image_column: str | None = None
    """Column with the encoded images. Default: found by its name and type."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    """Write all figures to this file as well."""
    effort: Annotated[Effort, tyro.conf.arg(name="")] = field(default_factory=Effort)


@dataclass(frozen=True)
class Retrieval:
    """Find each image's captions among all, and each caption's image."""

    checkpoint: str
    """A run folder or a .ckpt file; or openai:FILE, open_clip:FILE, huggingface:FOLDER."""
    lake: str | None = None
    """Deep Lake dataset with images and captions."""
    folder: str | None = None
    """Folder of pairs instead of a lake: images and .txt captions that share a stem."""
    query: str | None = None
    """Which rows of the lake to score: the WHERE clause of a Deep Lake query."""
    image_column: str | None = None
    """Column with the encoded images. Default: found by its name and type."""
    caption_column: str | None = None
    """Column with the captions. Default: found by its name and type."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    """Write the figures to this file as well."""
    effort: Annotated[Effort, tyro.conf.arg(name="")] = field(default_factory=Effort)


@dataclass(frozen=True)
class Probe:
    """Fit a linear classifier on the model's image features (its tower is frozen), and score it on other images."""

    checkpoint: str
    """A run folder or a .ckpt file; or openai:FILE, open_clip:FILE, huggingface:FOLDER."""
    lake: str
    """Deep Lake dataset with images and labels to train the classifier on."""
    test_lake: str
    """… and one to score it on."""
    label_column: str
    """Column with the labels, in both: texts, or integers together with --classes."""
    query: str | None = None
    """Which rows of --lake to train on: the WHERE clause of a Deep Lake query."""
    classes: str | None = None
    """Names of the classes: a file with one a line, or cat,dog,… Default: the labels of --lake."""
    few: tuple[int, ...] = ()
    """Also with so many examples a class, e.g. --few 1 4 16: the mean of three draws."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    """Write all figures to this file as well."""
    effort: Annotated[Effort, tyro.conf.arg(name="")] = field(default_factory=Effort)


@dataclass(frozen=True)
class Report:
    """Write a run's report.html anew: curves, retrieval on its validation rows, a zero-shot test if one is named."""

    run: str
    """The run's folder."""
    lake: str | None = None
    """Deep Lake dataset with images and labels, for a zero-shot test."""
    label_column: str | None = None
    """Its column with the labels."""
    query: str | None = None
    """Which of its rows to score."""
    templates: str = "simple"
    """Sentences for the class names: a set's name or a file."""
    classes: str | None = None
    """Names to choose among: a file with one a line, or cat,dog,…"""
    match_column: str | None = None
    """Column of the run's own data: images with the same value count as the same thing in the gallery."""
    effort: Annotated[Effort, tyro.conf.arg(name="")] = field(default_factory=Effort)


_Verb = (
    Annotated[ZeroShot, tyro.conf.subcommand("zeroshot")]
    | Annotated[Retrieval, tyro.conf.subcommand("retrieval")]
    | Annotated[Probe, tyro.conf.subcommand("probe")]
    | Annotated[Report, tyro.conf.subcommand("report")]
)


def run(argv: list[str]) -> None:
    """Parse the flags, evaluate, and show what came out.

    Raises:
        LakeclipError: of the kind that says what is wrong: flags, checkpoint, data, device or output.
    """
    verb: ZeroShot | Retrieval | Probe | Report = tyro.cli(
        _Verb,
        args=argv,
        prog="lakeclip evaluate",
        description="How good a trained model is.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if isinstance(verb, ZeroShot):
        evaluate_zeroshot(verb)
    elif isinstance(verb, Retrieval):
        evaluate_retrieval(verb)
    elif isinstance(verb, Probe):
        evaluate_probe(verb)
    else:
        evaluate_report(verb)


def evaluate_zeroshot(flags: ZeroShot) -> None:
    """`lakeclip evaluate zeroshot`."""
    json_file = _writable(flags.json_file)
    test = ZeroShotTest(
        "", flags.lake, flags.label_column, query=flags.query, templates=flags.templates, classes=flags.classes
    )
    model = load_model(flags.checkpoint, flags.effort)
    section = score(test, model, flags.effort, image_column=flags.image_column)
    _save(json_file, {"checkpoint": flags.checkpoint, "lake": flags.lake, **section.result.to_json()})
    _show_zeroshot(section.result)


def evaluate_retrieval(flags: Retrieval) -> None:
    """`lakeclip evaluate retrieval`."""
    from lakeclip.lake.pairs import open_pairs

    json_file = _writable(flags.json_file)
    source = open_pairs(
        DataConfig(
            lake=flags.lake,
            folder=flags.folder,
            query=flags.query,
            image_column=flags.image_column,
            caption_column=flags.caption_column,
        )
    )
    model = load_model(flags.checkpoint, flags.effort)
    images, result = retrieve(model, source, flags.effort)
    where = flags.lake or flags.folder
    num_undecodable = len(images.undecodable)
    content = {"checkpoint": flags.checkpoint, "data": where, **result.to_json(), "num_undecodable": num_undecodable}
    _save(json_file, content)
    _show_retrieval(result, num_undecodable)


def evaluate_probe(flags: Probe) -> None:
    """`lakeclip evaluate probe`."""
    import torch

    from lakeclip.evaluation.encode import encode_images
    from lakeclip.evaluation.labels import parse_classes, read_labels
    from lakeclip.evaluation.probe import linear_probe
    from lakeclip.lake.dataset import open_lake

    json_file = _writable(flags.json_file)
    train, test = open_lake(flags.lake, flags.query), open_lake(flags.test_lake)
    classes = parse_classes(flags.classes) if flags.classes is not None else None
    labels = read_labels(train, flags.label_column, classes)
    # The names of the first are those of the second; its labels may be fewer.
    names = classes or sorted({str(value) for value in train.column(flags.label_column) if value})
    model = load_model(flags.checkpoint, flags.effort)
    sides = []
    for source, known in ((train, labels), (test, read_labels(test, flags.label_column, names))):
        images = encode_images(
            model.model,
            source,
            model.transform,
            positions=known.positions,
            with_captions=False,
            batch_size=flags.effort.batch_size,
            num_workers=flags.effort.num_workers,
        )
        target_of = dict(zip(known.positions, known.targets, strict=True))
        sides += [images.features.cpu(), torch.tensor([target_of[position] for position in images.positions])]
    result = linear_probe(*sides, few=flags.few)
    _save(
        json_file,
        {"checkpoint": flags.checkpoint, "lake": flags.lake, "test_lake": flags.test_lake, **result.to_json()},
    )
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("top-1", f"[bold]{result.top1:.1%}[/]", f"the most frequent class would get {result.chance:.1%}")
    for number, share in result.few.items():
        table.add_row(f"{number} a class", f"{share:.1%}")
    table.add_row("images", f"{result.num_train:,} to train on, {result.num_test:,} to score")
    table.add_row("1/C", f"{result.regularisation:.3g}", f"the best of {len(result.sweep)} on a fifth of the former")
    _console().print(table)


def evaluate_report(flags: Report) -> None:
    """`lakeclip evaluate report`."""
    tests = []
    if flags.lake is not None:
        if flags.label_column is None:
            raise ConfigError("a zero-shot test needs labels", next_step="--label-column COLUMN, beside --lake")
        title = f"Zero-shot on {Path(flags.lake).name}"
        tests.append(
            ZeroShotTest(
                title,
                flags.lake,
                flags.label_column,
                query=flags.query,
                templates=flags.templates,
                classes=flags.classes,
            )
        )
    elif flags.label_column or flags.query or flags.classes:
        raise ConfigError("a zero-shot test needs data", next_step="--lake LAKE, beside --label-column COLUMN")
    page, _ = make_report(Path(flags.run), tests, match_column=flags.match_column, effort=flags.effort)
    _console().print(f"report: {escape(str(page))}", soft_wrap=True)


def _writable(file: str | None) -> Path | None:
    """Find out before the work whether its result can be written; what is there stays until then."""
    if file is None:
        return None
    path = Path(file)
    existed = path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise OutputError(f"cannot write {path}", found=error.strerror or str(error)) from None
    if not existed:
        path.unlink()
    return path


def _save(path: Path | None, content: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}", found=error.strerror or str(error)) from None


def _console() -> Console:
    # A pipe has no width: there nothing is cut off.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def _show_zeroshot(result: ZeroShotResult) -> None:
    low, high = result.interval
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row(
        "top-1", f"[bold]{result.top1:.1%}[/]", f"{result.top1 / result.chance:.1f}× chance ({result.chance:.1%})"
    )
    table.add_row("", "", f"{low:.1%} to {high:.1%} with 95% confidence")
    if len(result.classes) > 5:
        table.add_row("top-5", f"{result.top5:.1%}")
    table.add_row("mean per class", f"{result.mean_per_class:.1%}")
    table.add_row("images", f"{result.num_samples:,}")
    if result.num_unlabelled:
        table.add_row("", "", f"{result.num_unlabelled:,} more have no label and were left out")
    if result.num_undecodable:
        table.add_row("", "", f"{result.num_undecodable:,} more could not be decoded and were left out")
    sentences = result.templates.templates
    more = f" and {len(sentences) - 1} more" if len(sentences) > 1 else ""
    table.add_row("prompts", escape(result.templates.name), escape(f"{sentences[0]!r}{more}"))
    console = _console()
    console.print(table)
    hardest = sorted(result.per_class, key=lambda score: (score.accuracy is None, score.accuracy))
    taken_for = {true: (wrong, count) for true, wrong, count in reversed(result.confusions(len(result.classes) ** 2))}
    classes = Table(box=None, padding=(0, 2, 0, 0), title="\nhardest first", title_justify="left")
    for heading in ("class", "images", "found", "precision", "most often taken for"):
        classes.add_column(heading, justify="right" if heading in ("images", "found", "precision") else "left")
    for one in hardest[:_MAX_SHOWN_CLASSES]:
        wrong, count = taken_for.get(one.name, ("", 0))
        classes.add_row(
            escape(one.name),
            f"{one.num_samples:,}",
            "–" if one.accuracy is None else f"{one.accuracy:.0%}",
            "–" if one.precision is None else f"{one.precision:.0%}",
            escape(f"{wrong} ({count})") if count else "",
        )
    console.print(classes)
    if len(hardest) > _MAX_SHOWN_CLASSES:
        console.print(f"… and {len(hardest) - _MAX_SHOWN_CLASSES} easier classes: --json FILE has them all")


def _show_retrieval(result: RetrievalResult, num_undecodable: int) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for heading in ("image → text", "text → image"):
        table.add_column(heading, justify="right")
    both = (result.image_to_text, result.text_to_image)
    for k in both[0].recall:
        table.add_row(f"R@{k}", *(f"{ranking.recall[k]:.1%}" for ranking in both))
    table.add_row("median rank", *(f"{ranking.median_rank:,g}" for ranking in both))
    console = _console()
    console.print(table)
    console.print(f"among {result.num_images:,} images and {result.num_texts:,} captions")
    if num_undecodable:
        console.print(f"{num_undecodable:,} more images could not be decoded and were left out")
