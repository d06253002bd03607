"""Report of a run as a function: scores it, and writes report.html and MODEL_CARD.md into its folder."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lakeclip.config.schema import DataConfig
from lakeclip.errors import ConfigError, DataError, LakeclipError, LakeError
from lakeclip.evaluation.run import (
    EncodeConfig,
    ZeroShotTest,
    ZeroShotTestResult,
    load_model,
    open_labelled,
    score_retrieval,
)

if TYPE_CHECKING:
    from lakeclip.checkpoints.native import LoadedModel
    from lakeclip.evaluation.encode import EncodedImages
    from lakeclip.evaluation.retrieval import RetrievalResult
    from lakeclip.lake.dataset import Lake
    from lakeclip.lake.rows import RowSource
    from lakeclip.report.embedding_map import EmbeddingMap
    from lakeclip.report.verdict import RunVerdict
    from lakeclip.training.run import TrainResult


class RunReport(NamedTuple):
    """Files that `make_report` wrote, and the scores in them.

    Attributes:
        page: report.html.
        card: MODEL_CARD.md.
        zeroshot: result of each zero-shot test.
        retrieval: on the run's validation rows; None if they cannot be read.
        verdict: says that the model does no better than guessing; None if it does better.
    """

    page: Path
    card: Path
    zeroshot: list[ZeroShotTestResult]
    retrieval: RetrievalResult | None
    verdict: RunVerdict | None = None


def make_report(
    run: str | Path,
    tests: Sequence[ZeroShotTest] = (),
    *,
    match_column: str | None = None,
    encode: EncodeConfig | None = None,
    model: LoadedModel | None = None,
) -> RunReport:
    """Score a run, and write its report.html and MODEL_CARD.md, as `lakeclip evaluate report` does.

    Retrieval and the gallery use the rows that the run validated on, which its checkpoint records. If those rows are no
    longer readable, the page omits them, and a note on standard error says so.

    Args:
        run: folder of the run, or one of its .ckpt files.
        tests: zero-shot tests; the first one is the headline of the page.
        match_column: column of the run's own data; in the gallery, images with the same value in it match each other's
            captions.
        encode: batch size, workers, device and precision.
        model: the run's model as `lakeclip.load` returns it, for a run whose towers or tokenizer the checkpoint does
            not contain.

    Raises:
        LakeclipError: there is no checkpoint, the data of a test is wrong, or a file cannot be written.
    """
    from lakeclip.checkpoints.exports import FORMATS
    from lakeclip.checkpoints.folder import LAST, MIXED, run_folder
    from lakeclip.checkpoints.native import read_checkpoint
    from lakeclip.evaluation.forgetting import read_forgetting
    from lakeclip.models.clip import CLIP
    from lakeclip.report.curves import read_curves
    from lakeclip.report.data_summary import read_data_summary
    from lakeclip.report.gallery import retrieval_gallery
    from lakeclip.report.model_card import write_model_card
    from lakeclip.report.run_page import RetrievalSection, write_report
    from lakeclip.report.run_summary import summarize_run
    from lakeclip.report.verdict import judge_run

    encode, path = encode or EncodeConfig(), Path(run)
    if not path.exists():
        raise ConfigError(f"there is no run at {path}", allowed="the folder of a run, as `lakeclip train` leaves it")
    checkpoint = read_checkpoint(path, own_towers=model is not None)
    folder, file = path, checkpoint.path
    if not path.is_dir():
        folder, file = run_folder(file), file.absolute()
    lineage = checkpoint.lineage
    model = model or load_model(file, encode)
    zeroshot = [test.run(model, encode) for test in tests]
    retrieval = gallery = embeddings = None
    try:
        source, positions, about = validation_rows(lineage)
        images, result = score_retrieval(model, source, encode, positions)
        retrieval = RetrievalSection(result, about)
        gallery = retrieval_gallery(
            *model, source, positions=positions, match_column=match_column, batch_size=encode.batch_size
        )
        gallery = replace(gallery, source=about)
        if not tests:
            embeddings = _map_of_rows(images, source, match_column, about)
    except LakeclipError as error:
        sys.stderr.write(f"note: the report has no retrieval scores. {error}\n")
    if tests:
        embeddings = _map_of_test(tests[0], model, encode)
    curves = read_curves(folder / "metrics.csv")
    summary = summarize_run(
        folder.resolve().name,
        lineage,
        num_parameters=sum(parameter.numel() for parameter in model.model.parameters()),
        curves=curves,
        data=read_data_summary(folder, lineage),
    )
    forgetting = read_forgetting(folder)
    verdict = judge_run(lineage, curves, zeroshot=zeroshot, retrieval=retrieval.result if retrieval else None)
    page = write_report(
        folder,
        summary=summary,
        curves=curves,
        zeroshot=zeroshot,
        retrieval=retrieval,
        gallery=gallery,
        embeddings=embeddings,
        forgetting=forgetting,
        verdict=verdict,
    )
    other_files = [path for path in (folder / LAST, folder / MIXED) if path.is_file() and path != file]
    card = write_model_card(
        folder,
        summary,
        zeroshot=zeroshot,
        retrieval=retrieval,
        forgetting=forgetting,
        checkpoints=[file, *other_files],
        layouts=tuple(FORMATS) if isinstance(model.model, CLIP) else (),
    )
    return RunReport(page, card, zeroshot, retrieval.result if retrieval else None, verdict)


def _map_of_rows(images: EncodedImages, source: RowSource, match_column: str | None, about: str) -> EmbeddingMap | None:
    """Make the map of the validation rows, coloured by a column if one is given."""
    from lakeclip.data.order import sample_positions
    from lakeclip.report.embedding_map import MAX_IMAGES, embedding_map

    sample = sample_positions(range(len(images.positions)), MAX_IMAGES)
    labels = None
    if match_column:
        values = source.column(match_column)
        sampled = [values[images.positions[index]] for index in sample]
        labels = ["" if value is None else str(value) for value in sampled]
    return embedding_map(
        images.features[sample], [images.captions[index] for index in sample], labels=labels, about=about
    )


def _map_of_test(test: ZeroShotTest, model: LoadedModel, encode: EncodeConfig) -> EmbeddingMap | None:
    """Make the map of a zero-shot test's images, coloured by class, with the model's predictions."""
    from lakeclip.data.order import sample_positions
    from lakeclip.evaluation.classifier import classifier_weights
    from lakeclip.evaluation.encode import encode_images
    from lakeclip.evaluation.prompts import find_templates
    from lakeclip.report.embedding_map import MAX_IMAGES, embedding_map

    source, labels = open_labelled(test.lake, test.label_column, query=test.query, classes=test.classes, warn=False)
    images = encode_images(
        model.model,
        source,
        model.transform,
        positions=sample_positions(labels.positions, MAX_IMAGES),
        with_captions=_has_captions(source),
        batch_size=encode.batch_size,
        num_workers=encode.num_workers,
    )
    weights = classifier_weights(model.model, model.tokenize, labels.classes, find_templates(test.templates).templates)
    nearest = (images.features @ weights.T).argmax(dim=1).tolist()
    target_of = dict(zip(labels.positions, labels.targets, strict=True))
    return embedding_map(
        images.features,
        images.captions,
        labels=[labels.classes[target_of[position]] for position in images.positions],
        predictions=[labels.classes[index] for index in nearest],
        about=f"{test.title}, {source.path}.",
    )


def _has_captions(lake: Lake) -> bool:
    try:
        return bool(lake.caption_column)
    except LakeError:
        return False


def validation_rows(lineage: dict[str, Any]) -> tuple[RowSource, list[int], str]:
    """Find the rows that a run validated on or, if it held out none, trained on.

    Returns:
        Source, positions in it, and a sentence that says which rows these are.

    Raises:
        DataError: the data is unknown or cannot be read.
    """
    import numpy as np

    from lakeclip.data.order import Order
    from lakeclip.data.plan import all_rows, make_plans
    from lakeclip.lake.pairs import open_pairs

    # A checkpoint may be older than a setting, or have one that no longer exists.
    known = {field.name for field in fields(DataConfig)}
    data = DataConfig(**{name: value for name, value in lineage["config"]["data"].items() if name in known})
    path = lineage["data"]["path"]
    if data.val_lake:
        source = open_pairs(DataConfig(lake=data.val_lake))
        rows = all_rows(source)
        about = f"From the validation data, {source.path}."
    elif path:
        lake, folder = (None, path) if data.folder else (path, None)
        # A run from the user's own script has its query only in the lineage.
        query = data.query if data.lake else lineage["data"]["query"]
        source = open_pairs(replace(data, lake=lake, folder=folder, query=query, weights=None))
        _, rows = make_plans(source, data.val_fraction, seed=0, shuffle=False)
        description = "Rows that training never saw, held out from"
        if not len(rows):
            rows = all_rows(source)
            description = "Rows that the model was trained on, from"
        about = f"{description} {source.path}."
        if lineage["data"]["version"] not in ("", source.version):
            # Appended rows do not shift the others, but deleted rows and a changed query do.
            about += " The lake has changed since the run, so some of them may be other rows."
    else:
        raise DataError("the run was trained from the user's own dataloader, which its checkpoint does not contain")
    # The same draw as in the data module, if there are more rows than it validates on.
    drawn = Order(len(rows), seed=0).rows(0, np.arange(min(len(rows), data.max_val_rows)))
    return source, sorted(rows[drawn].tolist()), about


def conclude(result: TrainResult, verb: str, *, report: bool = True) -> None:
    """Print the result of a run and write its report. Exit with 128 plus the signal's number if one stopped the run.

    The first line says so if the model does no better than guessing.

    Args:
        verb: the command that resumes the run, train or finetune.
    """
    if result.is_main:
        written: RunReport | LakeclipError | None = None
        # A run that was complete already may have been killed before its report.
        is_reported = result.is_complete and (result.folder / "report.html").is_file()
        if report and not result.interrupted and not is_reported:
            try:
                written = make_report(result.folder)
            except LakeclipError as error:
                written = error
        if isinstance(written, RunReport) and written.verdict:
            sys.stdout.write(f"{written.verdict}\n")
        if result.speed is not None:
            sys.stdout.write(f"{result.speed} · {result.evaluation:.1%} of the time evaluating\n")
        if result.scores:
            sys.stdout.write(" · ".join(f"{name} {value:.1%}" for name, value in result.scores.items()) + "\n")
        if result.is_complete:
            folder = shlex.quote(str(result.folder))
            sys.stdout.write(
                f"{result.folder} is complete after {result.steps} steps: nothing to train\n"
                f"  to train it longer: lakeclip {verb} --resume {folder} --max-epochs MORE\n"
            )
        elif result.interrupted:
            folder = shlex.quote(str(result.folder))
            sys.stdout.write(f"stopped after step {result.steps}\n  resume with: lakeclip {verb} --resume {folder}\n")
        else:
            sys.stdout.write(f"trained {result.steps} steps in {result.seconds:.0f} s: {result.folder}\n")
        if isinstance(written, LakeclipError):
            raise written
        if written:
            sys.stdout.write(f"report: {written.page}\n")
    if result.interrupted:
        sys.exit(128 + (result.signal or signal.SIGINT))
