"""Claims: from the same JPEGs, lakeclip's loader delivers more 224-pixel samples a second on a core than open_clip's
WebDataset loader with its transform and than Deep Lake's own `ds.pytorch()`; it comes close to the limit of decoding
and resizing; and shuffled reading is hardly slower than reading in order.

    .venv-peer/bin/python benchmarks/loader.py --data DIR --out benchmarks/results/NAME.json

DIR holds WebDataset shards with KEY.jpg (100 or more photos of any size) and KEY.txt. Each measurement is a separate
process on one core with one thread; the sides take turns. README.md in this folder says what is measured and how.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.machine import machine
from common.results import command_line, log, ratio_stats, today, write_result
from common.subprocess_side import run_side

#: Name → width (None: the photos as they are), height, and number of photos that each side reads.
SIZES: dict[str, tuple[int | None, int, int]] = {
    "as given": (None, 0, 2000),
    "640×480": (640, 480, 1000),
    "1024×768": (1024, 768, 500),
    "2000×1500": (2000, 1500, 250),
}
_BATCH = 50
_IMAGE = 224
#: Length of a measurement in seconds, after one untimed pass over the photos.
_SECONDS = 5.0
_TILE = 448


def main() -> None:
    """Parse the flags; create the data, measure, print and write the result; or run one side for the main process."""
    flags = _flags()
    if flags.side:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
        print(json.dumps(SIDES[flags.side](Path(flags.data), flags.seconds)))
        return
    with tempfile.TemporaryDirectory(dir=flags.work) as work:
        result = measure(Path(flags.data), Path(work), flags)
    write_result(result, flags.out)
    show(result)


# ── one side, in a separate process ────────────────────────────────────────────────────────────────────────────────


def lakeclip_shuffled(folder: Path, seconds: float) -> dict[str, Any]:
    """Measure lakeclip: lake → batches of uint8 and token ids, shuffled."""
    return _rate(_lakeclip(folder, shuffle=True), _count(folder), seconds)


def lakeclip_in_order(folder: Path, seconds: float) -> dict[str, Any]:
    """Measure lakeclip without shuffling."""
    return _rate(_lakeclip(folder, shuffle=False), _count(folder), seconds)


def _lakeclip(folder: Path, *, shuffle: bool) -> Iterator[Any]:
    import torch

    from lakeclip.data.datamodule import PairDataModule
    from lakeclip.lake.dataset import open_lake

    torch.set_num_threads(1)
    # open_clip's transform draws from the same range of areas.
    module = PairDataModule(
        open_lake(folder / "lake"), batch_size=_BATCH, image_size=_IMAGE, resize_ratio=0.9, shuffle=shuffle
    )
    loader = module.train_dataloader()
    while True:
        yield from loader


def open_clip_loader(folder: Path, seconds: float) -> dict[str, Any]:
    """Measure open_clip with its WebDataset loader, transform and tokenizer."""
    import open_clip
    import torch
    from open_clip_train.data import get_wds_dataset
    from open_clip_train.params import parse_args

    torch.set_num_threads(1)
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    shards = f"{folder}/{{{Path(tars[0]).stem}..{Path(tars[-1]).stem}}}.tar"
    flags = (
        f"--dataset-type webdataset --dataset-resampled --train-num-samples 1000000 --batch-size {_BATCH} --workers 0"
    )
    args = parse_args(["--train-data", shards, *flags.split()])
    args.world_size, args.rank, args.distributed = 1, 0, False
    transform = open_clip.image_transform(_IMAGE, is_train=True)
    data = get_wds_dataset(args, transform, is_train=True, tokenizer=open_clip.get_tokenizer("ViT-B-32"))
    return _rate(iter(data.dataloader), _count(folder), seconds)


def deep_lake_loader(folder: Path, seconds: float) -> dict[str, Any]:
    """Measure Deep Lake's own loader, shuffled by PyTorch, with open_clip's transform."""
    import open_clip
    import torch
    from PIL import Image

    from lakeclip.lake.engine import deeplake

    torch.set_num_threads(1)
    transform = open_clip.image_transform(_IMAGE, is_train=True)
    tokenize = open_clip.get_tokenizer("ViT-B-32")

    def prepare(row: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        return transform(Image.fromarray(row["image"])), tokenize(row["text"])[0]

    dataset = deeplake().open_read_only(str(folder / "images"))
    loader = torch.utils.data.DataLoader(dataset.pytorch(transform=prepare), batch_size=_BATCH, shuffle=True)

    def forever() -> Iterator[Any]:
        while True:
            yield from loader

    return _rate(forever(), _count(folder), seconds)


def decode_only(folder: Path, seconds: float) -> dict[str, Any]:
    """Measure decoding and resizing alone: lakeclip's transform on bytes in memory."""
    import numpy as np
    import torch

    from lakeclip.data.transforms import TrainTransform
    from lakeclip.lake.dataset import open_lake

    torch.set_num_threads(1)
    lake = open_lake(folder / "lake")
    images = lake.images(range(len(lake)))
    transform = TrainTransform(_IMAGE, 0.9)
    draws = np.random.default_rng(0).random((len(images), 3))

    def batches() -> Iterator[list[torch.Tensor]]:
        while True:
            for start in range(0, len(images) - _BATCH + 1, _BATCH):
                yield [transform(images[i], draws[i]) for i in range(start, start + _BATCH)]

    return _rate(batches(), _count(folder), seconds)


SIDES: dict[str, Callable[[Path, float], dict[str, Any]]] = {
    side.__name__: side
    for side in (lakeclip_shuffled, lakeclip_in_order, open_clip_loader, deep_lake_loader, decode_only)
}


def _count(folder: Path) -> int:
    return int((folder / "count").read_text())


def _rate(batches: Iterable[Any], count_once: int, seconds: float) -> dict[str, Any]:
    batches = iter(batches)
    for _ in range(max(2, count_once // _BATCH)):
        next(batches)
    start = time.perf_counter()
    count = 0
    while (took := time.perf_counter() - start) < seconds:
        next(batches)
        count += _BATCH
    return {"images_per_second": count / took}


# ── data ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def make_photos(data: Path, folder: Path, width: int | None, height: int, count: int) -> dict[str, Any]:
    """Write shards of JPEGs of one size, cut from mosaics of the photos at twice their size, and lakes of them."""
    from PIL import Image

    from lakeclip.ingestion.run import ingest
    from lakeclip.lake.engine import deeplake

    folder.mkdir()
    pairs = list(_pairs(data))
    count = count if width is not None else min(count, len(pairs))
    across, down = -(-(width or 1) // _TILE), -(-height // _TILE)
    images, captions = [], []
    for number in range(count):
        captions.append(pairs[number % len(pairs)][1])
        if width is None:
            images.append(pairs[number][0])
            continue
        mosaic = Image.new("RGB", (across * _TILE, down * _TILE))
        for cell in range(across * down):
            photo = Image.open(io.BytesIO(pairs[(number * 7 + cell * 13) % len(pairs)][0])).convert("RGB")
            mosaic.paste(photo.resize((_TILE, _TILE), Image.Resampling.BICUBIC), _corner(cell, across))
        buffer = io.BytesIO()
        mosaic.crop((0, 0, width, height)).save(buffer, "JPEG", quality=85)
        images.append(buffer.getvalue())
    per_tar = -(-count // 4)
    for tar in range(4):
        with tarfile.open(folder / f"{tar:05}.tar", "w") as file:
            for number in range(tar * per_tar, min(count, (tar + 1) * per_tar)):
                for suffix, content in (("jpg", images[number]), ("txt", captions[number].encode())):
                    info = tarfile.TarInfo(f"{number:06}.{suffix}")
                    info.size = len(content)
                    file.addfile(info, io.BytesIO(content))
    (folder / "count").write_text(f"{count}")
    ingest([str(folder)], str(folder / "lake"))
    types = deeplake().types
    dataset = deeplake().create(
        str(folder / "images"), schema={"image": types.Image(sample_compression="jpeg"), "text": types.Text()}
    )
    dataset.append({"image": images, "text": captions})
    dataset.commit()
    return {"photos": count, "bytes_each": round(sum(map(len, images)) / count)}


def _corner(cell: int, across: int) -> tuple[int, int]:
    return cell % across * _TILE, cell // across * _TILE


def _pairs(data: Path) -> Iterator[tuple[bytes, str]]:
    for path in sorted(data.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: member for member in tar}
            for name, member in members.items():
                text = members.get(name.replace(".jpg", ".txt"))
                if name.endswith(".jpg") and text is not None:
                    caption = tar.extractfile(text).read().decode().splitlines()[0]  # type: ignore[union-attr]
                    yield tar.extractfile(member).read(), caption  # type: ignore[union-attr]


# ── all sides in turns ──────────────────────────────────────────────────────────────────────────────────────────────


def measure(data: Path, work: Path, flags: argparse.Namespace) -> dict[str, Any]:
    """Create the data and measure all sides in turns."""
    sides = ("lakeclip_shuffled", "open_clip_loader", "decode_only", "lakeclip_in_order", "deep_lake_loader")
    sizes: dict[str, Any] = {}
    for name, (width, height, count) in SIZES.items():
        folder = work / f"photos{width}"
        log(f"{name}: creating {count} photos")
        sizes[name] = make_photos(data, folder, width, height, count)
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(flags.rounds):
            for side in sides if turn % 2 == 0 else sides[::-1]:
                rates[side].append(_measure_side(side, folder, flags.seconds))
            log(f"{name}, round {turn + 1}: " + ", ".join(f"{side} {rate[-1]:.0f}" for side, rate in rates.items()))
        ours = rates["lakeclip_shuffled"]
        sizes[name] |= {
            "images_per_second": rates,
            "against_open_clip": ratio_stats(ours, rates["open_clip_loader"]),
            "against_deep_lake": ratio_stats(ours, rates["deep_lake_loader"]),
            "of_decode_only": ratio_stats(ours, rates["decode_only"]),
            "shuffled_of_in_order": ratio_stats(ours, rates["lakeclip_in_order"]),
        }
    packages = ("torch", "deeplake", "open_clip_torch", "webdataset", "simplejpeg", "pillow")
    return {
        "date": today(),
        "command": command_line("loader.py"),
        "machine": machine(1),
        "versions": {name: version(name) for name in packages},
        "sizes": sizes,
    }


def _measure_side(side: str, folder: Path, seconds: float) -> float:
    arguments = ["--data", str(folder), "--side", side, "--seconds", str(seconds)]
    return float(run_side(__file__, arguments, side=side, threads=1)["images_per_second"])


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    print(f"{result['date']}  {result['machine']['cpu']}, one core, one thread a side\n")
    print(f"{'images/s on one core':24}" + "".join(f"{name:>14}" for name in result["sizes"]))
    sides = next(iter(result["sizes"].values()))["images_per_second"]
    for side in sides:
        medians = (statistics.median(size["images_per_second"][side]) for size in result["sizes"].values())
        print(f"{side:24}" + "".join(f"{rate:14.0f}" for rate in medians))
    print()
    for claim in ("against_open_clip", "against_deep_lake", "of_decode_only", "shuffled_of_in_order"):
        cells = (size[claim] for size in result["sizes"].values())
        print(f"{claim:24}" + "".join(f"{cell['median']:7.2f} ({cell['min']:.2f})" for cell in cells))


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="folder with *.tar")
    add("--rounds", type=int, default=5, help="measurements of each side (5)")
    add("--seconds", type=float, default=_SECONDS, help="length of each measurement (5)")
    add("--work", metavar="DIR", help="folder for the data, 2 GB; temporary by default")
    add("--side", choices=SIDES, help=argparse.SUPPRESS)
    add("--out", metavar="FILE", help="write the result to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
