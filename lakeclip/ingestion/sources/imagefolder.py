"""Source for Hugging Face's image folders: images, and a table `metadata.csv`, `.jsonl` or `.parquet`.

Its column `file_name` names the images (https://huggingface.co/docs/datasets/image_dataset#imagefolder).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterator, Sequence

from lakeclip.errors import SourceError
from lakeclip.ingestion.sources.base import Sample
from lakeclip.ingestion.sources.folder import files_below
from lakeclip.ingestion.sources.format import SourceFormat, SourceOptions
from lakeclip.ingestion.sources.image_files import ImageFinder
from lakeclip.ingestion.sources.tables import Tables
from lakeclip.lake.folder.pairing import Pairing
from lakeclip.lake.folder.records import Rejected
from lakeclip.lake.images import image_suffixes, suffix_of

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_NAMES = ("file_name", "image_file_name")
#: Names of the folders of splits, as Hugging Face's `datasets` knows them → value of the column `split`.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


class ImageFolders(Tables):
    """Rows of the metadata files below a folder (a `Source`). Images that no row names are left out, one by one.

    Metadata files in folders called `train`, `validation` or `test` (or `val`, `dev`, …) give a column `split`.
    """

    def folder_columns(self, path: str) -> dict[str, object]:
        """Return the columns that the folders of a metadata file are."""
        split = _SPLITS.get(os.path.basename(os.path.dirname(os.path.abspath(path))).lower())
        return {**({"split": split} if split else {}), **super().folder_columns(path)}

    def read_file(self, path: str) -> Generator[Sample | Rejected, None, bool]:
        """Yield a sample for each row of a metadata file, and then the images that it does not name."""
        is_complete = yield from super().read_file(path)
        for image in _images_of(path):
            self.account.add_read("images")
            if os.path.realpath(image) in self._named:
                self.account.add_used("images")
            else:
                reason = "image is not named in the metadata"
                self.account.add_left_out("images", reason)
                yield Rejected(f"{self.part}: {os.path.relpath(image, os.path.dirname(path))}", reason)
        return is_complete

    def _find_images(self, path: str) -> ImageFinder:
        self._named: set[str] = set()
        return _RecordingFinder(path, self._image_root, self._named)


class _RecordingFinder(ImageFinder):
    """Finder that records the images that were found."""

    def __init__(self, table: str, root: str | None, named: set[str]) -> None:
        super().__init__(table, root)
        self._named = named

    def find(self, name: str) -> list[str]:
        """Return the files that a name may mean."""
        paths = super().find(name)
        self._named.update(map(os.path.realpath, paths))
        return paths


def _images_of(metadata: str) -> Iterator[str]:
    """Yield the images that a metadata file is about: those below its folder, except below another metadata file."""
    top = os.path.dirname(metadata)
    for parent, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if parent != top and any(name in _METADATA for name in names):
            folders.clear()
            continue
        for name in sorted(names):
            if suffix_of(name) in image_suffixes() and not name.startswith("."):
                yield os.path.join(parent, name)


def _metadata_files(folder: str) -> list[str]:
    return sorted(file for file in files_below(folder) if os.path.basename(file) in _METADATA)


def _is_known(file: str) -> bool:
    return os.path.basename(file) in _METADATA or suffix_of(file) in image_suffixes()


def _matches(path: str) -> bool:
    """Return whether a folder holds images and metadata with the names of files, and no captions of another kind."""
    if not os.path.isdir(path):
        return False
    files = _metadata_files(path)
    if not files or not any(suffix_of(file) in image_suffixes() for file in files_below(path)):
        return False
    try:
        table = Tables(files[:1])
    except SourceError:
        return False
    return table.mapping.get("image file") in _NAMES and not _has_pairs(path)


def _has_pairs(folder: str) -> bool:
    try:
        return Pairing(folder).size > 0
    except SourceError:
        return False


def _open(paths: Sequence[str], options: SourceOptions) -> list[Tables]:
    sources: list[Tables] = []
    for folder, part in zip(paths, options.parts, strict=True):
        files = _metadata_files(folder)
        parts = [f"{part}/{os.path.relpath(file, folder)}" for file in files]
        source = ImageFolders.open(files, options.with_parts(parts))
        others = Counter(suffix_of(file) or "no suffix" for file in files_below(folder) if not _is_known(file))
        source.leave_out_files(others)
        sources.append(source)
    return sources


FORMAT = SourceFormat(
    "image folder",
    "a Hugging Face image folder (images with metadata.csv, .jsonl or .parquet)",
    _open,
    matches=_matches,
    has_columns=True,
    options=("encoding", "delimiter", "image_root"),
)
