"""Source for JSON files that hold images and their captions in the layout of a published data set."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
from collections.abc import Generator, Sequence

from lakeclip.errors import SourceError
from lakeclip.ingestion.sources.annotations import coco, karpathy, objects
from lakeclip.ingestion.sources.annotations.layout import Rows
from lakeclip.ingestion.sources.base import Sample
from lakeclip.ingestion.sources.format import SourceFormat, SourceOptions
from lakeclip.ingestion.sources.lines import READ_ERRORS
from lakeclip.ingestion.sources.record import Table
from lakeclip.ingestion.sources.tables import Tables
from lakeclip.lake.folder.captions import decode_text
from lakeclip.lake.folder.records import Rejected

_SUFFIXES = (".json", ".json.gz")
#: The layouts in matching order.
LAYOUTS = (karpathy.LAYOUT, coco.LAYOUT, objects.CAPTIONS_BY_NAME, objects.OBJECTS)
_HEAD_BYTES = 2**20
#: The start of an object whose first value is a list or an object, or that has the name of an image for a key.
_START = re.compile(
    r'\s*\{\s*"[^"]*"\s*:\s*[\[{]|\s*\{.*?"[^"]*"\s*:\s*\[\s*\{|\s*\{\s*"[^"]*\.[A-Za-z]{3,4}"\s*:', re.DOTALL
)


class AnnotationFiles(Tables):
    """Rows of annotation files (a `Source`). A file is read as a whole: it takes some ten times its size in memory."""

    def _open_file(self, path: str) -> Table:
        known = self.__dict__.setdefault("_read", {})
        if path not in known:
            known.clear()
            known[path] = self._load(path)
        rows: Rows = known[path]
        return rows

    def _load(self, path: str) -> Rows:
        try:
            data = _read_bytes(path)
            content = json.loads(data.decode(self._encoding) if self._encoding is not None else decode_text(data))
        except READ_ERRORS as error:
            raise SourceError(f"{path} cannot be read", found=str(error)) from None
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{path} is no valid JSON", found=str(error) or "nested too deeply") from None
        layout = next((known for known in LAYOUTS if isinstance(content, dict) and known.matches(content)), None)
        if layout is None and objects.is_row(content):
            return Rows([content], "object")
        if layout is None:
            raise SourceError(f"{path} has an unknown layout", found=_outline(content), allowed=_allowed())
        try:
            rows = layout.read(content)
        except ValueError as error:
            raise _no_captions_error(path, str(error)) from None
        rows.size = os.path.getsize(path)
        return rows

    def read_file(self, path: str) -> Generator[Sample | Rejected, None, bool]:
        """Yield a sample for each image of an annotation file."""
        is_complete = yield from super().read_file(path)
        rows = self.__dict__.get("_read", {}).pop(path, None)
        if rows is not None:
            self.account.add_read("captions", rows.num_captions)
            self.account.add_used("captions", rows.num_captions - rows.dropped.total())
            for reason, count in rows.dropped.items():
                self.account.add_left_out("captions", reason, count)
        return is_complete


def _read_bytes(path: str, size: int = -1) -> bytes:
    if path.lower().endswith(".gz"):
        with gzip.open(path) as packed:
            return packed.read(size)
    with open(path, "rb") as file:
        return file.read(size)


def _matches(path: str) -> bool:
    """Return whether a JSON file starts as one object and not as JSON Lines."""
    if not path.lower().endswith(_SUFFIXES) or not os.path.isfile(path):
        return False
    try:
        head = decode_text(_read_bytes(path, _HEAD_BYTES)).replace("\0", "")  # UTF-16 without a mark
    except READ_ERRORS:
        return False
    if _START.match(head[: 2**16]) is None:
        return False
    first, _, rest = head.lstrip().partition("\n")
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return True
    return not rest.strip()


def _outline(content: object) -> str:
    if isinstance(content, dict):
        return f"an object with {', '.join(map(str, list(content)[:8]))}" if content else "an empty object"
    return f"a {type(content).__name__}"


def _allowed() -> str:
    return f"{', '.join(layout.name for layout in LAYOUTS)}, or an array of objects with an image and a caption"


def _no_captions_error(path: str, found: str) -> SourceError:
    """Return the error for a file of other annotations; it names the file of captions if that lies beside it."""
    folder, name = os.path.split(path)
    beside = re.sub(r"^(instances|person_keypoints|panoptic|stuff|image_info)_", "captions_", name)
    has_captions = beside != name and os.path.isfile(os.path.join(folder, beside))
    return SourceError(
        f"{path} holds no captions",
        found=found,
        allowed="annotations with a caption each, as in captions_train2017.json",
        next_step=f"lakeclip ingest {shlex.quote(os.path.join(folder, beside))} LAKE"
        if has_captions
        else "give the file of captions of this data set",
    )


def _open(paths: Sequence[str], options: SourceOptions) -> list[Tables]:
    return [AnnotationFiles.open(paths, options)]


FORMAT = SourceFormat(
    "annotations",
    "annotations of images (.json, as of COCO, Karpathy, LLaVA)",
    _open,
    matches=_matches,
    sniffed=_SUFFIXES,
    beside_images=_SUFFIXES,
    has_columns=True,
    options=("encoding", "image_root"),
)
