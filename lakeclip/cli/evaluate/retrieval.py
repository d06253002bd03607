"""`lakeclip evaluate retrieval`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table

from lakeclip.cli.output import console, plain, plottable, save, writable
from lakeclip.evaluation.run import EncodeConfig, evaluate_retrieval

if TYPE_CHECKING:
    from lakeclip.evaluation.retrieval import RetrievalResult

_ADVICE = (
    "more rows, if there are few; lakeclip inspect shows whether captions describe their images; "
    "lakeclip finetune --from NAME starts from a model that knows images and words (`lakeclip weights` lists names)"
)


@dataclass(frozen=True)
class Retrieval:
    """Retrieve each image's captions among all captions, and each caption's image among all images."""

    checkpoint: str
    """A run folder or a .ckpt file; or openai:FILE, open_clip:FILE, huggingface:FOLDER or huggingface:ORG/NAME."""
    lake: str | None = None
    """Deep Lake dataset with images and captions."""
    folder: str | None = None
    """Folder of pairs instead of a lake: images and .txt captions that share a stem."""
    query: str | None = None
    """Rows of the lake to score: the WHERE clause of a Deep Lake query."""
    image_column: str | None = None
    """Column with the encoded images. Default: inferred from names and types."""
    caption_column: str | None = None
    """Column with the captions. Default: inferred from names and types."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    """Also write the figures to this file."""
    plot: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Plot R@k over k: a .png, .svg or .pdf file."""
    encode: Annotated[EncodeConfig, tyro.conf.arg(name="")] = field(default_factory=EncodeConfig)


def run_retrieval(flags: Retrieval) -> None:
    """Run `lakeclip evaluate retrieval`."""
    json_file, plot = writable(flags.json_file), plottable(flags.plot)
    result = evaluate_retrieval(
        flags.checkpoint,
        flags.lake,
        folder=flags.folder,
        query=flags.query,
        image_column=flags.image_column,
        caption_column=flags.caption_column,
        encode=flags.encode,
    )
    content = {"checkpoint": flags.checkpoint, "data": flags.lake or flags.folder, **result.to_json()}
    save(json_file, {**content, "num_undecodable": result.num_undecodable})
    if plot is not None:
        from lakeclip.report.plots import plot_retrieval, save_plot

        save_plot(plot_retrieval(result), plot)
    _show(result)


def _show(result: RetrievalResult) -> None:
    rankings = (result.image_to_text, result.text_to_image)
    screen = console()
    standings = [ranking.standing(k) for ranking in rankings for k in ranking.recall]
    if not any(standing.verdict == "learning" for standing in standings):
        text = f"the model does no better than guessing: text → image R@1 is {result.text_to_image.standing()}"
        screen.print(plain(f"{text}\n  next:  {_ADVICE}\n"), soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for heading in ("image → text", "chance", "text → image", "chance"):
        table.add_column(heading, justify="right")
    for k in rankings[0].recall:
        cells = [f"{value:.1%}" for ranking in rankings for value in (ranking.recall[k], ranking.chance[k])]
        table.add_row(f"R@{k}", *cells)
    precisions = [f"{ranking.mean_average_precision:.1%}" for ranking in rankings]
    table.add_row("mAP", precisions[0], "", precisions[1], "")
    ranks = [f"{ranking.median_rank:,g}" for ranking in rankings]
    table.add_row("median rank", ranks[0], "", ranks[1], "")
    screen.print(table)
    screen.print(f"among {result.num_images:,} images and {result.num_texts:,} captions")
    if useless := [k for k in rankings[0].recall if min(ranking.chance[k] for ranking in rankings) >= 1]:
        screen.print(
            f"any model reaches 100% at R@{useless[0]}: there are no more candidates; compare R@1, or score more"
        )
    if result.num_undecodable:
        screen.print(f"{result.num_undecodable:,} images could not be decoded and were skipped")
