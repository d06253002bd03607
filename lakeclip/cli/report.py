"""A run's scores and its report, as `lakeclip evaluate`, `lakeclip train` and `lakeclip demo` make them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lakeclip.config.schema import DataConfig
from lakeclip.errors import ConfigError, DataError, DeviceError, LakeclipError, LakeError

if TYPE_CHECKING:
    import torch

    from lakeclip.checkpoints.native import LoadedModel
    from lakeclip.evaluation.embedding_map import EmbeddingMap
    from lakeclip.evaluation.encode import EncodedImages
    from lakeclip.evaluation.pages.report import ZeroShotSection
    from lakeclip.evaluation.retrieval import RetrievalResult
    from lakeclip.lake.dataset import Lake
    from lakeclip.lake.rows import RowSource


@dataclass(frozen=True)
class Effort:
    """How the images are encoded."""

    batch_size: int = 128
    """Images encoded at once."""
    num_workers: int = 0
    """Processes that read and decode; 0 to do it in this one, in a thread for each core."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Literal["32", "bf16"] = "32"
    """Arithmetic. In bfloat16 features differ by about 0.002, and take half the time or less where the processor has
    instructions for it."""


@dataclass(frozen=True)
class ZeroShotTest:
    """A zero-shot test that a report holds: what to call it, what it says about the model, and its data."""

    title: str
    lake: str
    label_column: str
    about: str = ""
    query: str | None = None
    templates: str = "simple"
    classes: str | None = None


def make_report(
    folder: Path, tests: Sequence[ZeroShotTest] = (), *, match_column: str | None = None, effort: Effort | None = None
) -> tuple[Path, list[ZeroShotSection]]:
    """Score a run and write its report.html and MODEL_CARD.md: what `lakeclip evaluate report` and `lakeclip demo` do.

    Retrieval and the gallery are over the rows that the run validated on, as its checkpoint tells. Where those cannot
    be read any more, the page goes without, and a note says so.

    Args:
        folder: the run's.
        tests: zero-shot tests; the first is the headline.
        match_column: of the run's own data; images with the same value count as the same thing in the gallery.

    Returns:
        The page, and the tests with their results.

    Raises:
        LakeclipError: no checkpoint, a test's data is wrong, or the page cannot be written.
    """
    from lakeclip.checkpoints.exports import FORMATS
    from lakeclip.checkpoints.folder import LAST, MIXED
    from lakeclip.checkpoints.native import read_checkpoint
    from lakeclip.evaluation.forgetting import read_forgetting
    from lakeclip.evaluation.pages.account import read_account
    from lakeclip.evaluation.pages.card import write_card
    from lakeclip.evaluation.pages.facts import run_facts
    from lakeclip.evaluation.pages.gallery import retrieval_gallery
    from lakeclip.evaluation.pages.history import read_curves
    from lakeclip.evaluation.pages.report import RetrievalSection, write_report
    from lakeclip.models.clip import CLIP

    effort = effort or Effort()
    if not folder.is_dir():
        raise ConfigError(f"there is no run at {folder}", allowed="the folder of a run, as `lakeclip train` leaves it")
    found = read_checkpoint(folder)
    lineage = found.lineage
    model = load_model(str(folder), effort)
    sections = [score(test, model, effort) for test in tests]
    retrieval = gallery = embeddings = None
    try:
        source, positions, about = validation_rows(lineage)
        images, result = retrieve(model, source, effort, positions)
        retrieval = RetrievalSection(result, about)
        gallery = retrieval_gallery(
            *model, source, positions=positions, match_column=match_column, batch_size=effort.batch_size
        )
        gallery = replace(gallery, source=about)
        if not tests:
            embeddings = _map_of_rows(images, source, match_column, about)
    except LakeclipError as error:
        sys.stderr.write(f"note: the report goes without retrieval. {error}\n")
    if tests:
        embeddings = _map_of_test(tests[0], model, effort)
    curves = read_curves(folder / "metrics.csv")
    facts = run_facts(
        folder.resolve().name,
        lineage,
        num_parameters=sum(parameter.numel() for parameter in model.model.parameters()),
        curves=curves,
        account=read_account(folder, lineage),
    )
    forgetting = read_forgetting(folder)
    page = write_report(
        folder,
        facts=facts,
        curves=curves,
        zeroshot=sections,
        retrieval=retrieval,
        gallery=gallery,
        embeddings=embeddings,
        forgetting=forgetting,
    )
    write_card(
        folder,
        facts,
        zeroshot=sections,
        retrieval=retrieval,
        forgetting=forgetting,
        checkpoints=[
            found.path,
            *(path for path in (folder / LAST, folder / MIXED) if path.is_file() and path != found.path),
        ],
        layouts=tuple(FORMATS) if isinstance(model.model, CLIP) else (),
    )
    return page, sections


def _map_of_rows(images: EncodedImages, source: RowSource, match_column: str | None, about: str) -> EmbeddingMap | None:
    """The map of validation rows, coloured by a column where one is named."""
    from lakeclip.data.order import draw_sample
    from lakeclip.evaluation.embedding_map import MAX_IMAGES, embedding_map

    chosen = draw_sample(range(len(images.positions)), MAX_IMAGES)
    labels = None
    if match_column:
        values = source.column(match_column)
        labels = ["" if values[at] is None else str(values[at]) for at in (images.positions[i] for i in chosen)]
    return embedding_map(
        images.features[chosen], [images.captions[index] for index in chosen], labels=labels, about=about
    )


def _map_of_test(test: ZeroShotTest, model: LoadedModel, effort: Effort) -> EmbeddingMap | None:
    """The map of a zero-shot test's images, coloured by what they show, with what the model calls them."""
    from lakeclip.data.order import draw_sample
    from lakeclip.evaluation.classifier import classifier_weights
    from lakeclip.evaluation.embedding_map import MAX_IMAGES, embedding_map
    from lakeclip.evaluation.encode import encode_images
    from lakeclip.evaluation.labels import parse_classes, read_labels
    from lakeclip.evaluation.prompts import find_templates
    from lakeclip.lake.dataset import open_lake

    source = open_lake(test.lake, test.query)
    labels = read_labels(source, test.label_column, parse_classes(test.classes) if test.classes is not None else None)
    images = encode_images(
        model.model,
        source,
        model.transform,
        positions=draw_sample(labels.positions, MAX_IMAGES),
        with_captions=_has_captions(source),
        batch_size=effort.batch_size,
        num_workers=effort.num_workers,
    )
    weights = classifier_weights(model.model, model.tokenize, labels.classes, find_templates(test.templates).templates)
    nearest = (images.features @ weights.T).argmax(dim=1).tolist()
    target_of = dict(zip(labels.positions, labels.targets, strict=True))
    return embedding_map(
        images.features,
        images.captions,
        labels=[labels.classes[target_of[position]] for position in images.positions],
        answers=[labels.classes[index] for index in nearest],
        about=f"{test.title}, {source.path}.",
    )


def _has_captions(lake: Lake) -> bool:
    try:
        return bool(lake.caption_column)
    except LakeError:
        return False


def validation_rows(lineage: dict[str, Any]) -> tuple[RowSource, list[int], str]:
    """The rows that a run validated on, or, where it held out none, those that it trained on; and which."""
    import numpy as np

    from lakeclip.data.order import Order
    from lakeclip.data.plan import every_place, make_plans
    from lakeclip.lake.pairs import open_pairs

    # A checkpoint may be older than a setting, or know one that is no more.
    known = {name.name for name in fields(DataConfig)}
    data = DataConfig(**{name: value for name, value in lineage["config"]["data"].items() if name in known})
    path = lineage["data"]["path"]
    if data.val_lake:
        source = open_pairs(DataConfig(lake=data.val_lake))
        rows = every_place(source)
        about = f"From the validation data, {source.path}."
    elif path:
        lake, folder = (None, path) if data.folder else (path, None)
        # A script of the user's own has its query in the lineage alone.
        query = data.query if data.lake else lineage["data"]["query"]
        source = open_pairs(replace(data, lake=lake, folder=folder, query=query, weights=None))
        _, rows = make_plans(source, data.val_fraction, seed=0, shuffle=False)
        which = "Rows that training never saw, held out from"
        if not len(rows):
            rows = every_place(source)
            which = "Rows that the model was trained on, from"
        about = f"{which} {source.path}."
        if lineage["data"]["version"] not in ("", source.version):
            # Rows that were added do not move the others, but rows that were deleted or queried anew do.
            about += " The lake has changed since the run, so they may not be quite the same rows."
    else:
        raise DataError("the run was trained from a dataloader of the user's own, which the checkpoint does not hold")
    # As the data module draws them, where there are more than it validates on.
    places = Order(len(rows), seed=0).rows(0, np.arange(min(len(rows), data.max_val_rows)))
    return source, sorted(rows[places].tolist()), about


def score(
    test: ZeroShotTest, model: LoadedModel, effort: Effort, *, image_column: str | None = None
) -> ZeroShotSection:
    """Run a zero-shot test."""
    from lakeclip.evaluation.labels import parse_classes, read_labels
    from lakeclip.evaluation.pages.report import ZeroShotSection
    from lakeclip.evaluation.prompts import find_templates
    from lakeclip.evaluation.remembered import remembered_classifiers
    from lakeclip.evaluation.zeroshot import zero_shot
    from lakeclip.lake.dataset import open_lake

    templates = find_templates(test.templates)
    classes = parse_classes(test.classes) if test.classes is not None else None
    source = open_lake(test.lake, test.query, image_column=image_column)
    labels = read_labels(source, test.label_column, classes)
    result = zero_shot(
        *model,
        source,
        labels,
        templates,
        batch_size=effort.batch_size,
        num_workers=effort.num_workers,
        remembered=remembered_classifiers(),
    )
    return ZeroShotSection(test.title, result, test.about)


def retrieve(
    model: LoadedModel, source: RowSource, effort: Effort, positions: list[int] | None = None
) -> tuple[EncodedImages, RetrievalResult]:
    """Encode a source's images and captions, and let each find the other."""
    import torch

    from lakeclip.evaluation.encode import encode_images, encode_texts
    from lakeclip.evaluation.retrieval import retrieval_metrics

    images = encode_images(
        model.model,
        source,
        model.transform,
        positions=positions,
        batch_size=effort.batch_size,
        num_workers=effort.num_workers,
    )
    texts = [text for captions in images.captions for text in captions]
    if not texts:
        raise DataError(
            f"{source.path} has no captions to retrieve", next_step="a lake with captions, or --caption-column"
        )
    features = encode_texts(model.model, model.tokenize, texts)
    owners = torch.tensor([image for image, captions in enumerate(images.captions) for _ in captions])
    return images, retrieval_metrics(images.features, features, owners)


def load_model(checkpoint: str, effort: Effort) -> LoadedModel:
    """The model of a run or a checkpoint, on the device and in the arithmetic that are asked for."""
    from lakeclip.checkpoints.layouts import load
    from lakeclip.models.bfloat16 import to_bfloat16

    if effort.batch_size < 1 or effort.num_workers < 0:
        raise ConfigError(
            f"--batch-size {effort.batch_size} --num-workers {effort.num_workers} cannot work",
            allowed="a batch of at least 1, and 0 or more workers",
        )
    device = _device(effort.device)
    loaded = load(checkpoint)
    if effort.precision == "bf16":
        to_bfloat16(loaded.model)
    loaded.model.to(device)
    return loaded


def _device(name: str) -> torch.device:
    import torch

    gpus = torch.cuda.device_count()
    here = ["cpu", *(f"cuda:{i}" for i in range(gpus)), *(["mps"] if torch.backends.mps.is_available() else [])]
    if name == "auto":
        return torch.device("cuda" if gpus else here[-1])
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in here:
        raise DeviceError(f"there is no device {name!r} here", found=", ".join(here), next_step="--device cpu")
    return torch.device(wanted)
