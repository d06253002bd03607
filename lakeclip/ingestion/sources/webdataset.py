"""Source for WebDataset shards: tar files in which `KEY.jpg`, `KEY.txt` and `KEY.json` follow one another.

A key is a member's path up to the first dot of its base name (https://github.com/webdataset/webdataset). Tar files are
streamed: nothing is unpacked to disk, and at most one sample is in memory.
"""

from __future__ import annotations

import contextlib
import json
import re
import tarfile
from collections.abc import Generator, Iterator, Sequence
from typing import BinaryIO

from lakeclip.ingestion.sources.base import Sample
from lakeclip.ingestion.sources.caption_values import CaptionReader, captions_in
from lakeclip.ingestion.sources.files import FileSource
from lakeclip.ingestion.sources.format import SourceFormat, SourceOptions
from lakeclip.ingestion.sources.tar_file import READ_ERRORS, TarLinks, TarMember, open_tar
from lakeclip.lake.columns import CAPTION_NAMES as _CAPTION_NAMES
from lakeclip.lake.encodings import TextDecoder
from lakeclip.lake.folder.captions import decode_text, parse_captions
from lakeclip.lake.folder.records import Rejected
from lakeclip.lake.images import MAX_FILE_BYTES, image_suffixes

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_MEMBER = re.compile(r"((?:.*/|)[^./][^./]*)\.([^/]+)", re.DOTALL)
#: If a sample has several images, the first of these is used, as in other WebDataset readers.
_IMAGE_ORDER = ("jpg", "jpeg", "png", "webp")
#: Extensions of texts, and limits on what is read of them to detect their encoding.
_TEXTS = frozenset({"txt", "json", "cls"})
_SAMPLE_BYTES = 256 * 2**20
_MAX_TEXT = 2**20
_LOST_LINK = "link to something that is not a file of the archive"


class Shards(FileSource):
    """Samples of WebDataset tar files (a `Source`).

    A sample without captions is kept if it has other data, such as a label; otherwise it is rejected.

    Args:
        paths: the tar files, in order.
        parts: a name for each file; see `files.name_parts`.
        options: keys of JSON with the captions, caption template, and encoding of texts. `txt`, or `caption` if no key
            has this name, are the captions of `KEY.txt`.

    Raises:
        SourceError: a file does not exist.
    """

    file_kind = "tar file"

    def __init__(
        self, paths: Sequence[str], parts: Sequence[str] | None = None, options: SourceOptions | None = None
    ) -> None:
        super().__init__(paths, parts)
        options = options or SourceOptions(())
        self._is_complete = True
        self._encoding = options.encoding
        self._decoder = TextDecoder(self._encoding)
        self._chosen = options.caption_columns
        self._template = options.caption_template
        self._reader = CaptionReader(self._chosen or ("txt", "caption"), self._template)
        if self._template is not None:
            self.mapping["caption"] = f"template {self._template!r}"
        elif self._chosen:
            self.mapping["caption"] = ", ".join(self._chosen)

    def read_file(self, path: str) -> Generator[Sample | Rejected, None, bool]:
        """Yield each sample of a tar file."""
        self._is_complete = True
        self._decoder = TextDecoder(self._encoding)
        with open(path, "rb", buffering=2**18) as file, contextlib.closing(TarLinks(path)) as links:
            for key, files in self._samples(path, file, links):
                self._advance(file.tell())
                if isinstance(files, str):
                    yield Rejected(key, files)
                    continue
                for extension in _TEXTS & files.keys():
                    self._decoder.prepare(files[extension], lambda: _texts(path))
                item = self._sample(f"{self.part}: {key}", key, files)
                self._count(item, files)
                yield item
        self.notes += [f"{self.part}: {note}" for note in self._decoder.notes("texts")]
        return self._is_complete

    def _samples(self, path: str, file: BinaryIO, links: TarLinks) -> Iterator[tuple[str, dict[str, bytes] | str]]:
        """Yield key and extension → content of each sample, or a name and the reason why it cannot be read."""
        current: str | None = None
        files: dict[str, bytes] = {}
        number = -1
        is_open = False  # a member has been counted as read, and it is not decided yet what becomes of it
        TarMember.ended_by = None
        try:
            with open_tar(file) as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every member in memory
                    number += 1
                    self.account.add_read("members")
                    is_open = True
                    size: int | None = member.size
                    name = f"{self.part}: {member.name}"
                    if member.islnk() or member.issym():
                        size = links.size(number)
                    match = _MEMBER.fullmatch(member.name)
                    extension = match[2].lower() if match is not None else ""
                    if reason := _unused(member, match):
                        self.account.add_left_out("members", reason)
                        is_open = False
                        continue
                    assert match is not None, "members without an extension are unused"
                    if match[1] != current:
                        if current is not None and files:
                            yield current, files
                        current, files = match[1], {}
                    if not _is_used(extension):
                        self.ignored[f".{extension}"] += 1
                        self.account.add_left_out("members", f".{extension} files, which are not used")
                    elif extension in files:
                        self.account.add_left_out("members", "name is not unique")
                        yield name, "name is not unique: it is in the archive twice"
                    elif size is None:
                        self.account.add_left_out("members", _LOST_LINK)
                        yield name, f"{_LOST_LINK}: {member.linkname}"
                    elif size + sum(map(len, files.values())) > MAX_FILE_BYTES:
                        self.account.add_left_out("members", "too large")
                        yield name, f"too large: {size / 2**20:,.0f} MB"
                    elif member.isfile():
                        content = tar.extractfile(member)
                        assert content is not None, "checked above: a regular file"
                        data = content.read()
                        if len(data) < size:
                            raise EOFError(f"{member.name} ends after {len(data):,} of {size:,} bytes")
                        files[extension] = data
                    else:
                        files[extension] = links.read(number)
                    is_open = False
        except READ_ERRORS as error:
            # The sample that was being read is incomplete.
            self._is_complete = False
            self.account.add_left_out("members", "broken archive", len(files) + is_open)
            detail = " ".join(str(error).split())
            yield path, f"broken archive: {detail}; everything after {current or 'its start'} is lost"
            return
        if current is not None and files:
            yield current, files
        ending = type(TarMember.ended_by).__name__
        if ending != "EOFHeaderError":
            self._is_complete = False
            detail = "it ends without an end mark" if ending == "EmptyHeaderError" else "a damaged header"
            yield path, f"broken archive: {detail}; everything after {current or 'its start'} is lost"

    def _count(self, item: Sample | Rejected, files: dict[str, bytes]) -> None:
        """Count what became of the members of a sample."""
        if isinstance(item, Rejected):
            self.account.add_left_out("members", item.reason, len(files))
            return
        num_images = sum(map(_is_image, files))
        self.account.add_left_out("members", "further image of a sample that has one", num_images - 1)
        self.account.add_used("members", len(files) - (num_images - 1))

    def _sample(self, name: str, key: str, files: dict[str, bytes]) -> Sample | Rejected:
        images = [extension for extension in files if _is_image(extension)]
        if not images:
            return Rejected(name, f"no image: only {', '.join('.' + extension for extension in files)}")
        images.sort(
            key=lambda extension: _IMAGE_ORDER.index(extension) if extension in _IMAGE_ORDER else len(_IMAGE_ORDER)
        )
        metadata: dict[str, object] = {}
        if "json" in files:
            try:
                loaded = json.loads(decode_text(files["json"], self._decoder))
            except (ValueError, RecursionError) as error:
                return Rejected(name, f"broken JSON: {error}")
            metadata = loaded if isinstance(loaded, dict) else {"json": loaded}
        if "cls" in files:
            text = decode_text(files["cls"], self._decoder).strip()
            metadata = {**metadata, "cls": int(text) if re.fullmatch(r"-?\d{1,18}", text) else text}
        captions = parse_captions(files["txt"], self._decoder) if "txt" in files else ()
        if self._template is not None or self._chosen:
            return self._sample_as_chosen(name, key, files[images[0]], captions, metadata)
        if not captions:
            names = sorted(filter(_is_caption_name, metadata), key=lambda name: _CAPTION_NAMES.index(name.lower()))
            captions = next((texts for name in names if (texts := captions_in(metadata[name]))), ())
        listed = metadata.get("json")
        if not captions and isinstance(listed, list) and all(part is None or isinstance(part, str) for part in listed):
            captions = captions_in(listed)
        if not captions and not metadata:
            return Rejected(name, "caption is empty" if "txt" in files else "no caption")
        # Metadata that repeats the captions would be a redundant column.
        metadata = {
            name: value
            for name, value in metadata.items()
            if not (
                (_is_caption_name(name) or name == "json")
                and captions
                and captions_in(value) in (captions, captions[:1])
            )
        }
        return Sample(key, files[images[0]], captions, metadata)

    def _sample_as_chosen(
        self, name: str, key: str, image: bytes, texts: tuple[str, ...], metadata: dict[str, object]
    ) -> Sample | Rejected:
        """Return a sample with the captions that the user has chosen."""
        captions = self._reader.read({"txt": list(texts) or None, "caption": list(texts) or None, **metadata})
        if not captions and not metadata:
            return Rejected(name, f"no caption: no {', '.join(self._chosen or self._reader.template_names)}")
        if self._template is None:
            metadata = {name: value for name, value in metadata.items() if name not in self._chosen}
        return Sample(key, image, captions, metadata)


def _texts(path: str) -> Iterator[bytes]:
    """Yield the texts of a tar file, from which their encoding is detected."""
    with contextlib.suppress(*READ_ERRORS), open(path, "rb") as file, open_tar(file) as tar:
        while (member := tar.next()) is not None and file.tell() < _SAMPLE_BYTES:
            tar.members = []  # type: ignore[attr-defined]
            if member.isfile() and member.size < _MAX_TEXT and member.name.lower().rpartition(".")[2] in _TEXTS:
                content = tar.extractfile(member)
                if content is not None:
                    yield content.read()


def _unused(member: tarfile.TarInfo, match: re.Match[str] | None) -> str:
    """Return the reason why a member is in no sample, whatever its content; "" if it may be in one."""
    if member.isdir():
        return "folders"
    if not (member.isfile() or member.islnk() or member.issym()):
        return "devices and pipes"
    if match is None:
        return "hidden files and files without a suffix"
    return "files called __NAME__, which describe the archive" if re.fullmatch("(.*/)?__.*__", match[1]) else ""


def _is_image(extension: str) -> bool:
    return f".{extension.rpartition('.')[2]}" in image_suffixes()


def _is_used(extension: str) -> bool:
    return extension in _TEXTS or _is_image(extension)


def _is_caption_name(name: str) -> bool:
    """Return whether a key of JSON may hold the captions of a sample that has no `KEY.txt`."""
    return name.lower() in _CAPTION_NAMES


def _open(paths: Sequence[str], options: SourceOptions) -> list[Shards]:
    return [Shards(paths, options.parts, options)]


FORMAT = SourceFormat(
    "webdataset",
    "WebDataset .tar files",
    _open,
    suffixes=TAR_SUFFIXES,
    options=("caption_columns", "caption_template", "encoding"),
)
