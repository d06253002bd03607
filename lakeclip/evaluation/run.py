"""Evaluate a trained model on a lake: zero-shot classification, retrieval, linear probe, robustness.

    result = lakeclip.evaluate_zeroshot("runs/first", "shards.lake", label_column="label")
    print(result.top1, result.interval)

Each function takes a checkpoint or a model that `lakeclip.load` returned, reads a lake, and returns a result with a
`to_json` method. Without the command line, the flags of `lakeclip evaluate` are the keyword arguments of these
functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lakeclip.config.schema import DataConfig
from lakeclip.errors import ConfigError, DataError, DeviceError, print_warnings

if TYPE_CHECKING:
    import torch

    from lakeclip.checkpoints.native import LoadedModel
    from lakeclip.evaluation.encode import EncodedImages
    from lakeclip.evaluation.labels import Labels
    from lakeclip.evaluation.probe import ProbeResult
    from lakeclip.evaluation.retrieval import RetrievalResult
    from lakeclip.evaluation.robustness import RobustnessResult
    from lakeclip.evaluation.zeroshot import ZeroShotResult
    from lakeclip.lake.dataset import Lake
    from lakeclip.lake.rows import RowSource


@dataclass(frozen=True)
class EncodeConfig:
    """Settings for encoding images: batch size, workers, device and precision.

    Raises:
        ConfigError: a batch size below 1 or a negative number of workers.
    """

    batch_size: int = 128
    """Images encoded at once."""
    num_workers: int = 0
    """Processes that read and decode; 0 decodes in this process, with one thread per core."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Literal["32", "bf16"] = "32"
    """Arithmetic. In bfloat16 features differ by about 0.002, and take half the time or less on processors with
    instructions for it; without them they take many times as long, which a warning says."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_workers < 0:
            raise ConfigError(
                "the batch size or the number of workers is too small",
                found=f"--batch-size {self.batch_size} --num-workers {self.num_workers}",
                allowed="a batch size of at least 1, and 0 or more workers",
            )


def evaluate_zeroshot(
    model: str | Path | LoadedModel,
    lake: str | Path,
    *,
    label_column: str,
    query: str | None = None,
    templates: str = "simple",
    classes: str | Sequence[str] | None = None,
    image_column: str | None = None,
    encode: EncodeConfig | None = None,
) -> ZeroShotResult:
    """Classify a lake's images by the class names alone, and count how many are right.

    Args:
        model: a run folder or a .ckpt file; openai:FILE, open_clip:FILE or huggingface:FOLDER; or a loaded model,
            which stays on its device and in its precision.
        lake: Deep Lake dataset with images and labels.
        label_column: column of texts, or of integers together with `classes`.
        query: WHERE clause of a Deep Lake query that selects the rows to score.
        templates: name of a set of prompts, or a file with one per line; see `find_templates`.
        classes: class names, or a file with one per line. Default: the labels in the column.
        image_column: column with the encoded images. Default: inferred from names and types.
        encode: batch size, workers, device and precision.

    Raises:
        LakeclipError: the checkpoint, the lake, its labels, the prompts or the device is wrong.
    """
    from lakeclip.evaluation.classifier import check_prompts
    from lakeclip.evaluation.classifier_cache import default_classifier_cache
    from lakeclip.evaluation.prompts import find_templates
    from lakeclip.evaluation.zeroshot import zero_shot

    encode = encode or EncodeConfig()
    template_set = find_templates(templates)
    loaded = load_model(model, encode)
    source, labels = open_labelled(lake, label_column, query=query, classes=classes, image_column=image_column)
    print_warnings(check_prompts(loaded.tokenize, labels.classes, template_set.templates))
    return zero_shot(
        *loaded,
        source,
        labels,
        template_set,
        batch_size=encode.batch_size,
        num_workers=encode.num_workers,
        cache=default_classifier_cache(),
    )


def evaluate_retrieval(
    model: str | Path | LoadedModel,
    lake: str | Path | None = None,
    *,
    folder: str | Path | None = None,
    query: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    encode: EncodeConfig | None = None,
) -> RetrievalResult:
    """Retrieve each image's captions among all captions, and each caption's image among all images.

    Args:
        model: as in `evaluate_zeroshot`.
        lake: Deep Lake dataset with images and captions.
        folder: folder of pairs instead of a lake: images and .txt captions that share a stem.
        query: WHERE clause of a Deep Lake query that selects the rows to score.
        image_column, caption_column: columns of the lake. Default: inferred from names and types.
        encode: batch size, workers, device and precision.

    Raises:
        LakeclipError: the checkpoint, the data or the device is wrong, or there are no captions.
    """
    from lakeclip.lake.pairs import open_pairs

    encode = encode or EncodeConfig()
    data = DataConfig(
        lake=None if lake is None else str(lake),
        folder=None if folder is None else str(folder),
        query=query,
        image_column=image_column,
        caption_column=caption_column,
    )
    source = open_pairs(data)
    images, result = score_retrieval(load_model(model, encode), source, encode)
    return replace(result, num_undecodable=len(images.undecodable))


def evaluate_probe(
    model: str | Path | LoadedModel,
    lake: str | Path,
    test_lake: str | Path,
    *,
    label_column: str,
    query: str | None = None,
    classes: str | Sequence[str] | None = None,
    few: Sequence[int] = (),
    encode: EncodeConfig | None = None,
) -> ProbeResult:
    """Fit a linear classifier on the model's image features, and score it on other images.

    Args:
        model: as in `evaluate_zeroshot`.
        lake: Deep Lake dataset with images and labels to train the classifier on.
        test_lake: Deep Lake dataset to score it on.
        label_column: column with the labels in both lakes.
        query: WHERE clause of a Deep Lake query that selects the rows of `lake` to train on.
        classes: class names, or a file with one per line. Default: the labels in `lake`.
        few: numbers of examples per class for additional few-shot classifiers.
        encode: batch size, workers, device and precision.

    Raises:
        LakeclipError: the checkpoint, a lake, its labels or the device is wrong, or there are too few images.
    """
    from lakeclip.evaluation.labelled import encode_labelled
    from lakeclip.evaluation.probe import linear_probe

    encode = encode or EncodeConfig()
    # A probe needs no prompts, so that numbers without names will do.
    by_number = classes is None
    train, train_labels = open_labelled(
        lake, label_column, query=query, classes=classes, numbers_are_names=by_number, warn=False
    )
    # Both lakes share one numbering of the classes; the test lake need not have all of them.
    test, test_labels = open_labelled(
        test_lake, label_column, classes=train_labels.names, numbers_are_names=by_number, warn=False
    )
    loaded = load_model(model, encode)
    train_images, test_images = (
        encode_labelled(
            loaded.model,
            loaded.transform,
            source,
            labels,
            batch_size=encode.batch_size,
            num_workers=encode.num_workers,
        )
        for source, labels in ((train, train_labels), (test, test_labels))
    )
    return linear_probe(train_images.features, train_images.targets, test_images.features, test_images.targets, few=few)


def evaluate_robustness(
    model: str | Path | LoadedModel,
    lake: str | Path,
    *,
    label_column: str,
    query: str | None = None,
    shifted: Sequence[str | Path] = (),
    corruptions: Sequence[str] = (),
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    templates: str = "simple",
    classes: str | Sequence[str] | None = None,
    image_column: str | None = None,
    seed: int = 0,
    encode: EncodeConfig | None = None,
) -> RobustnessResult:
    """Score zero-shot on a lake's images, on corrupted copies of them, and on other lakes with the same labels.

    Args:
        model: as in `evaluate_zeroshot`.
        lake: Deep Lake dataset with images and labels.
        label_column: column with the labels, also in the `shifted` lakes.
        query: WHERE clause of a Deep Lake query that selects the rows of `lake` to score.
        shifted: other lakes with the same labels.
        corruptions: names of `CORRUPTIONS`; all by default.
        severities: some of 1 (weakest) to 5.
        templates, classes, image_column: as in `evaluate_zeroshot`.
        seed: seed of the random parts of the corruptions.
        encode: batch size, workers, device and precision.

    Raises:
        LakeclipError: an unknown corruption or severity, or the checkpoint, a lake, its labels or the device is wrong.
    """
    from lakeclip.evaluation.classifier import check_prompts
    from lakeclip.evaluation.classifier_cache import default_classifier_cache
    from lakeclip.evaluation.corruptions import CORRUPTIONS, SEVERITIES
    from lakeclip.evaluation.prompts import find_templates
    from lakeclip.evaluation.robustness import robustness

    encode = encode or EncodeConfig()
    names = tuple(dict.fromkeys(corruptions)) or tuple(CORRUPTIONS)
    if unknown := [name for name in names if name not in CORRUPTIONS]:
        raise ConfigError(f"there is no corruption {unknown[0]!r}", allowed=", ".join(CORRUPTIONS))
    levels = tuple(sorted(set(severities)))
    if not levels or not set(levels) <= set(SEVERITIES):
        raise ConfigError(
            "the severities of the corruptions are out of range",
            found=f"--severities {' '.join(map(str, severities))}",
            allowed="some of 1 2 3 4 5",
        )
    template_set = find_templates(templates)
    source, labels = open_labelled(lake, label_column, query=query, classes=classes, image_column=image_column)
    others = [open_labelled(path, label_column, classes=labels.names, image_column=image_column) for path in shifted]
    loaded = load_model(model, encode)
    print_warnings(check_prompts(loaded.tokenize, labels.classes, template_set.templates))
    return robustness(
        *loaded,
        source,
        labels,
        template_set,
        corruptions=names,
        severities=levels,
        shifted=others,
        seed=seed,
        batch_size=encode.batch_size,
        num_workers=encode.num_workers,
        cache=default_classifier_cache(),
    )


@dataclass(frozen=True)
class ZeroShotTest:
    """A zero-shot test for a report: its title, its data, and a sentence on what it shows about the model."""

    title: str
    lake: str
    label_column: str
    about: str = ""
    query: str | None = None
    templates: str = "simple"
    classes: str | None = None

    def run(self, model: LoadedModel, encode: EncodeConfig) -> ZeroShotTestResult:
        """Score a model on the test's lake."""
        result = evaluate_zeroshot(
            model,
            self.lake,
            label_column=self.label_column,
            query=self.query,
            templates=self.templates,
            classes=self.classes,
            encode=encode,
        )
        return ZeroShotTestResult(self.title, result, self.about)


@dataclass(frozen=True)
class ZeroShotTestResult:
    """Result of a `ZeroShotTest`, with the test's title and description."""

    title: str
    result: ZeroShotResult
    about: str = ""


def score_retrieval(
    model: LoadedModel, source: RowSource, encode: EncodeConfig, positions: list[int] | None = None
) -> tuple[EncodedImages, RetrievalResult]:
    """Encode a source's images and captions, and compute retrieval in both directions.

    Args:
        positions: indices of the source's rows; all by default.

    Raises:
        DataError: there are no captions.
        LakeclipError: the source cannot be read, or the model's features are not finite.
    """
    import torch

    from lakeclip.evaluation.encode import encode_images, encode_texts
    from lakeclip.evaluation.retrieval import retrieval_metrics

    images = encode_images(
        model.model,
        source,
        model.transform,
        positions=positions,
        batch_size=encode.batch_size,
        num_workers=encode.num_workers,
    )
    texts = [text for captions in images.captions for text in captions]
    if not texts:
        raise DataError(
            f"{source.path} has no captions to retrieve", next_step="a lake with captions, or --caption-column COLUMN"
        )
    features = encode_texts(model.model, model.tokenize, texts)
    image_of_text = torch.tensor([image for image, captions in enumerate(images.captions) for _ in captions])
    return images, retrieval_metrics(images.features, features, image_of_text)


def open_labelled(
    lake: str | Path,
    label_column: str,
    *,
    query: str | None = None,
    classes: str | Sequence[str] | None = None,
    image_column: str | None = None,
    numbers_are_names: bool = False,
    warn: bool = True,
) -> tuple[Lake, Labels]:
    """Open a lake and read its labels.

    Args:
        classes: class names; or, as in the flag --classes, a file or names between commas.
        numbers_are_names: see `read_labels`.
        warn: print warnings about the labels to standard error.

    Raises:
        LakeclipError: the lake, the query, the column or the class names are wrong.
    """
    from lakeclip.evaluation.labels import parse_classes, read_labels
    from lakeclip.lake.dataset import open_lake

    names = parse_classes(classes) if isinstance(classes, str) else classes
    source = open_lake(str(lake), query, image_column=image_column)
    labels = read_labels(source, label_column, names, numbers_are_names=numbers_are_names)
    if warn:
        print_warnings(labels.warnings)
    return source, labels


def load_model(model: str | Path | LoadedModel, encode: EncodeConfig) -> LoadedModel:
    """Load a checkpoint on the requested device and in the requested precision.

    A model that is loaded already is returned as it is.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of another kind.
        DeviceError: this machine does not have the device.
    """
    from lakeclip.checkpoints.layouts import load
    from lakeclip.models.bfloat16 import to_bfloat16
    from lakeclip.models.bfloat16_support import bfloat16_support, precision_warning

    if not isinstance(model, (str, Path)):
        return model
    device = _find_device(encode.device)
    loaded = load(model)
    if encode.precision == "bf16":
        kind: Literal["cpu", "gpu"] = "gpu" if device.type == "cuda" else "cpu"
        warning = precision_warning(bfloat16_support(str(device)), "--precision bf16", "--precision 32", device=kind)
        print_warnings([warning] if warning else [])
        to_bfloat16(loaded.model)
    loaded.model.to(device)
    return loaded


def _find_device(name: str) -> torch.device:
    import torch

    num_gpus = torch.cuda.device_count()
    has_mps = torch.backends.mps.is_available()
    devices = ["cpu", *(f"cuda:{index}" for index in range(num_gpus)), *(["mps"] if has_mps else [])]
    if name == "auto":
        return torch.device("cuda" if num_gpus else devices[-1])
    full_name = "cuda:0" if name == "cuda" else name
    if full_name not in devices:
        raise DeviceError(f"this machine has no device {name!r}", found=", ".join(devices), next_step="--device cpu")
    return torch.device(full_name)
