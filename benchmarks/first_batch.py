"""The claim: behind a query, a million rows give their first shuffled batch hardly later than a thousand, and in hardly
more memory.

    .venv/bin/python benchmarks/first_batch.py --out benchmarks/results/NAME.json

Makes two lakes of rows as LAION's metadata has them, each with a small picture, and opens each in processes of its own,
in turns.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import machine, peak_mib

_ROWS = (1_000, 1_000_000)
_BATCH = 50


def main() -> None:
    """Parse the flags; make the lakes and measure, or be the process that opens one."""
    flags = _flags()
    if flags.lake:
        print(json.dumps(first_batch(Path(flags.lake))))
        return
    with tempfile.TemporaryDirectory(dir=flags.work) as work:
        result = measure(Path(work), flags.rounds)
    if flags.out:
        Path(flags.out).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    few, many = result["median"].values()
    for rows, run in result["median"].items():
        print(f"{int(rows):>11,} rows: first batch after {run['seconds']:.2f} s, {run['mib']:.0f} MiB")
    print(f"{many['seconds'] - few['seconds']:+.2f} s, {many['mib'] - few['mib']:+.0f} MiB")


def first_batch(folder: Path) -> dict[str, Any]:
    """Seconds from opening a lake with a query to its first shuffled batch, and the most memory that took."""
    import torch

    from lakeclip.data.datamodule import PairDataModule
    from lakeclip.lake import engine
    from lakeclip.lake.dataset import open_lake

    torch.set_num_threads(1)
    engine.deeplake()
    began = time.perf_counter()
    lake = open_lake(folder, "NSFW == 'UNLIKELY' and width > 200")
    module = PairDataModule(lake, batch_size=_BATCH, image_size=32)
    next(iter(module.train_dataloader()))
    return {"seconds": time.perf_counter() - began, "mib": peak_mib(), "rows": len(lake)}


def make_rows(folder: Path, count: int) -> None:
    """A lake of rows as LAION's metadata has them, each with a small picture."""
    import numpy as np
    from PIL import Image

    from lakeclip.lake.sources.base import Sample
    from lakeclip.lake.sources.images import ImageInfo
    from lakeclip.lake.write import LakeWriter

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
    """Make the lakes and open each so many times."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for count in _ROWS:
        print(f"making a lake of {count:,} rows", file=sys.stderr, flush=True)
        # In a process of its own: what it leaves in memory would be counted.
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import first_batch as b"
        code += f"; from pathlib import Path; b.make_rows(Path({str(work / str(count))!r}), {count})"
        subprocess.run([sys.executable, "-c", code], check=True)
    for _ in range(rounds):
        for count in _ROWS:
            command = [sys.executable, __file__, "--lake", str(work / str(count))]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            if done.returncode:
                sys.exit(done.stderr)
            runs.setdefault(str(count), []).append(json.loads(done.stdout.splitlines()[-1]))
    return {
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/first_batch.py --rounds {rounds} --out FILE",
        "machine": machine(1),
        "versions": {name: version(name) for name in ("torch", "deeplake")},
        "runs": runs,
        "median": {
            rows: {name: statistics.median(run[name] for run in found) for name in found[0]}
            for rows, found in runs.items()
        },
    }


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="times that each lake is opened (5)")
    add("--work", metavar="DIR", help="where the lakes are made, 1 GB; a temporary folder by default")
    add("--lake", help=argparse.SUPPRESS)
    add("--out", metavar="FILE", help="write the result to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
