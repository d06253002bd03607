"""Open the source that a configuration names (a lake, a mixture of lakes, or a folder), and describe it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lakeclip.config.schema import DataConfig
from lakeclip.errors import ConfigError, SourceError
from lakeclip.lake.dataset import Lake, open_lake
from lakeclip.lake.folder.source import open_folder
from lakeclip.lake.mixture import SEPARATOR, LakeMixture, parse_share
from lakeclip.lake.rows import RowSource

_EXAMPLES = 5
#: Values of `DataConfig.same_by` that are not columns of a lake.
PAIR_FIELDS = ("image", "caption")


def open_pairs(data: DataConfig, *, token: str | None = None, version: str | None = None) -> RowSource:
    """Open a configuration's `lake` or `folder`, with its query, captions and weights.

    Args:
        token: for lakes that need one. It is not saved.
        version: the version to read (`RowSource.version`); the newest by default.

    Raises:
        ConfigError: neither or both are set; a setting that folders do not support; inconsistent shares.
        DataError: the source, or this version of it, cannot be opened.
    """
    if (data.lake is None) == (data.folder is None):
        raise ConfigError(
            "neither a lake nor a folder of pairs was given"
            if data.lake is None
            else "both a lake and a folder were given",
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
        if columns := extra_columns(data.same_by):
            raise ConfigError(
                "a folder of pairs has no columns for --same-by",
                found=f"--same-by {' '.join(columns)}",
                allowed=" and ".join(PAIR_FIELDS),
                next_step=f"lakeclip ingest {data.folder} LAKE, and use --lake LAKE",
            )
        folder = open_folder(data.folder)
        if version is not None and folder.version != version:
            raise SourceError(
                f"the folder {data.folder} has changed since this run started",
                found=f"{folder.version}, {len(folder):,} pairs",
                allowed=version,
                next_step="restore its files, or use a lake, which keeps its versions: lakeclip ingest",
            )
        return folder
    assert data.lake is not None
    names = [parse_share(name) for name in data.lake.split(SEPARATOR)]
    if len(names) == 1 and names[0][1] is None:
        return _open(data, names[0][0], token, version)
    shares = [share for _, share in names if share is not None]
    if len(names) == 1 or len(shares) not in (0, len(names)):
        raise ConfigError(
            "the shares of the mixture are inconsistent",
            found=data.lake,
            allowed="a share for every lake (--lake a.lake:0.7 --lake b.lake:0.3), or for none, to mix them by size",
        )
    versions = version.split(SEPARATOR) if version else [None] * len(names)
    lakes = [_open(data, path, token, number) for (path, _), number in zip(names, versions, strict=True)]
    return LakeMixture(lakes, shares or [float(max(1, len(lake))) for lake in lakes])


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
        extra_columns=extra_columns(data.same_by),
        version=version,
    )


def extra_columns(same_by: Sequence[str]) -> tuple[str, ...]:
    """Return the columns among the values of `same_by`: all but `image` and `caption`."""
    return tuple(name for name in same_by if name not in PAIR_FIELDS)


def describe(source: RowSource) -> str:
    """Describe a source in a few lines: its numbers of rows, and the captions of five of them."""
    lines = []
    for part, share in zip(source.parts, source.shares, strict=True):
        line = f"data: {part.path}: {len(part):,}"
        line += f" of {part.num_total_rows:,} rows" if part.is_queryable else " pairs"
        line += f" by {part.query!r}" if part.query else ""
        line += f", {share / sum(source.shares):.1%} of every batch" if len(source.parts) > 1 else ""
        lines.append(line)
        indices = np.unique(np.linspace(0, len(part) - 1, min(_EXAMPLES, len(part))).astype(int)).tolist()
        for row in part.read(indices):
            caption = " ".join(row.captions[0].split()) if row.captions else "(no caption)"
            lines.append(f"  row {row.row}: {caption[:100]}{'…' if len(caption) > 100 else ''}")
    return "\n".join(lines) + "\n"
