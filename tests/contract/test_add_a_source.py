"""A package outside lakeclip adds a data source, as the guide in CONTRIBUTING.md describes."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lakeclip
from lakeclip.errors import ConfigError, SourceError
from lakeclip.ingestion.sources import Sample, Samples, SourceOptions, register_source, unregister_source
from lakeclip.ingestion.sources.registry import source_formats
from tests.unit.lake.sample_files import picture, write_files, write_tar

#: The code of the guide, word for word.
PLUGIN = """
import io
import numpy as np
from PIL import Image
from lakeclip.ingestion.sources import FileSource, Sample, register_source

class NpzSource(FileSource):  # arrays `images` (N, H, W, 3; uint8) and `captions` (N)
    def read_file(self, path):
        with np.load(path) as arrays:
            for index, (pixels, caption) in enumerate(zip(arrays["images"], arrays["captions"], strict=True)):
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "PNG")
                yield Sample(str(index), buffer.getvalue(), (str(caption),), {"archive": self.part})
        return True  # read to the end: a later ingest skips this file

@register_source("npz", "NumPy archives (.npz)", suffixes=[".npz"])
def open_npz(paths, options):
    return [NpzSource(paths, options.parts)]
"""


@pytest.fixture(autouse=True)
def _restore_registry() -> Iterator[None]:
    before = source_formats()
    yield
    for added in set(source_formats()) - set(before):
        unregister_source(added.name)
    assert source_formats() == before


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the plug-in into a folder outside the package, and import it."""
    write_files(tmp_path / "plugin", {"npz_source.py": PLUGIN.encode()})
    monkeypatch.syspath_prepend(tmp_path / "plugin")
    monkeypatch.delitem(sys.modules, "npz_source", raising=False)
    __import__("npz_source")


def write_archive(path: Path, captions: list[str]) -> np.ndarray:
    path.parent.mkdir(exist_ok=True)
    images = np.random.default_rng(len(captions)).integers(0, 256, (len(captions), 20, 30, 3), dtype=np.uint8)
    np.savez(path, images=images, captions=np.array(captions))
    return images


@pytest.mark.usefixtures("plugin")
def test_the_plug_in_of_the_guide_ingests_into_a_lake(tmp_path: Path) -> None:
    images = write_archive(tmp_path / "in/a.npz", ["a cat", "a dog"])
    write_archive(tmp_path / "in/b.npz", ["a cow"])
    result = lakeclip.ingest(tmp_path / "in/a.npz", tmp_path / "pairs.lake")
    assert isinstance(result, lakeclip.IngestResult)
    assert (result.rows, result.rejected) == (2, [])
    lake = lakeclip.open_lake(tmp_path / "pairs.lake")
    assert lake.column("text") == ["a cat", "a dog"]
    assert lake.column("archive") == lake.column("source") == ["in/a.npz"] * 2
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(lake.images([1])[0]))), images[1])
    # A folder of such files is a source as well, and a second ingest skips the completed file.
    result = lakeclip.ingest([tmp_path / "in"], tmp_path / "pairs.lake", append=True)
    assert (result.rows, result.rows_before, result.known) == (1, 2, 0)
    assert lakeclip.open_lake(tmp_path / "pairs.lake").column("text") == ["a cat", "a dog", "a cow"]


@pytest.mark.usefixtures("plugin")
def test_the_error_for_an_unknown_source_names_the_plug_in(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        lakeclip.ingest(tmp_path / "pairs.zip", tmp_path / "pairs.lake")
    assert "NumPy archives (.npz)" in caught.value.allowed


def test_a_format_may_take_precedence_over_a_built_in_one(tmp_path: Path) -> None:
    """A folder of images with labels would otherwise be read as a folder of image-caption pairs."""
    write_files(tmp_path / "in", {"labels.txt": b"1.jpg a cat", "1.jpg": picture()})

    def is_labelled_folder(path: str) -> bool:
        return (Path(path) / "labels.txt").is_file()

    @register_source("labelled", "a folder with labels.txt", matches=is_labelled_folder, before="folder")
    def open_labelled(paths: list[str], options: SourceOptions) -> list[Samples]:
        (path,) = paths
        name, _, label = (Path(path) / "labels.txt").read_text().partition(" ")
        return [Samples(path, [Sample(name, (Path(path) / name).read_bytes(), (label,), {})], 1)]

    assert [known.name for known in source_formats()][:4] == ["lake", "labelled", "image folder", "folder"]
    lakeclip.ingest(tmp_path / "in", tmp_path / "pairs.lake")
    assert lakeclip.open_lake(tmp_path / "pairs.lake").column("text") == ["a cat"]


def test_a_format_may_read_urls(tmp_path: Path) -> None:
    @register_source("gallery", "a gallery: gallery://NAME", matches=lambda name: name.startswith("gallery://"))
    def open_gallery(paths: list[str], options: SourceOptions) -> list[Samples]:
        return [Samples(path, [Sample(path, picture(i), (path,), {})], 1) for i, path in enumerate(paths)]

    write_tar(tmp_path / "a.tar", [("0.jpg", picture(9)), ("0.txt", "from a tar")])
    lakeclip.ingest(["gallery://one", "gallery://two", tmp_path / "a.tar"], tmp_path / "pairs.lake")
    texts = lakeclip.open_lake(tmp_path / "pairs.lake").column("text")
    assert texts == ["from a tar", "gallery://one", "gallery://two"], "sources are in the order of their formats"


def test_a_registration_that_cannot_work_is_an_error() -> None:
    with pytest.raises(ConfigError, match="is registered already"):
        register_source("webdataset", "tars", suffixes=[".tar"])
    with pytest.raises(ConfigError, match="there is no source format 'zip'"):
        register_source("new", "new files", suffixes=[".new"], before="zip")
    with pytest.raises(ConfigError, match="accepts no path"):
        register_source("new", "new files")
    with pytest.raises(ConfigError, match="there is no source format 'new'"):
        unregister_source("new")
