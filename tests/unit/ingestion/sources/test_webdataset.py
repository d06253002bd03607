from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import pytest

from lakeclip.errors import SourceError
from lakeclip.ingestion.sources import webdataset
from lakeclip.ingestion.sources.base import Sample
from lakeclip.ingestion.sources.webdataset import Shards
from lakeclip.lake.folder.records import Rejected
from lakeclip.lake.images import MAX_FILE_BYTES
from tests.unit.lake.sample_files import picture, write_tar

JPG = picture()
COMPRESS = {"tar": bytes, "tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}


def read(path: Path) -> list[Sample | Rejected]:
    return list(Shards([str(path)]))


def test_consecutive_members_with_the_same_key_form_a_sample(tmp_path: Path) -> None:
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
def test_compressed_tars_contain_the_same_samples(tmp_path: Path, suffix: str) -> None:
    members = [(f"{i}.{e}", JPG if e == "jpg" else "x") for i in range(50) for e in ("jpg", "txt")]
    plain = write_tar(tmp_path / "s.tar", members).read_bytes()
    path = tmp_path / f"s.{suffix}"
    half = len(plain) // 2
    # Two compressed streams in one file are read as one.
    path.write_bytes(COMPRESS[suffix](plain[:half]) + COMPRESS[suffix](plain[half:]))
    source = Shards([str(path)])
    assert [item.key for item in source] == [str(i) for i in range(50)]
    assert source.position == source.size == os.path.getsize(path)


@pytest.mark.parametrize(
    ("files", "captions", "metadata"),
    [
        ({"json": {"caption": "a cat", "x": 1}}, ("a cat",), {"x": 1}),
        ({"json": {"text": "a cat"}}, ("a cat",), {}),
        ({"json": {"captions": ["a", " ", "b"]}}, ("a", "b"), {}),
        ({"json": {"captions": ["a", "b"], "caption": "a"}}, ("a", "b"), {}),
        ({"txt": "a cat", "json": {"caption": "a cat", "key": "0"}}, ("a cat",), {"key": "0"}),
        ({"txt": "a cat", "json": {"caption": "another"}}, ("a cat",), {"caption": "another"}),
        ({"txt": " ", "json": {"caption": "a cat"}}, ("a cat",), {}),
        ({"json": {"label": "frog"}}, (), {"label": "frog"}),
        ({"json": '["a", 1]'}, (), {"json": ["a", 1]}),
        ({"cls": "7\n"}, (), {"cls": 7}),
    ],
)
def test_captions_are_read_from_text_or_json(
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
def test_unusable_samples_are_rejected_with_a_reason(
    tmp_path: Path, members: list[tuple[str, bytes | str]], reason: str
) -> None:
    (item,) = read(write_tar(tmp_path / "s.tar", [*members]))
    assert isinstance(item, Rejected)
    assert item.key == "s.tar: 0"
    assert item.reason.startswith(reason)


def test_unusual_members(tmp_path: Path) -> None:
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
    source = Shards([str(path)])
    assert list(source) == [
        Rejected("s.tar: 0.txt", "name is not unique: it is in the archive twice"),
        Sample("0", JPG, ("a",), {}),
    ]
    assert source.ignored == {".npy": 1}


def members(count: int) -> list[tuple[str, bytes | str | dict[str, object]]]:
    return [(f"{i:04d}.{end}", JPG if end == "jpg" else "a cat") for i in range(count) for end in ("jpg", "txt")]


@pytest.mark.parametrize("end", ["within a file", "within a header", "between members"])
def test_a_truncated_tar_is_reported(tmp_path: Path, end: str) -> None:
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
    start = data.index(b"0010.jpg")
    data[start : start + 200] = b"\xff" * 200
    path.write_bytes(data)
    *good, last = read(path)
    assert len(good) == 10
    assert isinstance(last, Rejected)
    assert "0009 is lost" in last.reason


@pytest.mark.parametrize("content", [b"", b"not a tar at all" * 100, b"\x1f\x8b but not gzip"])
def test_a_file_that_is_not_a_tar_is_reported(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(content)
    (item,) = read(path)
    assert isinstance(item, Rejected)
    assert item.reason.startswith("broken archive")


def test_reading_continues_after_a_broken_shard(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{i}.tar", members(3)) for i in range(3)]
    os.truncate(paths[1], 700)
    source = Shards([str(path) for path in paths])
    assert sum(isinstance(item, Sample) for item in source) == 6


def test_a_missing_tar_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no tar file"):
        Shards([f"{tmp_path}/gone.tar"])


# Malicious tar files


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **more: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    for attribute, value in more.items():
        setattr(info, attribute, value)
    return info.tobuf(tarfile.GNU_FORMAT)


PAIR = [("0.jpg", JPG), ("0.txt", "a cat")]


def test_paths_outside_the_folder_are_never_written(tmp_path: Path) -> None:
    """Nothing is unpacked to disk."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    names = ["../../out.jpg", "/tmp/lakeclip-out.jpg", "a/../../../out.jpg"]
    path = write_tar(inner / "s.tar", [(name, JPG) for name in names] + [("0.jpg", JPG), ("0.txt", "a cat")])
    assert [item.key for item in read(path) if isinstance(item, Sample)] == ["0"]
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["s.tar"]
    assert not Path("/tmp/lakeclip-out.jpg").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_links_and_devices_are_skipped(tmp_path: Path, kind: bytes) -> None:
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
def test_oversized_headers_end_the_archive(tmp_path: Path, header: bytes) -> None:
    """Without a limit, tarfile would read the whole header of a small compressed tar into memory."""
    path = tmp_path / "s.tar.gz"
    path.write_bytes(gzip.compress(write_tar(tmp_path / "a.tar", PAIR).read_bytes()[:-10240] + header + bytes(2**23)))
    tracemalloc.start()
    reason = read(path)[-1]
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
    assert isinstance(reason, Rejected)
    assert reason.reason.startswith("broken archive")


@pytest.mark.parametrize("kind", [lzma.FORMAT_XZ, lzma.FORMAT_ALONE])
def test_an_oversized_lzma_dictionary_is_rejected(tmp_path: Path, kind: int) -> None:
    """The header of an xz file determines the memory for decompression: a few bytes can request 4 GB."""
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


def test_an_oversized_member_is_not_decompressed_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "s.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(member("0.jpg", size=MAX_FILE_BYTES + 1))
        for _ in range(MAX_FILE_BYTES // 2**22 + 1):
            file.write(bytes(2**22))
        file.write(bytes(10240))
    tracemalloc.start()
    items = read(path)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
    assert isinstance(items[0], Rejected)
    assert "too large" in items[0].reason


def test_the_total_size_of_a_sample_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "MAX_FILE_BYTES", 3 * len(JPG))
    path = write_tar(tmp_path / "s.tar", [(f"0.{number}.jpg", JPG) for number in range(5)] + [("0.txt", "a cat")])
    reasons = [item.reason.partition(":")[0] for item in read(path) if isinstance(item, Rejected)]
    assert reasons == ["too large", "too large", "too large", "no caption"]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000], ids=["lists", "objects"])
def test_deeply_nested_metadata_is_rejected(tmp_path: Path, text: str) -> None:
    path = write_tar(tmp_path / "s.tar", [("0.jpg", JPG), ("0.json", text), ("1.jpg", JPG), ("1.txt", "a dog")])
    first, second = read(path)
    assert isinstance(first, Rejected)
    assert first.reason.startswith("broken JSON")
    assert isinstance(second, Sample)


def write_links(path: Path, links: list[tuple[str, str, bytes]], compress: str = "") -> Path:
    """Write a tar in which two pairs are regular files, and links (name, target, type) are among them."""
    with tarfile.open(path, f"w:{compress}") as tar:  # type: ignore[call-overload]
        for name, content in (("./0.jpg", JPG), ("./0.txt", b"a cat")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target, kind in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
        info = tarfile.TarInfo("z/late.txt")
        info.size = 6
        tar.addfile(info, io.BytesIO(b"a lion"))
    return path


@pytest.mark.parametrize("compress", ["", "gz", "xz"])
def test_links_have_the_content_of_the_members_that_they_refer_to(tmp_path: Path, compress: str) -> None:
    """A tar of a folder in which a tool has replaced equal files by links."""
    links = [
        ("./1.jpg", "./0.jpg", tarfile.LNKTYPE),
        ("./1.txt", "0.txt", tarfile.LNKTYPE),
        ("b/2.jpg", "../1.jpg", tarfile.SYMTYPE),  # a link to a link
        ("b/2.txt", "../z/late.txt", tarfile.SYMTYPE),  # a later member
        ("3.jpg", "0.jpg", tarfile.SYMTYPE),
        ("3.txt", "nowhere.txt", tarfile.SYMTYPE),
    ]
    source = Shards([str(write_links(tmp_path / f"s.tar.{compress}".rstrip("."), links, compress))])
    items = list(source)
    assert [item for item in items if isinstance(item, Sample)] == [
        Sample("./0", JPG, ("a cat",), {}),
        Sample("./1", JPG, ("a cat",), {}),
        Sample("b/2", JPG, ("a lion",), {}),
    ]
    assert [(item.key.rpartition(": ")[2], item.reason) for item in items if isinstance(item, Rejected)] == [
        ("3.txt", "link to something that is not a file of the archive: nowhere.txt"),
        ("3", "no caption"),
        ("z/late", "no image: only .txt"),
    ]
    source.account.check("s.tar")
    assert source.account.to_dict()["members"] == {
        "read": 9,
        "used": 6,
        "left_out": {
            "link to something that is not a file of the archive": 1,
            "no caption": 1,
            "no image": 1,
        },
    }


@pytest.mark.parametrize("target", ["1.jpg", "2.jpg", "/etc/hostname", "../0.jpg", "."])
def test_links_that_lead_nowhere_are_named(tmp_path: Path, target: str) -> None:
    """A circle, a path outside the archive, a folder."""
    links = [("1.jpg", "2.jpg", tarfile.SYMTYPE), ("2.jpg", target, tarfile.SYMTYPE), ("2.txt", "0.txt", b"2")]
    source = Shards([str(write_links(tmp_path / "s.tar", links))])
    assert [item.key for item in source if isinstance(item, Sample)] == ["./0"]
    source.account.check("s.tar")
    assert source.account.left_out["members", "link to something that is not a file of the archive"] == 2


def test_every_member_is_used_or_left_out_with_a_reason(tmp_path: Path) -> None:
    """Further images, keys with dots, folders, unused files and captions without an image."""
    path = write_tar(
        tmp_path / "s.tar",
        [
            ("__meta__.json", "{}"),
            (".hidden.jpg", JPG),
            ("shoe.left.jpg", JPG),
            ("shoe.right.jpg", picture(2)),
            ("shoe.txt", "a shoe"),
            ("shirt.jpg", JPG),
            ("shirt.txt", "a shirt"),
            ("shirt.2.txt", "another"),
            ("lone.txt", "x"),
            ("lone.npy", "x"),
            ("twice.jpg", JPG),
            ("twice.jpg", JPG),
            ("twice.txt", "x"),
        ],
    )
    data = member("folder", tarfile.DIRTYPE) + member("pipe", tarfile.FIFOTYPE) + path.read_bytes()
    path.write_bytes(data)
    source = Shards([str(path)])
    assert len([item for item in source if isinstance(item, Sample)]) == 3
    source.account.check("s.tar")
    assert source.account.to_dict()["members"] == {
        "read": 15,
        "used": 6,
        "left_out": {
            "folders": 1,
            "devices and pipes": 1,
            "files called __NAME__, which describe the archive": 1,
            "hidden files and files without a suffix": 1,
            "further image of a sample that has one": 1,
            ".2.txt files, which are not used": 1,
            ".npy files, which are not used": 1,
            "no image": 1,
            "name is not unique": 1,
        },
    }


@pytest.mark.parametrize("length", [600, 3000, 4096, 5000, 7000])
def test_the_members_of_a_cut_archive_add_up(tmp_path: Path, length: int) -> None:
    path = write_tar(tmp_path / "s.tar", members(5))
    os.truncate(path, length)
    source = Shards([str(path)])
    list(source)
    source.account.check("s.tar")
    assert source.account.read["members"]
