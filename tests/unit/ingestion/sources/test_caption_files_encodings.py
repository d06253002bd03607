"""Caption files of folders and tar files in encodings other than UTF-8."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from lakeclip.ingestion.sources.base import Sample, notes_of
from lakeclip.ingestion.sources.open import open_sources
from lakeclip.lake.folder.source import open_folder
from tests.unit.lake.sample_files import picture, write_files

CASES = [
    ("gbk", ["一只红色的鸟在树枝上", "鸟", "两个孩子在公园里踢足球", "厨房桌子上的一盘水果"], "GB18030"),
    ("cp1251", ["красная птица на ветке", "лес", "Двое детей играют в футбол", "тарелка"], "Windows-1251"),
    ("cp1250", ["czerwony ptak na gałęzi", "żółty", "dwoje dzieci grających w piłkę nożną", "stół"], "Windows-1250"),
    ("euc_jp", ["赤い鳥が枝にとまっています", "小鳥", "公園でサッカーをしている子供たち", "果物"], "EUC-JP"),
]


def write(tmp_path: Path, kind: str, contents: list[bytes], suffix: str = "txt") -> str:
    files = {
        f"{i}.{end}": data for i, text in enumerate(contents) for end, data in (("jpg", picture(i)), (suffix, text))
    }
    if kind == "folder":
        write_files(tmp_path / "pairs", files)
        return str(tmp_path / "pairs")
    with tarfile.open(tmp_path / f"pairs.{kind}", "w:gz" if kind == "tar.gz" else "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(tmp_path / f"pairs.{kind}")


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz"])
@pytest.mark.parametrize(("encoding", "captions", "name"), CASES)
def test_the_encoding_is_that_of_all_files_together(
    tmp_path: Path, kind: str, encoding: str, captions: list[str], name: str
) -> None:
    """The second caption is a word that could be read in several encodings."""
    texts = ["a cat", "träume", *captions[1:], captions[0]]
    contents = [text.encode("utf-8" if text in texts[:2] else encoding) for text in texts]
    (source,) = open_sources([write(tmp_path, kind, contents)])
    items = list(source)
    assert [item.captions for item in items if isinstance(item, Sample)] == [(text,) for text in texts]
    (note,) = notes_of(source)
    assert f"4 {'caption files' if kind == 'folder' else 'texts'} read as {name} (detected); --encoding decides" in note
    if kind == "folder":
        folder = open_folder(tmp_path / "pairs")
        assert folder.column("text") == texts
        assert name in folder.notes[0]


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_json_of_images(tmp_path: Path, kind: str) -> None:
    encoding, captions, name = CASES[0]
    contents = [json.dumps({"caption": text}, ensure_ascii=False).encode(encoding) for text in captions]
    (source,) = open_sources([write(tmp_path, kind, contents, "json")])
    assert [item.captions for item in source if isinstance(item, Sample)] == [(text,) for text in captions]
    assert name in notes_of(source)[0]


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_the_encoding_can_be_chosen(tmp_path: Path, kind: str) -> None:
    (source,) = open_sources([write(tmp_path, kind, ["caffč".encode("cp1250")])], encoding="cp1250")
    assert [item.captions for item in source if isinstance(item, Sample)] == [("caffč",)]
    assert notes_of(source) == []
