"""Marking rows of a lake as unusable, so that later runs leave them out."""

from __future__ import annotations

from collections.abc import Mapping

from lakeclip.errors import LakeError, OutputError
from lakeclip.lake import engine
from lakeclip.lake.columns import type_names
from lakeclip.lake.schema import UNUSABLE, clean_text

_BLOCK = 100_000


def mark_unusable(path: str, reasons: Mapping[int, str]) -> int:
    """Write into a lake's column `unusable` why rows cannot be used; the column is made where there is none.

    It is a new version of the lake: a run that began with an older one reads that as it was.

    Args:
        path: the lake's; not a tag's, which cannot change.
        reasons: row → why.

    Returns:
        How many rows were marked that were not before.

    Raises:
        LakeError: the lake cannot be opened, or has become shorter, or uses the column's name for something else.
        OutputError: it cannot be written.
    """
    normal = engine.normal_path(path)
    try:
        dataset = engine.deeplake().open(normal, token=engine.keep_token(None))
    except Exception as error:
        raise engine.explain(error, normal) from None
    kind = type_names(dataset).get(UNUSABLE, "")
    if kind not in ("", "text") or (reasons and max(reasons) >= len(dataset)):
        raise LakeError(
            f"rows of the lake at {path} cannot be marked as unusable",
            found=f"a column {UNUSABLE} of type {kind}" if kind not in ("", "text") else f"{len(dataset):,} rows",
        )
    marked = 0
    try:
        if not kind:
            dataset.add_column(UNUSABLE, "text")
            for start in range(0, len(dataset), _BLOCK):
                stop = min(start + _BLOCK, len(dataset))
                dataset[UNUSABLE][start:stop] = [""] * (stop - start)
        for row, reason in reasons.items():
            if not dataset[UNUSABLE][row]:
                dataset[UNUSABLE][row] = clean_text(reason)
                marked += 1
        dataset.commit(f"{marked} rows marked as unusable")
    except Exception as error:
        dataset.rollback()
        raise OutputError(
            f"rows of the lake at {path} cannot be marked as unusable", found=engine.one_line(error)
        ) from None
    return marked
