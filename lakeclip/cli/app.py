"""`lakeclip VERB …`: finds the verb, runs it, and turns a user's mistake into one clear message and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version

from rich.console import Console
from rich.table import Table

from lakeclip.errors import LakeclipError

#: Verb → what it does. Each is the module of that name in this folder, with a function `run(argv)`.
VERBS = {
    "demo": "make a small lake of drawn scenes, train on it, evaluate, and write a report",
    "ingest": "images and captions into a lake: folders, tars, tables, addresses, other lakes",
    "inspect": "what is in a lake; where a checkpoint comes from; what a step was made of",
    "models": "the models, with their parameters and cost",
    "train": "train CLIP from scratch, or go on with a run",
    "finetune": "bring two pretrained towers together on your pairs",
    "evaluate": "zero-shot and retrieval scores of a trained model",
    "export": "a trained model for OpenAI's code, open_clip, Hugging Face, or as safetensors",
}


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `lakeclip` command."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "help"):
        _help()
    elif words[0] in ("-V", "--version"):
        sys.stdout.write(f"lakeclip {version('lakeclip')}\n")
    elif words[0] not in VERBS:
        sys.stderr.write(f"error: there is no verb {words[0]!r}\n  allowed: {', '.join(VERBS)}\n")
        sys.exit(2)
    else:
        exit_cleanly(lambda: import_module(f"lakeclip.cli.{words[0]}").run(words[1:]))


def exit_cleanly(work: Callable[[], None]) -> None:
    """Run `work`; a `LakeclipError` is printed and ends the process with code 2, Ctrl-C with 130."""
    try:
        work()
    except LakeclipError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"stopped{': ' if stop.args else ''}{stop}\n")
        sys.exit(130)


def _help() -> None:
    console = Console()
    console.print("lakeclip trains CLIP on your own data, from a Deep Lake dataset.\n\nusage: lakeclip VERB …\n")
    table = Table(box=None, show_header=False, padding=(0, 2))
    for verb, meaning in VERBS.items():
        table.add_row(verb, meaning)
    console.print(table)
    console.print("\n`lakeclip VERB --help` shows the flags of one. `lakeclip demo` is the place to start.")
