"""WebDataset shards: tar files in which `KEY.jpg`, `KEY.txt` and `KEY.json` follow one another.

A key is a member's path up to the first dot of its base name (https://github.com/webdataset/webdataset). Tars are
streamed: nothing is unpacked to disk and no more than one sample is in memory.
"""

from __future__ import annotations

import glob
import json
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from typing import BinaryIO

from lakeclip.errors import SourceError
from lakeclip.lake.sources.base import Rejected, Sample
from lakeclip.lake.sources.captions import decode_text, parse_captions
from lakeclip.lake.sources.files import Files
from lakeclip.lake.sources.images import MAX_FILE_BYTES, image_suffixes

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
#: Names under which a sample's JSON may hold its captions, where there is no `KEY.txt`.
CAPTION_NAMES = ("captions", "caption", "text")

_MEMBER = re.compile(r"((?:.*/|)[^./][^./]*)\.([^/]+)", re.DOTALL)
#: Of several images in a sample the first of these is taken, as other readers of WebDataset do.
_IMAGE_ORDER = ("jpg", "jpeg", "png", "webp")


def is_tar(path: str) -> bool:
    """Whether a name is that of a tar file, compressed or not."""
    return path.lower().endswith(TAR_SUFFIXES)


def expand(pattern: str) -> list[str]:
    """Paths that a pattern with brace ranges (`{0000..0003}`, `{a,b}`) and wildcards stands for, in order.

    Raises:
        SourceError: wildcards match nothing.
    """
    paths: list[str] = []
    for path in _expand_braces(pattern):
        if os.path.exists(path) or not glob.has_magic(path):
            paths.append(path)
        elif matches := sorted(glob.glob(path, recursive=True)):
            paths += matches
        else:
            raise SourceError(f"no file matches {path}", next_step="quote the pattern, or check the path")
    return paths


def _expand_braces(pattern: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None or os.path.exists(pattern):
        return [pattern]
    inner = match[1]
    if bounds := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        first, last = int(bounds[1]), int(bounds[2])
        width = len(bounds[1]) if bounds[1].startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(first, last + 1)]
    elif "," in inner:
        choices = inner.split(",")
    else:
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [path for choice in choices for path in _expand_braces(f"{before}{choice}{after}")]


class Shards(Files):
    """WebDataset tars on their way into a lake (a `Source`).

    A sample without captions is kept, with none, if it has other data (a labelled test set); else it is rejected.

    Args:
        name: what the user called them.
        paths: the tar files, in order.
        parts: what to call each; see `files.name_parts`.

    Raises:
        SourceError: one of them does not exist.
    """

    def __init__(self, name: str, paths: Sequence[str], parts: Sequence[str] | None = None) -> None:
        super().__init__(name, paths, parts, "tar file")
        self._whole = True

    def _read(self, path: str) -> Generator[Sample | Rejected, None, bool]:
        self._whole = True
        with open(path, "rb", buffering=2**18) as file:
            for key, files in self._samples(path, file):
                self._advance(file.tell())
                if isinstance(files, str):
                    yield Rejected(key, files)
                else:
                    yield self._sample(f"{self.part}: {key}", key, files)
        return self._whole

    def _samples(self, path: str, file: BinaryIO) -> Iterator[tuple[str, dict[str, bytes] | str]]:
        """Key and files by extension of each sample; or a name and what is wrong with it."""
        current: str | None = None
        files: dict[str, bytes] = {}
        _Member.ended_by = None
        try:
            with _open(file) as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps every one, for ever
                    match = _MEMBER.fullmatch(member.name)
                    if not member.isfile() or match is None or re.fullmatch("(.*/)?__.*__", match[1]):
                        continue
                    key, extension = match[1], match[2].lower()
                    if key != current:
                        if current is not None and files:
                            yield current, files
                        current, files = key, {}
                    if not _wanted(extension):
                        self.ignored[f".{extension}"] += 1
                    elif extension in files:
                        yield f"{self.part}: {member.name}", "name is not unique: it is in the archive twice"
                    elif member.size + sum(map(len, files.values())) > MAX_FILE_BYTES:
                        yield f"{self.part}: {member.name}", f"too large: {member.size / 2**20:,.0f} MB"
                    else:
                        content = tar.extractfile(member)
                        assert content is not None, "it is a regular file"
                        files[extension] = content.read()
                        if len(files[extension]) < member.size:
                            raise EOFError(
                                f"{member.name} ends after {len(files[extension]):,} of {member.size:,} bytes"
                            )
        except _BROKEN as error:
            # The sample that was being read is incomplete.
            self._whole = False
            yield path, f"broken archive: {' '.join(str(error).split())}; what follows {current or 'its start'} is lost"
            return
        if current is not None and files:
            yield current, files
        ending = type(_Member.ended_by).__name__
        if ending != "EOFHeaderError":
            self._whole = False
            what = "it ends without an end mark" if ending == "EmptyHeaderError" else "a damaged header"
            yield path, f"broken archive: {what}; what follows {current or 'its start'} is lost"

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
                loaded = json.loads(decode_text(files["json"]))
            except (ValueError, RecursionError) as error:
                return Rejected(name, f"broken JSON: {error}")
            metadata = loaded if isinstance(loaded, dict) else {"json": loaded}
        if "cls" in files:
            text = decode_text(files["cls"]).strip()
            metadata = {**metadata, "cls": int(text) if re.fullmatch(r"-?\d{1,18}", text) else text}
        captions = parse_captions(files["txt"]) if "txt" in files else ()
        if not captions:
            captions = next((found for name in CAPTION_NAMES if (found := _captions_in(metadata.get(name)))), ())
        if not captions and not metadata:
            return Rejected(name, "caption is empty" if "txt" in files else "no caption")
        # Metadata that only repeats the captions would be a column that says them twice.
        metadata = {
            name: value
            for name, value in metadata.items()
            if not (name in CAPTION_NAMES and captions and _captions_in(value) in (captions, captions[:1]))
        }
        return Sample(key, files[images[0]], captions, metadata)


def _open(file: BinaryIO) -> tarfile.TarFile:
    """A tar, by its first bytes. tarfile's own guess would take whatever is none for LZMA, of any memory."""
    head = file.read(6)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return tarfile.open(fileobj=file, mode="r:gz", tarinfo=_Member)
    if head.startswith(b"BZh"):
        return tarfile.open(fileobj=file, mode="r:bz2", tarinfo=_Member)
    if head == b"\xfd7zXZ\0":
        return tarfile.open(fileobj=_Xz(file), mode="r|", tarinfo=_Member)  # type: ignore[call-overload,no-any-return]
    return tarfile.open(fileobj=file, mode="r:", tarinfo=_Member)


#: Bytes that unpacking xz may take; its highest preset takes 65 MiB, and its header could ask for 4 GiB.
_XZ_MEMORY = 256 * 2**20


class _Xz:
    """An xz file, unpacked as it is read, in memory that its header cannot choose freely."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._stream = self._next()

    def read(self, size: int) -> bytes:
        """At most so many bytes; none at the end."""
        while True:
            if self._stream.eof:
                # Streams may follow one another; what follows the last is padding.
                rest = self._stream.unused_data.lstrip(b"\0") or self._file.read(size).lstrip(b"\0")
                if not rest:
                    return b""
                self._stream = self._next()
                data = self._stream.decompress(rest, size)
            elif self._stream.needs_input:
                if not (packed := self._file.read(size)):
                    raise EOFError("the compressed file is cut short")
                data = self._stream.decompress(packed, size)
            else:
                data = self._stream.decompress(b"", size)
            if data:
                return data

    @staticmethod
    def _next() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


#: What a damaged archive, compressed or not, makes its readers raise.
_BROKEN = (
    *(tarfile.TarError, EOFError, OSError, ValueError),
    *(zlib.error, lzma.LZMAError, LookupError, ArithmeticError),
)
#: Longer headers (names, pax records) are no headers: tarfile reads them whole, and a compressed one can be any size.
_MAX_HEADER = 2**20
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class _Member(tarfile.TarInfo):
    """Remembers why the archive ended: tarfile takes a damaged header for the end and says nothing.

    Refuses headers that would have tarfile go backwards, or fill memory from a few bytes.
    """

    ended_by: Exception | None = None

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or member.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.InvalidHeaderError("a size below zero, or a sparse file")  # type: ignore[attr-defined]
        if member.type in _HEADERS and member.size > _MAX_HEADER:
            raise tarfile.InvalidHeaderError("a header of any length")  # type: ignore[attr-defined]
        return member

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(tarfile_)
        except Exception as error:
            _Member.ended_by = error
            raise


def _is_image(extension: str) -> bool:
    return f".{extension.rpartition('.')[2]}" in image_suffixes()


def _wanted(extension: str) -> bool:
    return extension in ("txt", "json", "cls") or _is_image(extension)


def _captions_in(value: object) -> tuple[str, ...]:
    texts: list[object] = value if isinstance(value, list) else [value]
    captions = tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())
    return captions if len(captions) == len(texts) else ()
