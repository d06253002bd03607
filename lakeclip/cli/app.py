"""`lakeclip VERB …`: run a verb, and turn a user's mistake into one clear message and exit code 2."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version

from rich.console import Console
from rich.table import Table

from lakeclip.errors import exit_cleanly

#: Description of each verb. The module of that name in this folder has a function `run(argv)`.
VERBS = {
    "demo": "make a small lake of drawn scenes, train on it, evaluate, and write a report",
    "ingest": "write images and captions into a lake, from folders, tars, tables, URLs or other lakes",
    "inspect": "show the contents of a lake, the origin of a checkpoint, or the batch of a step",
    "models": "list the models with their parameters and cost",
    "weights": "list pretrained models to start from, and download one",
    "train": "train CLIP from scratch, or resume a run",
    "finetune": "fine-tune a CLIP or two pretrained towers on your pairs",
    "evaluate": "score a trained model: zero-shot, retrieval, probe, robustness; reports and comparisons",
    "export": "convert a trained model for OpenAI's code, open_clip, Hugging Face, ONNX, or to safetensors",
}


def main(argv: list[str] | None = None) -> None:
    """Run the `lakeclip` command."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _help()
    elif arguments[0] in ("-V", "--version"):
        sys.stdout.write(f"lakeclip {version('lakeclip')}\n")
    elif arguments[0] not in VERBS:
        sys.stderr.write(f"error: there is no verb {arguments[0]!r}\n  allowed: {', '.join(VERBS)}\n")
        sys.exit(2)
    else:
        exit_cleanly(lambda: import_module(f"lakeclip.cli.{arguments[0]}").run(arguments[1:]))


def _help() -> None:
    console = Console()
    console.print("lakeclip trains CLIP on your own data, from a Deep Lake dataset.\n\nusage: lakeclip VERB …\n")
    table = Table(box=None, show_header=False, padding=(0, 2))
    for verb, description in VERBS.items():
        table.add_row(verb, description)
    console.print(table)
    console.print("\n`lakeclip VERB --help` shows the flags of a verb. Start with `lakeclip demo`.")
