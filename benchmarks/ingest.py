"""Claim: `lakeclip ingest` reads every kind of source with less than 300 MB of memory beyond its start, whatever the
source's size.

    .venv/bin/python benchmarks/ingest.py --data DIR --out benchmarks/results/NAME.json

DIR holds WebDataset shards with KEY.jpg and KEY.txt. The same photos become a folder of pairs, a Parquet file with
their bytes, a CSV with their file names, and a lake; a million rows of metadata become a Parquet file and a TSV. Each
source is read in a separate process, which reports rows a second and how much its memory grew. A large source consists
of `--times` repetitions of the same small one under different names.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.machine import machine, peak_mib
from common.results import command_line, log, today, write_result
from common.subprocess_side import run_side

_ROWS = 1_000_000


def main() -> None:
    """Parse the flags; create the sources and measure each, or read one for the main process."""
    flags = _flags()
    if flags.read:
        print(json.dumps(read(flags.read, flags.lake)))
        return
    with tempfile.TemporaryDirectory(dir=flags.work) as work:
        result = measure(Path(flags.data), Path(work), flags.times)
    write_result(result, flags.out)
    show(result)


def read(sources: list[str], lake: str) -> dict[str, Any]:
    """Ingest, and return rows, rates and the growth of memory."""
    from lakeclip.ingestion.run import ingest
    from lakeclip.lake.engine import deeplake

    deeplake()
    before = peak_mib()
    report = ingest(sources, lake)
    growth = peak_mib() - before
    size = sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(lake) for name in names)
    return {
        "rows": report.rows,
        "left_out": report.reasons.total(),
        "rows_per_second": round(report.rows_per_second),
        "mb_per_second": round(size / 1e6 / report.seconds, 1),
        "rss_mib_grown": round(growth),
    }


def measure(data: Path, work: Path, times: int) -> dict[str, Any]:
    """Create each source and read it in a separate process."""
    results: dict[str, Any] = {}
    for name, make in SOURCES.items():
        folder = work / "source"
        folder.mkdir()
        sources = make(data, folder, times)
        log(f"{name}: source created")
        lake = work / "lake"
        arguments = ["--data", str(data), "--lake", str(lake), "--read", *sources]
        results[name] = run_side(__file__, arguments, side=name)
        log(f"{name}: {results[name]}")
        shutil.rmtree(folder)
        shutil.rmtree(lake)
    return {
        "date": today(),
        "command": command_line("ingest.py"),
        "machine": machine(os.cpu_count() or 1),
        "versions": {name: version(name) for name in ("deeplake", "pyarrow", "pillow", "simplejpeg")},
        "sources": results,
    }


def shards(data: Path, folder: Path, times: int) -> list[str]:
    """Link the tars, repeated under different names."""
    names = []
    for number in range(times):
        for tar in sorted(data.glob("*.tar")):
            os.symlink(tar.resolve(), folder / f"{number:03}-{tar.name}")
            names.append(str(folder / f"{number:03}-{tar.name}"))
    return names


def pairs_folder(data: Path, folder: Path, times: int) -> list[str]:
    """Unpack the tars repeatedly into folders: names differ, contents do not."""
    for number in range(times):
        (folder / str(number)).mkdir()
        for tar in sorted(data.glob("*.tar")):
            with tarfile.open(tar) as file:
                file.extractall(folder / str(number), filter="data")
    return [str(folder)]


def parquet_of_images(data: Path, folder: Path, times: int) -> list[str]:
    """Write Hugging Face's layout: a struct of bytes and path, and the captions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image_type), ("caption", pa.list_(pa.string()))])
    with pq.ParquetWriter(folder / "photos.parquet", schema) as writer:
        for _ in range(times):
            for tar in sorted(data.glob("*.tar")):
                images, captions = _pairs(tar)
                table = pa.table(
                    {
                        "image": pa.array([{"bytes": image, "path": None} for image in images], image_type),
                        "caption": pa.array([caption.splitlines() for caption in captions]),
                    }
                )
                writer.write_table(table, row_group_size=500)
    return [str(folder / "photos.parquet")]


def csv_of_files(data: Path, folder: Path, times: int) -> list[str]:
    """Write open_clip's CSV: file names and titles."""
    pairs_folder(data, folder, times)
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["filepath", "title"])
        for path in sorted(folder.rglob("*.jpg")):
            writer.writerow([path.relative_to(folder), path.with_suffix(".txt").read_text().splitlines()[0]])
    return [str(folder / "pairs.csv")]


def another_lake(data: Path, folder: Path, times: int) -> list[str]:
    """Write a lake of the same photos."""
    from lakeclip.ingestion.run import ingest

    (folder / "tars").mkdir()
    ingest(shards(data, folder / "tars", times), str(folder / "other.lake"))
    return [str(folder / "other.lake")]


def parquet_of_metadata(data: Path, folder: Path, times: int) -> list[str]:
    """Write a million rows like LAION's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = range(_ROWS)
    table = pa.table(
        {
            "SAMPLE_ID": list(rows),
            "URL": [f"https://host{row % 997}.example/pictures/{row}.jpg" for row in rows],
            "TEXT": [f"a picture of thing {row} on a table" for row in rows],
            "HEIGHT": [row * 31 % 2000 for row in rows],
            "WIDTH": [row * 37 % 2000 for row in rows],
            "LICENSE": ["?"] * _ROWS,
            "NSFW": [("UNLIKELY", "UNSURE", "NSFW")[row % 3] for row in rows],
            "similarity": [row * 7919 % 1000 / 1000 for row in rows],
        }
    )
    pq.write_table(table, folder / "metadata.parquet")
    return [str(folder / "metadata.parquet")]


def tsv_of_addresses(data: Path, folder: Path, times: int) -> list[str]:
    """Write a million rows like CC3M's: caption, address, no header."""
    with (folder / "train.tsv").open("w") as file:
        file.writelines(
            f"a picture of thing {row}\thttps://host{row % 997}.example/{row}.jpg\n" for row in range(_ROWS)
        )
    return [str(folder / "train.tsv")]


SOURCES: dict[str, Callable[[Path, Path, int], list[str]]] = {
    "WebDataset tars": shards,
    "folder of pairs": pairs_folder,
    "Parquet with images": parquet_of_images,
    "CSV of files": csv_of_files,
    "another lake": another_lake,
    "Parquet of metadata": parquet_of_metadata,
    "TSV of addresses": tsv_of_addresses,
}


def _pairs(tar: Path) -> tuple[list[bytes], list[str]]:
    images, captions = [], []
    with tarfile.open(tar) as file:
        members = {member.name: member for member in file}
        for name, member in members.items():
            text = members.get(name.replace(".jpg", ".txt"))
            if name.endswith(".jpg") and text is not None:
                images.append(file.extractfile(member).read())  # type: ignore[union-attr]
                captions.append(file.extractfile(text).read().decode())  # type: ignore[union-attr]
    return images, captions


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    print(f"{result['date']}  {result['machine']['cpu']}, {result['machine']['cores']} cores\n")
    print(f"{'source':24}{'rows':>12}{'rows/s':>10}{'MB/s':>8}{'memory growth':>15}")
    for name, run in result["sources"].items():
        speed = f"{run['rows_per_second']:10,}{run['mb_per_second']:8}"
        print(f"{name:24}{run['rows']:12,}{speed}{run['rss_mib_grown']:11} MiB")


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="folder with *.tar")
    add("--times", type=int, default=20, help="number of repetitions of the photos (20)")
    add("--work", metavar="DIR", help="folder for sources and lakes; temporary by default")
    add("--lake", help=argparse.SUPPRESS)
    add("--read", nargs="+", help=argparse.SUPPRESS)
    add("--out", metavar="FILE", help="write the result to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
