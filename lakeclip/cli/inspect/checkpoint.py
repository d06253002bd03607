"""`lakeclip inspect CHECKPOINT`: show the origin of the weights, and the commands that use them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from lakeclip.cli.output import console, plain, save, writable

if TYPE_CHECKING:
    from lakeclip.checkpoints.native import Checkpoint


def inspect_checkpoint(what: str, json_file: str | None) -> None:
    """Print the lineage of a checkpoint; with --json also write it.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or not lakeclip's.
        OutputError: the file cannot be written.
    """
    from lakeclip.checkpoints.folder import run_folder
    from lakeclip.checkpoints.native import read_checkpoint, weights_digest
    from lakeclip.report.curves import read_curves
    from lakeclip.report.data_summary import read_data_summary
    from lakeclip.report.run_summary import summarize_run

    out = writable(json_file)
    # Reading compares every checksum in the file.
    checkpoint = read_checkpoint(what, own_towers=True)
    run = run_folder(checkpoint.path.absolute())
    digest = weights_digest(checkpoint.state_dict)
    size = checkpoint.path.stat().st_size
    summary = summarize_run(
        run.name,
        checkpoint.lineage,
        num_parameters=sum(value.numel() for value in checkpoint.state_dict.values()),
        curves=read_curves(run / "metrics.csv"),
        data=read_data_summary(run, checkpoint.lineage),
    )
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("[bold]File", plain(str(checkpoint.path)))
    table.add_row("", f"{size / 1e6:,.1f} MB, complete: every checksum agrees")
    table.add_row("weights", f"sha256 {digest}")
    for group in summary.groups:
        table.add_row()
        table.add_row(f"[bold]{group.title}", "")
        for label, value in group.rows:
            table.add_row(plain(label), plain(value))
    table.add_row()
    table.add_row("[bold]Settings", "")
    for name, value in _changed_settings(checkpoint.lineage["config"]):
        table.add_row(plain(name), plain(value))
    table.add_row()
    table.add_row("[bold]Next steps", "")
    for label, command in _commands(checkpoint, run):
        table.add_row(label, plain(command))
    console().print(table)
    save(
        out,
        {"file": str(checkpoint.path), "bytes": size, "weights_sha256": digest, "lineage": _plain(checkpoint.lineage)},
    )


def _changed_settings(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the settings that differ from the defaults, in the order of the flags."""
    from dataclasses import asdict

    from lakeclip.config.schema import FinetuneConfig, TrainConfig

    default = asdict(FinetuneConfig() if "teacher" in values else TrainConfig())
    rows = []
    for name, value in values.items():
        if not isinstance(value, dict):
            rows += [(name, str(value))] if value != default.get(name) else []
            continue
        usual = default.get(name, {})
        rows += [(f"{name}.{key}", str(entry)) for key, entry in value.items() if entry != usual.get(key)]
    return rows


def _commands(checkpoint: Checkpoint, run: Path) -> list[tuple[str, str]]:
    from lakeclip.checkpoints.folder import LAST

    is_own = "image_class" in checkpoint.lineage["model"]["config"]
    if is_own or checkpoint.lineage["tokenizer"]["kind"] == "own":
        # The file lacks what the commands need.
        arguments = (["model=YOUR_MODEL"] if is_own else []) + ["tokenize=YOUR_TOKENIZER"]
        return [("load", f"lakeclip.load({str(checkpoint.path)!r}, {', '.join(arguments)})")]
    path, folder = (shlex.quote(str(part)) for part in (checkpoint.path, checkpoint.path.parent.parent))
    verb = "finetune" if "teacher" in checkpoint.lineage["config"] else "train"
    rows = [("resume", f"lakeclip {verb} --resume {folder}")] if (run / LAST).is_file() else []
    if checkpoint.lineage.get("parts"):
        rows += [
            ("repeat", f"lakeclip {verb} --repeat {path}"),
            ("a step", f"lakeclip inspect {path} --batch {max(1, checkpoint.lineage['progress']['step'])}"),
        ]
    return [
        *rows,
        ("evaluate", f"lakeclip evaluate retrieval --checkpoint {path} --lake LAKE"),
        ("export", f"lakeclip export --checkpoint {path} --to open_clip"),
    ]


def _plain(value: Any) -> Any:
    """Convert a value to JSON types; list a tokenizer's files by name only."""
    if isinstance(value, dict):
        return {str(key): sorted(entry) if key == "files" else _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value
