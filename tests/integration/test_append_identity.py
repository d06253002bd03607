"""`--append` knows a row by the whole path of its source and by what it holds."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

import lakeclip
from lakeclip.cli.app import main
from lakeclip.errors import ConfigError
from lakeclip.lake.dataset import open_lake
from tests.unit.lake.sample_files import picture, write_files, write_tar

_FILES = Path(__file__).parents[1] / "data" / "before_2026_12"


def write_pairs(folder: Path, *pairs: tuple[int, str]) -> Path:
    """Write a folder of pairs p0, p1, …, from the number of a picture and a caption each."""
    for number, (seed, caption) in enumerate(pairs):
        write_files(folder, {f"p{number}.jpg": picture(seed), f"p{number}.txt": caption})
    return folder


def write_shard(path: Path, *pairs: tuple[int, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    members: list[tuple[str, bytes | str]] = []
    for number, (seed, caption) in enumerate(pairs):
        members += [(f"{number:05}.jpg", picture(seed)), (f"{number:05}.txt", caption)]
    return write_tar(path, members)


def write_table(path: Path, *pairs: tuple[int, str], images: str = "files") -> Path:
    """Write a table of file names, or of addresses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["url" if images == "urls" else "filepath", "caption", "id"])
        for seed, caption in pairs:
            if images == "files":
                write_files(path.parent, {f"{seed}.jpg": picture(seed)})
            writer.writerow(
                [f"https://pictures.example/{seed}.jpg" if images == "urls" else f"{seed}.jpg", caption, seed]
            )
    return path


WRITERS = {
    "folder": lambda root, *pairs: write_pairs(root / "pairs", *pairs),
    "tar": lambda root, *pairs: write_shard(root / "train/00000.tar", *pairs),
    "table": lambda root, *pairs: write_table(root / "train/meta.csv", *pairs),
    "addresses": lambda root, *pairs: write_table(root / "train/feed.csv", *pairs, images="urls"),
}


def append(source: Path | list[Path], lake: Path, **options: object) -> lakeclip.IngestResult:
    return lakeclip.ingest(source, lake, append=True, **options)  # type: ignore[arg-type]


def rows(lake: Path) -> Counter[tuple[bytes, object]]:
    """Return image and caption of each row."""
    opened = open_lake(lake, include_unusable=True)
    return Counter(zip(opened.images(range(len(opened))), opened.column("text"), strict=True))


def texts(lake: Path) -> list[object]:
    return sorted(map(str, open_lake(lake, include_unusable=True).column("text")))


@pytest.mark.parametrize("kind", WRITERS)
def test_two_data_sets_whose_paths_end_alike_both_arrive(tmp_path: Path, kind: str) -> None:
    """Also if they are equally large, written at the same time, and share a picture."""
    write = WRITERS[kind]
    first = write(tmp_path / "A", (0, "cat one"), (1, "cat two"), (2, "cat six"))
    second = write(tmp_path / "B", (3, "dog one"), (4, "dog two"), (2, "dog six"))
    assert append(first, tmp_path / "lake").rows == 3
    result = append(second, tmp_path / "lake")
    assert (result.rows, result.known, result.updated, result.removed) == (3, 0, 0, 0)
    assert texts(tmp_path / "lake") == ["cat one", "cat six", "cat two", "dog one", "dog six", "dog two"]
    assert len(set(open_lake(tmp_path / "lake", include_unusable=True).column("source"))) == 2
    again = append([first, second], tmp_path / "lake")
    assert (again.rows, again.updated, again.removed) == (0, 0, 0)


@pytest.mark.parametrize("kind", WRITERS)
def test_corrected_captions_are_updated(tmp_path: Path, kind: str) -> None:
    write = WRITERS[kind]
    append(write(tmp_path / "A", (0, "a cta"), (1, "a dog"), (2, "a cow")), tmp_path / "lake")
    source = write(tmp_path / "A", (0, "a cat"), (1, "a dog"), (2, "a cow"))
    result = append(source, tmp_path / "lake")
    assert (result.rows, result.known, result.updated, result.updated_images, result.removed) == (0, 2, 1, 0, 0)
    assert texts(tmp_path / "lake") == ["a cat", "a cow", "a dog"]
    lake = open_lake(tmp_path / "lake", include_unusable=True)
    assert lake.captions([0]) == [("a cat",)]
    if kind != "addresses":
        assert lake.images([0]) == [picture(0)], "the image is the same"
    assert append(source, tmp_path / "lake").updated == 0


@pytest.mark.parametrize("kind", ["table", "addresses"])
def test_a_feed_that_is_exported_anew_adds_what_is_new(tmp_path: Path, kind: str) -> None:
    """Its rows are numbered anew: 1, 2, 3 become 5, 4, 3."""
    write = WRITERS[kind]
    append(write(tmp_path, (1, "one"), (2, "two"), (3, "three")), tmp_path / "lake")
    result = append(write(tmp_path, (5, "five"), (4, "four"), (3, "three")), tmp_path / "lake")
    assert (result.rows, result.known, result.updated, result.removed) == (2, 1, 0, 2)
    assert texts(tmp_path / "lake") == ["five", "four", "one", "three", "two"]
    result = append(write(tmp_path, (3, "3"), (5, "five"), (1, "one")), tmp_path / "lake")
    assert (result.rows, result.known, result.updated, result.removed) == (0, 2, 1, 2)
    assert texts(tmp_path / "lake") == ["3", "five", "four", "one", "two"]


def test_several_captions_of_one_address(tmp_path: Path) -> None:
    """Each row has its own earlier version, also if the row before it is gone."""
    captions = [(7, f"caption {i}") for i in range(5)]
    append(write_table(tmp_path / "feed.csv", *captions, images="urls"), tmp_path / "lake")
    captions[3] = (7, "corrected")
    result = append(write_table(tmp_path / "feed.csv", *captions[1:], images="urls"), tmp_path / "lake")
    assert (result.rows, result.known, result.updated, result.removed) == (0, 3, 1, 1)
    # Which of the two rows without an exact match is updated is not determined: they have the same image.
    assert Counter(texts(tmp_path / "lake")) - Counter(["caption 0", "caption 3"]) == Counter(
        ["caption 1", "caption 2", "caption 4", "corrected"]
    )


@pytest.mark.parametrize("kind", WRITERS)
def test_a_moved_source_is_recognized(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also if something in it was corrected on the way."""
    write = WRITERS[kind]
    append(write(tmp_path / "A", (0, "cat"), (1, "dog"), (2, "cow")), tmp_path / "lake")
    before = rows(tmp_path / "lake")
    (tmp_path / "A").rename(tmp_path / "elsewhere")
    (moved,) = [path for path in (tmp_path / "elsewhere").iterdir() if kind == "folder"] or (
        (tmp_path / "elsewhere").glob("*/*.csv" if kind != "tar" else "*/*.tar")
    )
    main(["ingest", "--append", str(moved), str(tmp_path / "lake")])
    output = capsys.readouterr().out
    assert "moved" in output
    assert "elsewhere" in output
    assert rows(tmp_path / "lake") == before
    result = append(write(tmp_path / "elsewhere", (0, "a cat"), (1, "dog"), (2, "cow")), tmp_path / "lake")
    assert (result.rows, result.known, result.updated, result.moved) == (0, 2, 1, {})
    shutil.move(tmp_path / "elsewhere", tmp_path / "third")
    result = append(write(tmp_path / "third", (0, "a cat"), (1, "a dog"), (2, "cow")), tmp_path / "lake")
    assert (result.rows, result.known, result.updated, len(result.moved)) == (0, 2, 1, 1)
    assert texts(tmp_path / "lake") == ["a cat", "a dog", "cow"]


def test_the_same_picture_with_another_caption_in_another_source_is_added(tmp_path: Path) -> None:
    first = write_pairs(tmp_path / "A", (0, "a cat"), (1, "a dog"))
    second = write_shard(tmp_path / "b.tar", (0, "eine Katze"), (1, "a dog"))
    append(first, tmp_path / "lake")
    result = append(second, tmp_path / "lake")
    assert (result.rows, result.known) == (2, 0), "every pair of another source is a row"
    assert rows(tmp_path / "lake")[picture(0), "eine Katze"] == 1


def test_a_folder_that_was_divided_is_recognized_by_its_rows(tmp_path: Path) -> None:
    """Fewer than half of the new folder's pairs are known, so it is another one; but these pairs are."""
    append(write_pairs(tmp_path / "all", (0, "zero"), (1, "one"), (2, "two")), tmp_path / "lake")
    shutil.rmtree(tmp_path / "all")
    pairs = [(seed, f"new {seed}") for seed in range(10, 15)]
    result = append(write_pairs(tmp_path / "part", *pairs, (2, "two")), tmp_path / "lake")
    assert (result.rows, result.known, result.elsewhere) == (5, 1, 1)
    assert Counter(texts(tmp_path / "lake")).most_common(1)[0][1] == 1


def test_swapped_names_and_renamed_files(tmp_path: Path) -> None:
    append(write_pairs(tmp_path / "in", (0, "zero"), (1, "one"), (2, "two")), tmp_path / "lake")
    shutil.rmtree(tmp_path / "in")
    result = append(write_pairs(tmp_path / "in", (1, "one"), (0, "zero"), (9, "nine"), (2, "two")), tmp_path / "lake")
    assert (result.rows, result.known, result.updated, result.removed) == (1, 3, 0, 0)
    assert texts(tmp_path / "lake") == ["nine", "one", "two", "zero"]


def test_metadata_that_changes_is_updated(tmp_path: Path) -> None:
    """A value, a type, a new column; columns that the source does not name stay as they are."""

    def write(*samples: dict[str, object]) -> Path:
        members: list[tuple[str, bytes | str | dict[str, object]]] = []
        for number, values in enumerate(samples):
            members += [(f"{number}.jpg", picture(number)), (f"{number}.txt", "x"), (f"{number}.json", values)]
        return write_tar(tmp_path / "a.tar", members)

    append(write({"label": 1, "ok": True}, {"label": 2, "ok": False}, {"label": 3, "ok": True}), tmp_path / "lake")
    source = write({"label": 1}, {"label": "two", "ok": False}, {"label": 3, "ok": True, "new": 0.5})
    result = append(source, tmp_path / "lake")
    assert (result.rows, result.known, result.updated) == (0, 1, 2)
    lake = open_lake(tmp_path / "lake")
    assert lake.column("label") == ["1", "two", "3"]
    assert [value == 0.5 for value in lake.column("new")] == [False, False, True]
    assert lake.column("ok") == [True, False, True]
    result = append(source, tmp_path / "lake")
    assert (result.rows, result.updated) == (0, 0)


def test_other_options_read_an_unchanged_file_again(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "url,caption,alt\n" + "".join(f"https://pictures.example/{i}.jpg,short {i},long {i}\n" for i in range(3))
    )
    append(tmp_path / "a.csv", tmp_path / "lake")
    result = append(tmp_path / "a.csv", tmp_path / "lake", caption_column="alt")
    assert (result.rows, result.updated) == (0, 3)
    assert texts(tmp_path / "lake") == ["long 0", "long 1", "long 2"]


@pytest.mark.parametrize("other", [False, True])
def test_lakes_of_earlier_versions(tmp_path: Path, other: bool) -> None:
    """Their rows name two components of a path. The same folder is recognized; another that ends alike is new."""
    shutil.copytree(_FILES / "photos.lake", tmp_path / "lake")
    folder = tmp_path / "x/before/pairs"
    shutil.copytree(_FILES / "pairs", folder)
    if other:
        for number, path in enumerate(sorted(folder.glob("*.jpg"))):
            path.write_bytes(picture(number))
    else:
        next(iter(folder.glob("*.txt"))).write_text("corrected")
    result = append(folder, tmp_path / "lake")
    assert (result.rows, result.known, result.updated) == ((16, 0, 0) if other else (0, 15, 1))
    assert append(folder, tmp_path / "lake").rows == 0
    assert len(open_lake(tmp_path / "lake")) == (32 if other else 16)


def test_the_outcome_is_printed_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_pairs(tmp_path / "in", (0, "zero"), (1, "one"), (2, "two"))
    main(["ingest", str(folder), str(tmp_path / "lake")])
    write_files(folder, {"p0.txt": "corrected", "p1.jpg": picture(11)})
    (folder / "p2.jpg").unlink()
    (folder / "p2.txt").unlink()
    report = tmp_path / "report.json"
    main(["ingest", "--append", "--on-change", "keep", str(folder), str(tmp_path / "lake")])
    assert "changed since it was ingested" in capsys.readouterr().out
    main(["ingest", "--append", str(folder), str(tmp_path / "lake"), "--report", str(report)])
    output = capsys.readouterr().out
    for text in ("rows updated", "1 captions or metadata, 1 images", "no longer in the source"):
        assert text in output
    figures = json.loads(report.read_text())
    assert (figures["rows"], figures["updated"], figures["updated_images"], figures["removed"]) == (0, 2, 1, 1)
    assert figures["account"]["samples"] == {"read": 2, "used": 2, "left_out": {}}
    with pytest.raises(ConfigError, match="on_change"):
        lakeclip.ingest(folder, tmp_path / "lake", append=True, on_change="replace")


def test_a_new_image_that_is_broken_leaves_the_row_as_it_is(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "in", (0, "zero"), (1, "one"))
    append(folder, tmp_path / "lake")
    write_files(folder, {"p0.jpg": b"broken"})
    result = append(folder, tmp_path / "lake")
    assert (result.rows, result.updated, result.known) == (0, 0, 1)
    assert [item.reason for item in result.rejected] == ["not an image"]
    assert rows(tmp_path / "lake")[picture(0), "zero"] == 1


def test_an_append_with_updates_that_is_interrupted_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lakeclip.ingestion import writer as writer_module

    folder = write_pairs(tmp_path / "in", *((seed, f"old {seed}") for seed in range(12)))
    append(folder, tmp_path / "lake")
    write_pairs(folder, *((seed, f"new {seed}") for seed in range(20)))
    monkeypatch.setattr(writer_module, "ROWS_PER_APPEND", 2)
    monkeypatch.setattr(writer_module, "ROWS_PER_COMMIT", 5)
    commit = writer_module.LakeWriter.commit
    commits = iter(range(3))

    def interrupt(writer: writer_module.LakeWriter) -> None:
        if next(commits, None) is None:
            raise KeyboardInterrupt
        commit(writer)

    with monkeypatch.context() as patch:
        patch.setattr(writer_module.LakeWriter, "commit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            append(folder, tmp_path / "lake")
    assert "old 11" in texts(tmp_path / "lake") or len(texts(tmp_path / "lake")) < 20, "it was interrupted"
    append(folder, tmp_path / "lake")
    assert rows(tmp_path / "lake") == Counter((picture(seed), f"new {seed}") for seed in range(20))


def test_parts_that_moved_together_are_each_ended_once(tmp_path: Path) -> None:
    """Rows that are gone are counted for each part, also for those that are recognized late."""
    tables = [
        write_table(tmp_path / f"A/{name}.csv", *((seed, str(seed)) for seed in range(first, first + 4)), images="urls")
        for name, first in (("one", 0), ("two", 10))
    ]
    append(tables, tmp_path / "lake")
    (tmp_path / "A").rename(tmp_path / "B")
    moved = [
        write_table(tmp_path / f"B/{name}.csv", *((seed, str(seed)) for seed in range(first, first + 3)), images="urls")
        for name, first in (("one", 0), ("two", 10))
    ]
    result = append(moved, tmp_path / "lake")
    assert (result.rows, result.known, result.removed, len(result.moved)) == (0, 6, 2, 2)


@pytest.mark.parametrize("suffix", ["tar", "csv"])
def test_rows_of_a_deleted_file_are_counted_where_its_whole_folder_is_read(tmp_path: Path, suffix: str) -> None:
    folder, lake = tmp_path / "train", tmp_path / "l.lake"
    for number, pairs in enumerate([((0, "a"), (1, "b")), ((2, "c"), (3, "d"), (4, "e"))]):
        if suffix == "tar":
            write_shard(folder / f"{number}.tar", *pairs)
        else:
            write_table(folder / f"{number}.csv", *pairs, images="urls")
    append(folder, lake)
    (folder / f"1.{suffix}").unlink()
    assert append(folder / f"0.{suffix}", lake).removed == 0  # says nothing about other files
    result = append(folder, lake)
    assert (result.rows, result.removed) == (0, 3)
    assert len(open_lake(lake, include_unusable=True)) == 5


def test_rows_that_moved_to_a_source_read_later_are_not_removed(tmp_path: Path) -> None:
    folder, single, lake = tmp_path / "train", tmp_path / "other", tmp_path / "l.lake"
    write_shard(folder / "0.tar", (0, "a"), (1, "b"))
    write_shard(folder / "1.tar", (2, "c"), (3, "d"))
    append(folder, lake)
    (folder / "1.tar").unlink()
    write_pairs(single, (2, "c"), (9, "new"), (8, "new too"))
    for sources in ([folder, single], [single, folder]):
        shutil.copytree(lake, tmp_path / "copy.lake")
        result = append(sources, tmp_path / "copy.lake")
        assert (result.rows, result.removed) == (2, 1)
        shutil.rmtree(tmp_path / "copy.lake")


def test_a_deleted_file_whose_rows_are_in_another_file_is_not_removed(tmp_path: Path) -> None:
    folder, lake = tmp_path / "train", tmp_path / "l.lake"
    write_shard(folder / "0.tar", (0, "a"), (1, "b"))
    write_shard(folder / "1.tar", (2, "c"), (3, "d"), (4, "e"))
    append(folder, lake)
    shutil.rmtree(folder)
    write_shard(folder / "all.tar", (0, "a"), (1, "b"), (2, "c"), (3, "d"))
    result = append(folder, lake)
    assert (result.rows, result.known, result.removed) == (0, 4, 1)
