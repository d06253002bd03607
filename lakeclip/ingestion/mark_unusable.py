"""Mark rows of a lake as unusable, so that later runs skip them."""

from __future__ import annotations

from collections.abc import Mapping

from lakeclip.errors import LakeError, OutputError
from lakeclip.lake import engine
from lakeclip.lake.columns import type_names
from lakeclip.lake.schema import UNUSABLE, clean_text

_BLOCK = 100_000


def mark_unusable(path: str, reasons: Mapping[int, str]) -> int:
    """Write the reasons why rows cannot be used into a lake's column `unusable`, which is created if necessary.

    This creates a new version of the lake; a run that started with an older version is not affected.

    Args:
        path: path of a lake, without a tag: a tagged version cannot change.
        reasons: row → reason.

    Returns:
        Number of rows that were not marked before.

    Raises:
        LakeError: the lake cannot be opened, is shorter than expected, or uses the column for something else.
        OutputError: the lake cannot be written.
    """
    normal = engine.normalize_path(path)
    try:
        dataset = engine.deeplake().open(normal, token=engine.get_token())
    except Exception as error:
        raise engine.lake_error(error, normal) from None
    kind = type_names(dataset).get(UNUSABLE, "")
    if kind not in ("", "text") or (reasons and max(reasons) >= len(dataset)):
        raise LakeError(
            f"cannot mark rows of the lake at {path} as unusable",
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
        raise OutputError(f"cannot mark rows of the lake at {path} as unusable", found=engine.one_line(error)) from None
    return marked
