"""`lakeclip inspect LAYOUT:FOLDER`: show what weights of another project say, and check the features."""

from __future__ import annotations

import dataclasses
import shlex
from typing import TYPE_CHECKING, Any

from rich.table import Table

from lakeclip.cli.output import console, plain, save, writable

if TYPE_CHECKING:
    from lakeclip.checkpoints.convert import PretrainedWeights
    from lakeclip.checkpoints.parity import ParityCheck


def inspect_weights(what: str, json_file: str | None) -> None:
    """Print the settings that were read, and how much the features differ from those of the original library.

    Raises:
        CheckpointError: the weights cannot be read, or the original library computes other features.
        OutputError: the file cannot be written.
    """
    from lakeclip.checkpoints.layouts import load_weights
    from lakeclip.checkpoints.parity import check_against_original

    out = writable(json_file)
    pretrained = load_weights(what)
    parity = check_against_original(pretrained)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("[bold]File", plain(str(pretrained.path)))
    for title, rows in _groups(pretrained).items():
        table.add_row()
        table.add_row(f"[bold]{title}", "")
        for label, value in rows.items():
            table.add_row(plain(label), plain(value))
    table.add_row()
    table.add_row("[bold]Features", plain(_describe(parity)))
    table.add_row()
    table.add_row("[bold]Next steps", "")
    table.add_row("fine-tune", plain(f"lakeclip finetune --from {shlex.quote(what)} --lake LAKE"))
    table.add_row("evaluate", plain(f"lakeclip evaluate retrieval --checkpoint {shlex.quote(what)} --lake LAKE"))
    console().print(table)
    content: dict[str, Any] = {
        "file": str(pretrained.path),
        "layout": pretrained.layout,
        "model": dataclasses.asdict(pretrained.model_config),
        "tokenizer": _tokenizer(pretrained),
        "assumed": list(pretrained.assumed),
        "parity": None if parity is None else parity._asdict(),
    }
    save(out, content)


def _groups(pretrained: PretrainedWeights) -> dict[str, dict[str, str]]:
    """Return the settings by group: the model, its images, its texts, and what was assumed."""
    from lakeclip.config.schema import ModelConfig

    config = pretrained.model_config
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(ModelConfig)}
    images = {"image_resolution", "resize_mode", "interpolation", "image_mean", "image_std"}
    texts = {"context_length", "vocab_size", "end_token", "pad_token"}
    parameters = sum(value.numel() for value in pretrained.state_dict.values())
    shown = {name: str(value) for name, value in settings.items() if value is not None}
    groups = {
        "Model": {"parameters": f"{parameters / 1e6:,.1f} million"}
        | {name: value for name, value in shown.items() if name not in images | texts},
        "Images": {name: value for name, value in shown.items() if name in images},
        "Texts": {"tokenizer": _tokenizer(pretrained)}
        | {name: value for name, value in shown.items() if name in texts},
    }
    if pretrained.assumed:
        groups["Assumed"] = dict.fromkeys(pretrained.assumed, "")
    return groups


def _tokenizer(pretrained: PretrainedWeights) -> str:
    if pretrained.tokenizer is None:
        return "CLIP's byte-pair encoding"
    inner = getattr(pretrained.tokenizer, "tokenizer", pretrained.tokenizer)
    found = getattr(pretrained.tokenizer, "found", "")
    return f"none: {found}" if found else type(inner).__name__


def _describe(parity: ParityCheck | None) -> str:
    if parity is None:
        return "not compared with the original library"
    return f"equal to those of {parity.library}: the largest difference is {parity.difference:.1e}"
