"""Source for a folder of image and caption files."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from lakeclip.errors import SourceError
from lakeclip.ingestion.sources.base import Account, Sample
from lakeclip.ingestion.sources.caption_values import CaptionReader, captions_in
from lakeclip.ingestion.sources.column_roles import plain
from lakeclip.ingestion.sources.format import SourceFormat, SourceOptions
from lakeclip.lake.columns import CAPTION_NAMES, match_name
from lakeclip.lake.encodings import TextDecoder
from lakeclip.lake.folder.captions import decode_text, parse_captions
from lakeclip.lake.folder.pairing import Pairing
from lakeclip.lake.folder.records import Rejected
from lakeclip.lake.folder.source import read_file
from lakeclip.lake.folder.stems import JSON_SUFFIX, Pair
from lakeclip.lake.images import image_suffixes, suffix_of

#: Names that a caption template can use for every image of a folder.
_FILE_NAMES = ("folder", "name", "file", "path", "caption")
#: Number of JSON files in which an unknown name is looked for before it is refused.
_CHECKED_FILES = 100
#: Number of caption files from which their encoding is detected.
_DECODED_FILES = 5_000


class FolderPairs:
    """Image-caption pairs in the files below a folder (a `Source`).

    Values of a JSON file beside an image become metadata. A caption template makes captions of the names of folders
    (`{folder}`, the folder of the image, with blanks for underscores), of files (`{name}`, `{file}`, `{path}`), of the
    captions (`{caption}`) and of values in JSON; images without captions are then used, too.

    Args:
        folder: the folder.
        part: its name in the lake.
        options: columns of captions (names of values in JSON), caption template and encoding.

    Raises:
        SourceError: the folder holds no pair, or no file has a value with a requested name.
    """

    def __init__(self, folder: str, part: str | None = None, options: SourceOptions | None = None) -> None:
        options = options or SourceOptions(())
        self.name = folder
        self.part = part if part is not None else os.path.basename(os.path.abspath(folder))
        self.account = Account()
        self._decoder = TextDecoder(options.encoding)
        self._template = options.caption_template
        self._reader = CaptionReader(options.caption_columns or ("caption",), self._template)
        self._chosen = options.caption_columns
        self._pairing = Pairing(folder, all_images=self._template is not None)
        self.size = self._pairing.size
        self.position = 0
        self.collisions = self._pairing.collisions
        self.ignored: Counter[str] = self._pairing.ignored
        self.mapping: dict[str, str] = {}
        self.notes: list[str] = []
        self.completed: list[tuple[str, int]] = []
        if self._template is not None:
            self.mapping["caption"] = f"template {self._template!r}"
        elif self._chosen:
            self.mapping["caption"] = ", ".join(self._chosen)
        self._check_names()

    def skip_parts(self, completed: Collection[tuple[str, int]]) -> None:
        """Do nothing: the folder is always read, because files may have been added."""

    def __iter__(self) -> Iterator[Sample | Rejected]:
        self.account.add_read("files", self.ignored.total())
        for suffix, count in self.ignored.items():
            self.account.add_left_out("files", f"{suffix} files, which belong to no image", count)
        for rejected in self._pairing.rejected():
            self._count(1, rejected)
            yield self._with_part(rejected)
        for pair in self._pairing.pairs():
            self.position += 1
            item = self._read(pair)
            self._count(sum(map(bool, pair)), item)
            yield self._with_part(item) if isinstance(item, Rejected) else item
        self.notes += [f"{self.part}: {note}" for note in self._decoder.notes("caption files")]

    def _texts(self) -> Iterator[bytes]:
        """Yield the content of caption files, from which their encoding is detected."""
        for pair in itertools.islice(self._pairing.pairs(), _DECODED_FILES):
            for path in filter(None, (pair.captions, pair.details)):
                data = read_file(os.path.join(self.name, path))
                if isinstance(data, bytes):
                    yield data

    def _count(self, num_files: int, item: Sample | Rejected) -> None:
        self.account.add_read("files", num_files)
        if isinstance(item, Rejected):
            self.account.add_left_out("files", item.reason, num_files)
        else:
            self.account.add_used("files", num_files)

    def _with_part(self, rejected: Rejected) -> Rejected:
        return rejected._replace(key=f"{self.part}: {rejected.key}")

    def _read(self, pair: Pair) -> Sample | Rejected:
        image = read_file(os.path.join(self.name, pair.image))
        if isinstance(image, str):
            return Rejected(pair.image, image)
        captions: tuple[str, ...] = ()
        values: dict[str, object] = {}
        for path in (pair.captions, pair.details):
            if not path:
                continue
            data = read_file(os.path.join(self.name, path))
            if isinstance(data, str):
                return Rejected(path, data)
            self._decoder.prepare(data, self._texts)
            if not path.lower().endswith(JSON_SUFFIX):
                captions = parse_captions(data, self._decoder)
                continue
            content = _load(data, self._decoder)
            if isinstance(content, ValueError):
                return Rejected(path, f"broken JSON: {content}")
            if isinstance(content, Mapping):
                values = {str(name): plain(value) for name, value in content.items()}
            else:
                captions = captions or captions_in(content)
        name = match_name(values, CAPTION_NAMES)
        if not captions and name is not None:
            captions = captions_in(values[name])
        if name is not None and captions_in(values[name]) == captions:
            del values[name]  # metadata that repeats the captions would be a redundant column
        return self._make_sample(pair, image, captions, values)

    def _make_sample(
        self, pair: Pair, image: bytes, captions: tuple[str, ...], values: dict[str, object]
    ) -> Sample | Rejected:
        if self._template is not None:
            folder = os.path.basename(os.path.dirname(os.path.join(os.path.abspath(self.name), pair.image)))
            about = {
                "folder": folder.replace("_", " "),
                "name": os.path.splitext(os.path.basename(pair.image))[0],
                "file": os.path.basename(pair.image),
                "path": pair.image,
                "caption": list(captions) or None,
            }
            captions = self._reader.read({**about, **values})
            values = {"folder": folder, **values}
        elif self._chosen:
            captions = self._reader.read({"caption": list(captions) or None, **values})
            values = {name: value for name, value in values.items() if name not in self._chosen}
        if captions or values:
            return Sample(pair.image, image, captions, values)
        if not self._chosen:
            return Rejected(pair.image, f"caption is empty: {pair.captions}")
        return Rejected(pair.image, f"no caption: {', '.join(self._chosen)} is in no file of this image")

    def _check_names(self) -> None:
        """Raise if a name that the user has chosen is not found, before anything is written."""
        names = [*self._chosen, *(self._reader.template_names if self._template is not None else ())]
        unknown = {name.partition(".")[0] for name in names} - set(_FILE_NAMES)
        if not unknown:
            return
        found: set[str] = set()
        for number, pair in enumerate(self._pairing.pairs()):
            for path in (pair.captions, pair.details):
                if path.lower().endswith(JSON_SUFFIX):
                    data = read_file(os.path.join(self.name, path))
                    content = _load(data, TextDecoder()) if isinstance(data, bytes) else None
                    found |= set(map(str, content)) if isinstance(content, Mapping) else set()
            if unknown <= found:
                return
            if number >= _CHECKED_FILES and found:
                break
        raise SourceError(
            f"{', '.join(sorted(unknown - found))} is not known about the images in {self.name}",
            found=f"values in JSON files: {', '.join(sorted(found))}" if found else "no JSON files beside the images",
            allowed=", ".join([*_FILE_NAMES, *sorted(found)][:20]),
            next_step="--caption-template 'a photo of a {folder}', or --caption-column NAME",
        )


def _load(data: bytes, decoder: TextDecoder) -> object:
    """Return the content of a JSON file, or a `ValueError` that says why it cannot be read."""
    try:
        return json.loads(decode_text(data, decoder))
    except RecursionError:
        return ValueError("nested too deeply")
    except ValueError as error:
        return error


def files_below(folder: str) -> Iterator[str]:
    """Yield the path of every file below a folder, without hidden files and folders."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(parent, name) for name in names if not name.startswith("."))


def _has_images(path: str) -> bool:
    return os.path.isdir(path) and any(suffix_of(file) in image_suffixes() for file in files_below(path))


def _open(paths: Sequence[str], options: SourceOptions) -> list[FolderPairs]:
    return [FolderPairs(path, part, options) for path, part in zip(paths, options.parts, strict=True)]


FORMAT = SourceFormat(
    "folder",
    "a folder of images and .txt captions",
    _open,
    matches=_has_images,
    options=("caption_columns", "caption_template", "encoding"),
)
