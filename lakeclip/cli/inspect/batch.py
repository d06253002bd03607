"""`lakeclip inspect CHECKPOINT --batch N`: the very images and captions that a step was made of."""

from __future__ import annotations

import os
from pathlib import Path

from rich.table import Table

from lakeclip.cli.output import console, plain, save, writable
from lakeclip.errors import ConfigError


def inspect_batch(what: str, step: int, html: str | None, json_file: str | None, samples: int | None) -> None:
    """Print what a step was made of; with --html as pictures, with --json as figures.

    Args:
        what: a .ckpt file, or a run's folder: its last checkpoint knows all of the run.
        step: counted from 1, up to the end of the run.
        samples: show so many at most.

    Raises:
        CheckpointError: missing, damaged, too old, or its run has no such step.
        DataError: the data cannot be had as it was.
        OutputError: a file cannot be written.
    """
    from lakeclip.checkpoints.native import read_checkpoint
    from lakeclip.evaluation.pages.batch_page import BatchAccount, shown_samples, write_batch_page
    from lakeclip.training.recovery.repeat import replay_of, run_checkpoint

    if samples is not None and samples < 0:
        raise ConfigError(f"--samples {samples} cannot be shown", allowed="0 or more")
    page, out = writable(html), writable(json_file)
    checkpoint = read_checkpoint(run_checkpoint(what))
    replay = replay_of(checkpoint, step, token=os.environ.get("ACTIVELOOP_TOKEN"))
    place = replay.place(step)
    account = BatchAccount(
        str(checkpoint.path),
        step,
        place.epoch,
        place.position,
        replay.batch_size * replay.world_size * replay.batches_per_step,
        str(checkpoint.lineage["data"]["path"]),
        replay.stream.source.version,
    )
    shown = shown_samples(replay, step, samples)
    table = Table(box=None, padding=(0, 2, 0, 0))
    several = {"batch": replay.batches_per_step > 1, "process": replay.world_size > 1}
    for title in (*(name for name, is_shown in several.items() if is_shown), "row", "image", "crop", "caption", "lake"):
        table.add_column(title, overflow="fold", justify="right" if title in ("batch", "process", "row") else "left")
    for one in shown:
        extra = [str(value) for name, value in (("batch", one.batch), ("process", one.rank)) if several[name]]
        instead = "".join(f" (instead of row {row}: {why})" for row, why in one.replaced)
        table.add_row(
            *extra,
            f"{one.row}",
            f"{one.width} × {one.height}",
            one.crop,
            plain(one.caption + instead),
            plain(Path(one.lake).name or one.lake),
        )
    screen = console()
    for line in str(account).splitlines():
        screen.print(plain(line), soft_wrap=True)
    screen.print(table)
    if len(shown) < account.num_pairs:
        screen.print(f"the first {len(shown):,} of {account.num_pairs:,}")
    save(out, {**account._asdict(), "samples": [one.to_json() for one in shown]})
    if page is not None:
        write_batch_page(page, account, shown)
        screen.print(f"page: {plain(str(page))}", soft_wrap=True)
