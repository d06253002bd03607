"""Reading of tar files from untrusted hands: compression, damaged headers, and links between members."""

from __future__ import annotations

import lzma
import os
import posixpath
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from lakeclip.lake.images import MAX_FILE_BYTES


def open_tar(file: BinaryIO) -> tarfile.TarFile:
    """Open a tar file; its first bytes determine the compression.

    tarfile's own detection would decompress unknown data as LZMA, with unlimited memory.
    """
    head = file.read(6)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return tarfile.open(fileobj=file, mode="r:gz", tarinfo=TarMember)
    if head.startswith(b"BZh"):
        return tarfile.open(fileobj=file, mode="r:bz2", tarinfo=TarMember)
    if head == b"\xfd7zXZ\0":
        return tarfile.open(fileobj=_Xz(file), mode="r|", tarinfo=TarMember)  # type: ignore[call-overload,no-any-return]
    return tarfile.open(fileobj=file, mode="r:", tarinfo=TarMember)


#: Memory limit in bytes for decompressing xz. The highest preset takes 65 MiB; a header can request up to 4 GiB.
_XZ_MEMORY = 256 * 2**20


class _Xz:
    """Reader that decompresses an xz file with limited memory, whatever its header requests."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._stream = self._next()

    def read(self, size: int) -> bytes:
        """Return at most so many bytes; none at the end of the file."""
        while True:
            if self._stream.eof:
                # Another stream may follow; after the last one there is only padding.
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


#: Errors that reading a damaged archive raises, compressed or not.
READ_ERRORS = (
    *(tarfile.TarError, EOFError, OSError, ValueError),
    *(zlib.error, lzma.LZMAError, LookupError, ArithmeticError),
)
#: Limit on the bytes of a header (names, pax records): tarfile reads it whole, and compression hides its size.
_MAX_HEADER = 2**20
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class TarMember(tarfile.TarInfo):
    """Tar header that records why the archive ended: tarfile treats a damaged header as the end, without an error.

    It rejects headers that would move tarfile backwards, or make it allocate large buffers for a few bytes.
    """

    ended_by: Exception | None = None

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> TarMember:
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or member.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.InvalidHeaderError("a negative size, or a sparse file")  # type: ignore[attr-defined]
        if member.type in _HEADERS and member.size > _MAX_HEADER:
            raise tarfile.InvalidHeaderError("a header that is too long")  # type: ignore[attr-defined]
        return member

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> TarMember:
        try:
            return super().fromtarfile(tarfile_)
        except Exception as error:
            TarMember.ended_by = error
            raise


class _Location(NamedTuple):
    """Position and size of a member's content in a file."""

    offset: int
    size: int


class TarLinks:
    """Contents that the links of a tar file refer to.

    A hard link has the content of an earlier member; a symbolic link that of any member. The archive is scanned when
    the first link is met. In memory are the links alone; their targets are read from the tar file, or, because a
    compressed one cannot be read backwards, from a temporary copy of the targets.

    Args:
        path: the tar file.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._locations: dict[int, _Location] | None = None
        self._contents: BinaryIO | None = None

    def close(self) -> None:
        """Remove the temporary copy."""
        if self._contents is not None:
            self._contents.close()

    def size(self, number: int) -> int | None:
        """Return the size of the content of a link, or None if its target is not a file of the archive.

        Args:
            number: number of the link among the archive's members, from 0.
        """
        if self._locations is None:
            self._locations = self._scan()
        location = self._locations.get(number)
        return None if location is None else location.size

    def read(self, number: int) -> bytes:
        """Return the content of a link that has a `size`."""
        assert self._locations is not None, "size() comes first"
        assert self._contents is not None, "so do the contents"
        self._contents.seek(self._locations[number].offset)
        return self._contents.read(self._locations[number].size)

    def _scan(self) -> dict[int, _Location]:
        targets = self._targets()
        is_compressed = not _is_plain_tar(self._path)
        self._contents = tempfile.TemporaryFile() if is_compressed else open(self._path, "rb")  # noqa: SIM115
        names = set(targets.values())
        latest: dict[str, _Location] = {}
        resolved: dict[int, _Location] = {}
        waiting: dict[int, tuple[str, str]] = {}
        with open(self._path, "rb") as file:
            try:
                with open_tar(file) as tar:
                    for number, member in _members(tar):
                        name = posixpath.normpath(member.name)
                        if number in targets:
                            if (location := latest.get(targets[number])) is not None:
                                resolved[number] = location
                                if name in names:
                                    latest[name] = location
                            elif member.issym():
                                waiting[number] = (name, targets[number])
                        elif member.isfile() and name in names:
                            latest[name] = _Location(member.offset_data, member.size)
                            if is_compressed and member.size <= MAX_FILE_BYTES:
                                latest[name] = self._copy(tar, member)
            except READ_ERRORS:
                pass  # what follows the damage is lost, as for the reader of the samples
        # Symbolic links to later members, or to other such links.
        while found := {number: latest[target] for number, (_, target) in waiting.items() if target in latest}:
            for number, location in found.items():
                name, _ = waiting.pop(number)
                resolved[number] = location
                latest.setdefault(name, location)
        return resolved

    def _targets(self) -> dict[int, str]:
        """Return number → name of the target of each link."""
        targets: dict[int, str] = {}
        with open(self._path, "rb") as file:
            try:
                with open_tar(file) as tar:
                    for number, member in _members(tar):
                        if member.islnk():
                            targets[number] = posixpath.normpath(member.linkname)
                        elif member.issym():
                            folder = posixpath.dirname(member.name)
                            targets[number] = posixpath.normpath(posixpath.join(folder, member.linkname))
            except READ_ERRORS:
                pass
        return targets

    def _copy(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> _Location:
        assert self._contents is not None, "opened above"
        source = tar.extractfile(member)
        assert source is not None, "a regular file"
        offset, size = self._contents.seek(0, os.SEEK_END), 0
        while block := source.read(2**20):
            size += self._contents.write(block)
        return _Location(offset, size)


def _members(tar: tarfile.TarFile) -> Iterator[tuple[int, tarfile.TarInfo]]:
    """Yield each member with its number; tarfile alone would keep all of them in memory."""
    number = 0
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]
        yield number, member
        number += 1


def _is_plain_tar(path: str) -> bool:
    with open(path, "rb") as file:
        return not file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"))
