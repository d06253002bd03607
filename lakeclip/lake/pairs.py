"""The pairs that a configuration names: a lake, a mixture of lakes, or a folder; and what to tell the user of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lakeclip.config.schema import DataConfig
from lakeclip.errors import ConfigError, SourceError
from lakeclip.lake.dataset import Lake, open_lake
from lakeclip.lake.rows import RowSource
from lakeclip.lake.several import SEPARATOR, Lakes, parse_share
from lakeclip.lake.sources.folder import open_folder

_EXAMPLES = 5
#: What rows of any source may share (`DataConfig.same_by`).
OF_PAIRS = ("image", "caption")


def open_pairs(data: DataConfig, *, token: str | None = None, version: str | None = None) -> RowSource:
    """Open what a configuration's `lake` or `folder` names, with its query, captions and weights.

    Args:
        token: for lakes that ask for one. It is not kept.
        version: read it as it was then (`RowSource.version`); as it is now by default.

    Raises:
        ConfigError: neither is named, or both; a folder is to be queried; shares that do not fit together.
        DataError: it cannot be opened, or not in this version.
    """
    if (data.lake is None) == (data.folder is None):
        raise ConfigError(
            "neither a lake nor a folder of pairs is named"
            if data.lake is None
            else "both a lake and a folder are named",
            allowed="--lake PATH (made with `lakeclip ingest`), or --folder DIR with pairs of images and .txt captions",
        )
    if data.folder is not None:
        for name in ("query", "weights", "filter_nsfw", "image_column", "caption_column", "caption_template"):
            if getattr(data, name):
                raise ConfigError(
                    "a folder of pairs has no columns, so it cannot be queried",
                    found=f"--{name.replace('_', '-')} {getattr(data, name)!r}",
                    next_step=f"lakeclip ingest {data.folder} LAKE, and use --lake LAKE",
                )
        if columns := columns_of(data.same_by):
            raise ConfigError(
                "a folder of pairs has no columns that rows could share",
                found=f"--same-by {' '.join(columns)}",
                allowed=" and ".join(OF_PAIRS),
                next_step=f"lakeclip ingest {data.folder} LAKE, and use --lake LAKE",
            )
        folder = open_folder(data.folder)
        if version is not None and folder.version != version:
            raise SourceError(
                f"the folder {data.folder} has changed since",
                found=f"{folder.version}, {len(folder):,} pairs",
                allowed=version,
                next_step="bring its files back as they were; a lake keeps its versions: lakeclip ingest",
            )
        return folder
    assert data.lake is not None
    names = [parse_share(name) for name in data.lake.split(SEPARATOR)]
    if len(names) == 1 and names[0][1] is None:
        return _open(data, names[0][0], token, version)
    shares = [share for _, share in names if share is not None]
    if len(names) == 1 or len(shares) not in (0, len(names)):
        raise ConfigError(
            "the shares of a mixture do not fit together",
            found=data.lake,
            allowed="a share for every lake (--lake a.lake:0.7 --lake b.lake:0.3), or for none, to mix by size",
        )
    versions = version.split(SEPARATOR) if version else [None] * len(names)
    lakes = [_open(data, path, token, own) for (path, _), own in zip(names, versions, strict=True)]
    return Lakes(lakes, shares or [float(max(1, len(lake))) for lake in lakes])


def _open(data: DataConfig, path: str, token: str | None, version: str | None) -> Lake:
    return open_lake(
        path,
        data.query,
        token=token,
        image_column=data.image_column,
        caption_column=data.caption_column,
        caption_template=data.caption_template,
        filter_nsfw=data.filter_nsfw,
        weights=data.weights,
        also=columns_of(data.same_by),
        version=version,
    )


def columns_of(same_by: Sequence[str]) -> tuple[str, ...]:
    """Of what rows may share, the columns of a lake: all but the image and the caption, which any pair has."""
    return tuple(name for name in same_by if name not in OF_PAIRS)


def describe(source: RowSource) -> str:
    """What is about to be trained on: how many rows of how many, and the captions of five of them."""
    lines = []
    for part, share in zip(source.parts, source.shares, strict=True) if isinstance(source, Lakes) else [(source, 0.0)]:
        line = f"data: {part.path}: {len(part):,}"
        if isinstance(part, Lake):
            line += f" of {part.total_rows:,} rows"
            line += f" by {part.query!r}" if part.query else ""
        else:
            line += " pairs"
        line += f", {share / sum(source.shares):.1%} of every batch" if isinstance(source, Lakes) else ""
        lines.append(line)
        places = np.unique(np.linspace(0, len(part) - 1, min(_EXAMPLES, len(part))).astype(int)).tolist()
        for row in part.read(places):
            caption = " ".join(row.captions[0].split()) if row.captions else "(no caption)"
            lines.append(f"  row {row.row}: {caption[:100]}{'…' if len(caption) > 100 else ''}")
    return "\n".join(lines) + "\n"
