from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import pytest

from lakeclip.errors import SourceError
from lakeclip.lake.sources import webdataset
from lakeclip.lake.sources.base import Rejected, Sample
from lakeclip.lake.sources.images import MAX_FILE_BYTES
from lakeclip.lake.sources.webdataset import Shards, expand
from tests.unit.lake.pairs import picture, write_tar

JPG = picture()
COMPRESS = {"tar": bytes, "tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}


def read(path: Path) -> list[Sample | Rejected]:
    return list(Shards(str(path), [str(path)]))


def test_neighbouring_members_with_one_key_are_a_sample(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "s.tar",
        [
            ("d.x/0.jpg", JPG),
            ("d.x/0.txt", "a cat\na dog"),
            ("d.x/0.json", {"label": "cat", "n": 3, "tags": ["a"], "none": None}),
            ("1.TXT", "upper"),
            ("1.JPEG", JPG),
        ],
    )
    assert read(path) == [
        Sample("d.x/0", JPG, ("a cat", "a dog"), {"label": "cat", "n": 3, "tags": ["a"], "none": None}),
        Sample("1", JPG, ("upper",), {}),
    ]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_reading_is_the_same_compressed(tmp_path: Path, suffix: str) -> None:
    members = [(f"{i}.{e}", JPG if e == "jpg" else "x") for i in range(50) for e in ("jpg", "txt")]
    plain = write_tar(tmp_path / "s.tar", members).read_bytes()
    path = tmp_path / f"s.{suffix}"
    half = len(plain) // 2
    # Files that were compressed in parts and joined are still one.
    path.write_bytes(COMPRESS[suffix](plain[:half]) + COMPRESS[suffix](plain[half:]))
    source = Shards(str(path), [str(path)])
    assert [item.key for item in source] == [str(i) for i in range(50)]
    assert source.position == source.size == os.path.getsize(path)


@pytest.mark.parametrize(
    ("files", "captions", "metadata"),
    [
        ({"json": {"caption": "a cat", "x": 1}}, ("a cat",), {"x": 1}),
        ({"json": {"text": "a cat"}}, ("a cat",), {}),
        ({"json": {"captions": ["a", " ", "b"]}}, (), {"captions": ["a", " ", "b"]}),
        ({"json": {"captions": ["a", "b"], "caption": "a"}}, ("a", "b"), {}),
        ({"txt": "a cat", "json": {"caption": "a cat", "key": "0"}}, ("a cat",), {"key": "0"}),
        ({"txt": "a cat", "json": {"caption": "another"}}, ("a cat",), {"caption": "another"}),
        ({"txt": " ", "json": {"caption": "a cat"}}, ("a cat",), {}),
        ({"json": {"label": "frog"}}, (), {"label": "frog"}),
        ({"json": '["a", 1]'}, (), {"json": ["a", 1]}),
        ({"cls": "7\n"}, (), {"cls": 7}),
    ],
)
def test_captions_come_from_text_or_json(
    tmp_path: Path, files: dict[str, str | dict[str, object]], captions: tuple[str, ...], metadata: dict[str, object]
) -> None:
    path = write_tar(tmp_path / "s.tar", [("0.jpg", JPG), *((f"0.{end}", content) for end, content in files.items())])
    assert read(path) == [Sample("0", JPG, captions, metadata)]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("0.txt", "x")], "no image: only .txt"),
        ([("0.jpg", JPG)], "no caption"),
        ([("0.jpg", JPG), ("0.txt", "\n")], "caption is empty"),
        ([("0.jpg", JPG), ("0.json", "{")], "broken JSON"),
    ],
)
def test_samples_that_cannot_be_rows_are_named(
    tmp_path: Path, members: list[tuple[str, bytes | str]], reason: str
) -> None:
    (item,) = read(write_tar(tmp_path / "s.tar", [*members]))
    assert isinstance(item, Rejected)
    assert item.key == "s.tar: 0"
    assert item.reason.startswith(reason)


def test_odd_members(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "s.tar",
        [
            ("__meta__.json", "{}"),
            (".hidden.jpg", JPG),
            ("noextension", "x"),
            ("0.npy", "x"),
            ("0.seg.png", picture(9, "PNG")),
            ("0.png", picture(8, "PNG")),
            ("0.jpg", JPG),
            ("0.txt", "a"),
            ("0.txt", "b"),
        ],
    )
    source = Shards("s", [str(path)])
    assert list(source) == [
        Rejected("s.tar: 0.txt", "name is not unique: it is in the archive twice"),
        Sample("0", JPG, ("a",), {}),
    ]
    assert source.ignored == {".npy": 1}


def members(count: int) -> list[tuple[str, bytes | str | dict[str, object]]]:
    return [(f"{i:04d}.{end}", JPG if end == "jpg" else "a cat") for i in range(count) for end in ("jpg", "txt")]


@pytest.mark.parametrize("end", ["within a file", "within a header", "between members"])
def test_a_tar_that_was_cut_short_is_reported(tmp_path: Path, end: str) -> None:
    path = write_tar(tmp_path / "s.tar", members(20))
    per_file = [512 + 512 * -(-len(JPG) // 512), 1024]
    ten = 10 * sum(per_file)
    os.truncate(path, ten + {"within a file": 600, "within a header": 200, "between members": 0}[end])
    *good, last = read(path)
    assert len([item for item in good if isinstance(item, Sample)]) == 10
    assert isinstance(last, Rejected)
    assert last.key == str(path)
    assert last.reason.startswith("broken archive: ")


def test_a_damaged_header_does_not_end_the_archive_silently(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", members(20))
    data = bytearray(path.read_bytes())
    at = data.index(b"0010.jpg")
    data[at : at + 200] = b"\xff" * 200
    path.write_bytes(data)
    *good, last = read(path)
    assert len(good) == 10
    assert isinstance(last, Rejected)
    assert "0009 is lost" in last.reason


@pytest.mark.parametrize("content", [b"", b"not a tar at all" * 100, b"\x1f\x8b but not gzip"])
def test_what_is_no_tar_is_reported(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(content)
    (item,) = read(path)
    assert isinstance(item, Rejected)
    assert item.reason.startswith("broken archive")


def test_the_next_shard_is_read_after_a_broken_one(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{i}.tar", members(3)) for i in range(3)]
    os.truncate(paths[1], 700)
    source = Shards("three", [str(path) for path in paths])
    assert sum(isinstance(item, Sample) for item in source) == 6


def test_patterns(tmp_path: Path) -> None:
    for name in ("t-0008.tar", "t-0009.tar", "t-0010.tar", "v-1.tar"):
        (tmp_path / name).touch()
    base = str(tmp_path)
    assert expand(f"{base}/t-{{0008..0010}}.tar") == [f"{base}/t-{n}.tar" for n in ("0008", "0009", "0010")]
    assert expand(f"{base}/t-*.tar") == [f"{base}/t-{n}.tar" for n in ("0008", "0009", "0010")]
    assert expand(f"{base}/{{v-1,t-0009}}.tar") == [f"{base}/v-1.tar", f"{base}/t-0009.tar"]
    assert expand(f"{base}/x{{9..11}}") == [f"{base}/x9", f"{base}/x10", f"{base}/x11"]
    assert expand(f"{base}/{{once}}") == [f"{base}/{{once}}"]
    with pytest.raises(SourceError, match="no file matches"):
        expand(f"{base}/w-*.tar")
    with pytest.raises(SourceError, match="there is no tar file"):
        Shards("x", [f"{base}/gone.tar"])


# ── tars that were made to do harm ──────────────────────────────────────────────────────────────────────────────────


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **more: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    for attribute, value in more.items():
        setattr(info, attribute, value)
    return info.tobuf(tarfile.GNU_FORMAT)


PAIR = [("0.jpg", JPG), ("0.txt", "a cat")]


def test_names_that_lead_out_of_the_folder_are_only_names(tmp_path: Path) -> None:
    """Nothing is unpacked to disk."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    names = ["../../out.jpg", "/tmp/lakeclip-out.jpg", "a/../../../out.jpg"]
    path = write_tar(inner / "s.tar", [(name, JPG) for name in names] + [("0.jpg", JPG), ("0.txt", "a cat")])
    assert [item.key for item in read(path) if isinstance(item, Sample)] == ["0"]
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["s.tar"]
    assert not Path("/tmp/lakeclip-out.jpg").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_links_and_devices_are_passed_over(tmp_path: Path, kind: bytes) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    path = write_tar(tmp_path / "s.tar", PAIR)
    path.write_bytes(
        member("1.jpg", kind, linkname=str(secret)) + member("1.txt", kind, linkname=str(secret)) + path.read_bytes()
    )
    assert [item.captions for item in read(path) if isinstance(item, Sample)] == [("a cat",)]


@pytest.mark.parametrize(
    "header",
    [
        member("x", tarfile.GNUTYPE_LONGNAME, 8 * 2**30),
        member("x", tarfile.XHDTYPE, 8 * 2**30),
        member("x", tarfile.XGLTYPE, 2**21),
        member("x.jpg", tarfile.GNUTYPE_SPARSE, 512),
    ],
    ids=["long name", "pax", "global pax", "sparse"],
)
def test_headers_that_would_fill_memory_end_the_archive(tmp_path: Path, header: bytes) -> None:
    """From a compressed tar of a few kilobytes tarfile would read such a header whole."""
    path = tmp_path / "s.tar.gz"
    path.write_bytes(gzip.compress(write_tar(tmp_path / "a.tar", PAIR).read_bytes()[:-10240] + header + bytes(2**23)))
    tracemalloc.start()
    reason = read(path)[-1]
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
    assert isinstance(reason, Rejected)
    assert reason.reason.startswith("broken archive")


@pytest.mark.parametrize("kind", [lzma.FORMAT_XZ, lzma.FORMAT_ALONE])
def test_a_dictionary_of_any_size_is_refused(tmp_path: Path, kind: int) -> None:
    """Of xz a header says how much memory unpacking takes. A few bytes may ask for 4 GB."""
    filters = [{"id": lzma.FILTER_LZMA2 if kind == lzma.FORMAT_XZ else lzma.FILTER_LZMA1, "dict_size": 2**20}]
    data = bytearray(lzma.compress(write_tar(tmp_path / "a.tar", PAIR).read_bytes(), kind, filters=filters))
    if kind == lzma.FORMAT_XZ:
        assert data[14:17] == b"\x21\x01\x10"  # LZMA2, one byte of properties: a dictionary of 2^20
        data[16] = 39  # 3 GiB
        data[20:24] = zlib.crc32(data[12:20]).to_bytes(4, "little")
    else:
        data[1:5] = b"\xff\xff\xff\xff"
    path = tmp_path / "s.tar.xz"
    path.write_bytes(data)
    (reason,) = read(path)
    assert isinstance(reason, Rejected)
    assert reason.reason.startswith("broken archive")
    if kind == lzma.FORMAT_XZ:
        assert "Memory usage limit" in reason.reason


def test_a_file_of_any_size_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "s.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(member("0.jpg", size=MAX_FILE_BYTES + 1))
        for _ in range(MAX_FILE_BYTES // 2**22 + 1):
            file.write(bytes(2**22))
        file.write(bytes(10240))
    tracemalloc.start()
    found = read(path)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
    assert isinstance(found[0], Rejected)
    assert "too large" in found[0].reason


def test_a_sample_of_any_number_of_files_is_not_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "MAX_FILE_BYTES", 3 * len(JPG))
    path = write_tar(tmp_path / "s.tar", [(f"0.{number}.jpg", JPG) for number in range(5)] + [("0.txt", "a cat")])
    reasons = [one.reason.partition(":")[0] for one in read(path) if isinstance(one, Rejected)]
    assert reasons == ["too large", "too large", "too large", "no caption"]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000], ids=["lists", "objects"])
def test_metadata_nested_without_end_is_a_reason(tmp_path: Path, text: str) -> None:
    path = write_tar(tmp_path / "s.tar", [("0.jpg", JPG), ("0.json", text), ("1.jpg", JPG), ("1.txt", "a dog")])
    first, second = read(path)
    assert isinstance(first, Rejected)
    assert first.reason.startswith("broken JSON")
    assert isinstance(second, Sample)
