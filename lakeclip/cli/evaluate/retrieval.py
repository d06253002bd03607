"""`lakeclip evaluate retrieval`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table

from lakeclip.cli.output import console, plottable, save, writable
from lakeclip.cli.report import Effort, load_model, retrieve
from lakeclip.config.schema import DataConfig

if TYPE_CHECKING:
    from lakeclip.evaluation.retrieval import RetrievalResult


@dataclass(frozen=True)
class Retrieval:
    """Find each image's captions among all, and each caption's image."""

    checkpoint: str
    """A run folder or a .ckpt file; or openai:FILE, open_clip:FILE, huggingface:FOLDER."""
    lake: str | None = None
    """Deep Lake dataset with images and captions."""
    folder: str | None = None
    """Folder of pairs instead of a lake: images and .txt captions that share a stem."""
    query: str | None = None
    """Which rows of the lake to score: the WHERE clause of a Deep Lake query."""
    image_column: str | None = None
    """Column with the encoded images. Default: found by its name and type."""
    caption_column: str | None = None
    """Column with the captions. Default: found by its name and type."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    """Write the figures to this file as well."""
    plot: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Draw R@k by k: a .png, .svg or .pdf file."""
    effort: Annotated[Effort, tyro.conf.arg(name="")] = field(default_factory=Effort)


def evaluate_retrieval(flags: Retrieval) -> None:
    """`lakeclip evaluate retrieval`."""
    from lakeclip.lake.pairs import open_pairs

    json_file, plot = writable(flags.json_file), plottable(flags.plot)
    source = open_pairs(
        DataConfig(
            lake=flags.lake,
            folder=flags.folder,
            query=flags.query,
            image_column=flags.image_column,
            caption_column=flags.caption_column,
        )
    )
    model = load_model(flags.checkpoint, flags.effort)
    images, result = retrieve(model, source, flags.effort)
    where = flags.lake or flags.folder
    num_undecodable = len(images.undecodable)
    content = {"checkpoint": flags.checkpoint, "data": where, **result.to_json(), "num_undecodable": num_undecodable}
    save(json_file, content)
    if plot is not None:
        from lakeclip.evaluation.pages.plots import plot_retrieval, save_plot

        save_plot(plot_retrieval(result), plot)
    _show_retrieval(result, num_undecodable)


def _show_retrieval(result: RetrievalResult, num_undecodable: int) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for heading in ("image → text", "text → image"):
        table.add_column(heading, justify="right")
    both = (result.image_to_text, result.text_to_image)
    for k in both[0].recall:
        table.add_row(f"R@{k}", *(f"{ranking.recall[k]:.1%}" for ranking in both))
    table.add_row("mAP", *(f"{ranking.mean_average_precision:.1%}" for ranking in both))
    table.add_row("median rank", *(f"{ranking.median_rank:,g}" for ranking in both))
    screen = console()
    screen.print(table)
    screen.print(f"among {result.num_images:,} images and {result.num_texts:,} captions")
    if num_undecodable:
        screen.print(f"{num_undecodable:,} more images could not be decoded and were left out")
