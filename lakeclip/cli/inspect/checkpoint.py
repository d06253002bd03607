"""`lakeclip inspect CHECKPOINT`: where weights come from, and what can be done with them."""

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
        CheckpointError: missing, damaged, or not lakeclip's.
        OutputError: the file cannot be written.
    """
    from lakeclip.checkpoints.native import read_checkpoint, weights_digest
    from lakeclip.evaluation.pages.account import read_account
    from lakeclip.evaluation.pages.facts import run_facts
    from lakeclip.evaluation.pages.history import read_curves

    out = writable(json_file)
    # Read whole, and every checksum in it compared.
    found = read_checkpoint(what)
    run = found.path.absolute().parent.parent
    digest = weights_digest(found.state_dict)
    size = found.path.stat().st_size
    facts = run_facts(
        run.name,
        found.lineage,
        num_parameters=sum(value.numel() for value in found.state_dict.values()),
        curves=read_curves(run / "metrics.csv"),
        account=read_account(run, found.lineage),
    )
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("[bold]File", plain(str(found.path)))
    table.add_row("", f"{size / 1e6:,.1f} MB, whole: every checksum agrees")
    table.add_row("weights", f"sha256 {digest}")
    for group in facts.groups:
        table.add_row()
        table.add_row(f"[bold]{group.title}", "")
        for label, value in group.rows:
            table.add_row(plain(label), plain(value))
    table.add_row()
    table.add_row("[bold]Settings", "")
    for name, value in _changed_settings(found.lineage["config"]):
        table.add_row(plain(name), plain(value))
    table.add_row()
    table.add_row("[bold]From here", "")
    for label, command in _commands(found, run):
        table.add_row(label, plain(command))
    console().print(table)
    save(out, {"file": str(found.path), "bytes": size, "weights_sha256": digest, "lineage": _plain(found.lineage)})


def _changed_settings(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Those that are not the default, in the order of the flags."""
    from dataclasses import asdict

    from lakeclip.config.schema import FinetuneConfig, TrainConfig

    default = asdict(FinetuneConfig() if "teacher" in values else TrainConfig())
    rows = []
    for name, value in values.items():
        if not isinstance(value, dict):
            rows += [(name, str(value))] if value != default.get(name) else []
            continue
        usual = default.get(name, {})
        rows += [(f"{name}.{key}", str(one)) for key, one in value.items() if one != usual.get(key)]
    return rows


def _commands(found: Checkpoint, run: Path) -> list[tuple[str, str]]:
    from lakeclip.checkpoints.folder import LAST

    path, folder = (shlex.quote(str(one)) for one in (found.path, found.path.parent.parent))
    verb = "finetune" if "teacher" in found.lineage["config"] else "train"
    rows = [("resume", f"lakeclip {verb} --resume {folder}")] if (run / LAST).is_file() else []
    if found.lineage.get("parts"):
        rows += [
            ("repeat", f"lakeclip {verb} --repeat {path}"),
            ("a step", f"lakeclip inspect {path} --batch {max(1, found.lineage['progress']['step'])}"),
        ]
    return [
        *rows,
        ("evaluate", f"lakeclip evaluate retrieval --checkpoint {path} --lake LAKE"),
        ("export", f"lakeclip export --checkpoint {path} --to open_clip"),
    ]


def _plain(value: Any) -> Any:
    """As JSON has it; the files of a tokenizer by their names."""
    if isinstance(value, dict):
        return {str(key): sorted(one) if key == "files" else _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
