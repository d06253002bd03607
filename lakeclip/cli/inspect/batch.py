"""`lakeclip inspect CHECKPOINT --batch N`: show the exact images and captions of a step."""

from __future__ import annotations

import os
from pathlib import Path

from rich.table import Table

from lakeclip.cli.output import console, plain, save, writable
from lakeclip.errors import ConfigError


def inspect_batch(what: str, step: int, html: str | None, json_file: str | None, samples: int | None) -> None:
    """Print the batch of a step; with --html also write its images, with --json its figures.

    Args:
        what: a .ckpt file, or a run's folder, whose last checkpoint covers the whole run.
        step: number of the step, counted from 1, up to the end of the run.
        samples: largest number of samples to show.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or too old, or its run has no such step.
        DataError: the data is unavailable in its original version.
        OutputError: a file cannot be written.
    """
    from lakeclip.checkpoints.native import read_checkpoint
    from lakeclip.report.batch_page import BatchSummary, shown_samples, write_batch_page
    from lakeclip.training.reproduce import replay_step, run_checkpoint

    if samples is not None and samples < 0:
        raise ConfigError(f"--samples {samples} is negative", allowed="0 or more")
    page, out = writable(html), writable(json_file)
    checkpoint = read_checkpoint(run_checkpoint(what))
    replay = replay_step(checkpoint, step, token=os.environ.get("ACTIVELOOP_TOKEN"))
    start = replay.position_before(step)
    batch = BatchSummary(
        str(checkpoint.path),
        step,
        start.epoch,
        start.position,
        replay.batch_size * replay.world_size * replay.batches_per_step,
        str(checkpoint.lineage["data"]["path"]),
        replay.stream.source.version,
    )
    shown = shown_samples(replay, step, samples)
    table = Table(box=None, padding=(0, 2, 0, 0))
    several = {"batch": replay.batches_per_step > 1, "process": replay.world_size > 1}
    for title in (*(name for name, is_shown in several.items() if is_shown), "row", "image", "crop", "caption", "lake"):
        table.add_column(title, overflow="fold", justify="right" if title in ("batch", "process", "row") else "left")
    for sample in shown:
        extra = [str(value) for name, value in (("batch", sample.batch), ("process", sample.rank)) if several[name]]
        instead = "".join(f" (instead of row {row}: {why})" for row, why in sample.replaced)
        table.add_row(
            *extra,
            f"{sample.row}",
            f"{sample.width} × {sample.height}",
            sample.crop,
            plain(sample.caption + instead),
            plain(Path(sample.lake).name or sample.lake),
        )
    screen = console()
    for line in str(batch).splitlines():
        screen.print(plain(line), soft_wrap=True)
    screen.print(table)
    if len(shown) < batch.num_pairs:
        screen.print(f"the first {len(shown):,} of {batch.num_pairs:,}")
    save(out, {**batch._asdict(), "samples": [sample.to_json() for sample in shown]})
    if page is not None:
        write_batch_page(page, batch, shown)
        screen.print(f"page: {plain(str(page))}", soft_wrap=True)
