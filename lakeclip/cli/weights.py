"""`lakeclip weights`: list pretrained models to start from, and download one."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Annotated

import tyro
from rich.console import Console

from lakeclip.cli.output import plain, save, writable
from lakeclip.errors import ConfigError
from lakeclip.pretrained_weights import PretrainedWeights, check_source, download, find_local, known_weights


@dataclass(frozen=True)
class WeightsArguments:
    """List well-known pretrained models to start from, or show one. Nothing is downloaded without --download."""

    model: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = None
    """Show this model: one of the list, or any other of the hub as open_clip:ORG/NAME or huggingface:ORG/NAME."""
    download: bool = False
    """Download the model, so that it can be used without a network."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    """Also write the list to this file."""


def run(argv: list[str]) -> None:
    """Print the list, or one model and where it is kept.

    Raises:
        ConfigError: the name is none of a model on the hub, or --download has no name.
        CheckpointError: the model cannot be downloaded.
        OutputError: the JSON file cannot be written.
    """
    arguments = tyro.cli(WeightsArguments, args=argv, prog="lakeclip weights", description=WeightsArguments.__doc__)
    path = writable(arguments.json_file)
    console = Console(width=None if sys.stdout.isatty() else 200)
    if arguments.model is not None:
        _show(console, arguments.model, wanted=arguments.download)
    elif arguments.download:
        raise ConfigError("--download needs the name of a model", next_step="lakeclip weights NAME --download")
    else:
        _list(console)
    if path is not None:
        save(path, {"weights": [_describe(weights) for weights in known_weights()]})


def _list(console: Console) -> None:
    # Lines that a narrow terminal wraps and a table would break, so that names can be copied.
    for group, members in groupby(known_weights(), key=lambda weights: weights.group):
        console.print(f"[bold]{plain(group)}[/bold]", soft_wrap=True, highlight=False)
        console.print("million  pixels  ImageNet  licence       --from (* is on this machine)", soft_wrap=True)
        for weights in members:
            mark = " *" if find_local(weights.source) else ""
            figures = f"{weights.parameters:7,}  {weights.image_size:6}  {weights.imagenet:7.1f}%  {weights.licence:12}"
            console.print(plain(f"{figures}  {weights.source}{mark}"), soft_wrap=True, highlight=False)
        console.print()
    console.print(
        "million: parameters of both towers. ImageNet: zero-shot top-1 accuracy as published; "
        "`lakeclip evaluate` measures it on your photos.",
        soft_wrap=True,
    )
    console.print("next: lakeclip weights NAME, or lakeclip finetune --from NAME --lake LAKE", soft_wrap=True)


def _show(console: Console, source: str, *, wanted: bool) -> None:
    check_source(source)
    weights = next((known for known in known_weights() if known.source == source), None)
    if weights is not None:
        console.print(
            f"{weights.parameters:,} million parameters, {weights.image_size} pixels, trained on {weights.data}, "
            f"{weights.imagenet:.1f}% on ImageNet (published), licence {weights.licence}",
            soft_wrap=True,
        )
    folder = download(source) if wanted else find_local(source)
    if folder is not None:
        console.print(plain(f"kept in {folder}"), soft_wrap=True)
    else:
        from huggingface_hub import constants

        console.print(
            plain(f"not on this machine; it would be kept in {constants.HF_HUB_CACHE} (HF_HUB_CACHE sets another)"),
            soft_wrap=True,
        )
        console.print(plain(f"download it: lakeclip weights {source} --download"), soft_wrap=True)
    console.print(plain(f"use it: lakeclip finetune --from {source} --lake LAKE"), soft_wrap=True)


def _describe(weights: PretrainedWeights) -> dict[str, object]:
    folder = find_local(weights.source)
    return asdict(weights) | {"folder": str(folder) if folder else None}
