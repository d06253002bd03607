"""The flags of `lakeclip inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class InspectArguments:
    """Show a lake (its rows, columns, captions and images, and how much of it cannot be trained on), or where a
    checkpoint comes from: data, version, order, settings, code and environment.

    Of a lake, figures are taken from all rows of a small one and from an even sample of a large one; a few hundred
    images are read and decoded. Works on any Deep Lake dataset. The token of one that asks for it is read from the
    environment: ACTIVELOOP_TOKEN.
    """

    what: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LAKE_OR_CHECKPOINT")]
    """Path or address of the dataset; @branch or @tag may follow. Or a run's folder, or a .ckpt file."""
    query: str | None = None
    """Only the rows for which this WHERE clause holds, such as "width > 200 and label == 'cat'"."""
    image_column: str | None = None
    """Column with the encoded images. Default: found by its name and type."""
    caption_column: str | None = None
    """Column with the captions. Default: found by its name and type."""
    full: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Look at every row and decode every image, however long that takes."""
    batch: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Of a checkpoint: the images and captions that step N of its run was made of, counted from 1."""
    html: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Write a page with the figures, histograms and rows of a lake, or with the pictures of a batch. It is whole in
    itself."""
    samples: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Rows on that page: 48 of a lake, all of a batch."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    """Write the same to this file as well."""
