"""Claim: with a query, a million rows give their first shuffled batch hardly later than a thousand, with hardly more
memory.

    .venv/bin/python benchmarks/first_batch.py --out benchmarks/results/NAME.json

It writes two lakes of rows like LAION's metadata, each row with a small picture, and opens each several times, in turns
and in separate processes.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.machine import machine, peak_mib
from common.results import command_line, log, today, write_result
from common.subprocess_side import run_side

_ROWS = (1_000, 1_000_000)
_BATCH = 50


def main() -> None:
    """Parse the flags; write the lakes and measure, or open one lake for the main process."""
    flags = _flags()
    if flags.lake:
        print(json.dumps(first_batch(Path(flags.lake))))
        return
    with tempfile.TemporaryDirectory(dir=flags.work) as work:
        result = measure(Path(work), flags.rounds)
    write_result(result, flags.out)
    few, many = result["median"].values()
    for rows, run in result["median"].items():
        print(f"{int(rows):>11,} rows: first batch after {run['seconds']:.2f} s, {run['mib']:.0f} MiB")
    print(f"{many['seconds'] - few['seconds']:+.2f} s, {many['mib'] - few['mib']:+.0f} MiB")


def first_batch(folder: Path) -> dict[str, Any]:
    """Measure the seconds from opening a lake with a query to its first shuffled batch, and the peak memory."""
    import torch

    from lakeclip.data.datamodule import PairDataModule
    from lakeclip.lake import engine
    from lakeclip.lake.dataset import open_lake

    torch.set_num_threads(1)
    engine.deeplake()
    start = time.perf_counter()
    lake = open_lake(folder, "NSFW == 'UNLIKELY' and width > 200")
    module = PairDataModule(lake, batch_size=_BATCH, image_size=32)
    next(iter(module.train_dataloader()))
    return {"seconds": time.perf_counter() - start, "mib": peak_mib(), "rows": len(lake)}


def make_rows(folder: Path, count: int) -> None:
    """Write a lake of rows like LAION's metadata, each with a small picture."""
    import numpy as np
    from PIL import Image

    from lakeclip.ingestion.sources.base import Sample
    from lakeclip.ingestion.writer import LakeWriter
    from lakeclip.lake.images import ImageInfo

    random = np.random.default_rng(0)
    pictures = []
    for _ in range(64):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize((32, 32)).save(buffer, "JPEG")
        pictures.append(buffer.getvalue())
    with LakeWriter(str(folder)) as writer:
        for row in range(count):
            metadata = {
                "URL": f"https://host{row % 997}.example/{row}.jpg",
                "NSFW": ("UNLIKELY", "UNLIKELY", "UNLIKELY", "UNSURE")[row * 2654435761 % 4],
                "similarity": row * 7919 % 1000 / 1000,
            }
            info = ImageInfo("jpeg", 100 + row * 31 % 1000, 32)
            writer.append(Sample(f"{row}", pictures[row % 64], (f"a picture of thing {row}",), metadata), info)


def measure(work: Path, rounds: int) -> dict[str, Any]:
    """Write the lakes, and open each this many times."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for count in _ROWS:
        log(f"writing a lake of {count:,} rows")
        # In a separate process, since its memory would count otherwise.
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import first_batch as b"
        code += f"; from pathlib import Path; b.make_rows(Path({str(work / str(count))!r}), {count})"
        subprocess.run([sys.executable, "-c", code], check=True)
    for _ in range(rounds):
        for count in _ROWS:
            lake = str(work / str(count))
            run = run_side(__file__, ["--lake", lake], side=f"the lake of {count:,} rows", threads=1)
            runs.setdefault(str(count), []).append(run)
    return {
        "date": today(),
        "command": command_line("first_batch.py"),
        "machine": machine(1),
        "versions": {name: version(name) for name in ("torch", "deeplake")},
        "runs": runs,
        "median": {
            rows: {name: statistics.median(run[name] for run in lake_runs) for name in lake_runs[0]}
            for rows, lake_runs in runs.items()
        },
    }


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="number of times to open each lake (5)")
    add("--work", metavar="DIR", help="folder for the lakes, 1 GB; temporary by default")
    add("--lake", help=argparse.SUPPRESS)
    add("--out", metavar="FILE", help="write the result to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
