"""The flags of `lakeclip inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class InspectArguments:
    """Show a lake (its rows, columns, captions and images, and how much of it cannot be trained on), or where a
    checkpoint comes from: data, version, order, settings, code and environment.

    The figures of a lake come from all rows if it is small, and from an even sample if it is large. A few hundred
    images are read and decoded. Any Deep Lake dataset works. A token, if one is needed, is read from the
    environment variable ACTIVELOOP_TOKEN.
    """

    what: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LAKE_OR_CHECKPOINT")]
    """Path or URL of the dataset, optionally with @branch or @tag; or a run's folder, or a .ckpt file; or
    huggingface:FOLDER, huggingface:ORG/NAME, openai:FILE or open_clip:FILE for weights of another project."""
    query: str | None = None
    """Use only rows that match this WHERE clause, such as "width > 200 and label == 'cat'"."""
    image_column: str | None = None
    """Column with the encoded images. Default: inferred from names and types."""
    caption_column: str | None = None
    """Column with the captions. Default: inferred from names and types."""
    full: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Read every row and decode every image, however long that takes."""
    batch: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """For a checkpoint: show the images and captions of step N of its run, counted from 1."""
    html: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Write a page with the figures, histograms and rows of a lake, or with the images of a batch. The page is
    one self-contained file."""
    samples: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Number of rows on the page. Default: 48 for a lake, all for a batch."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    """Also write the output to this file as JSON."""
