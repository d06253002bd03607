"""Claim: of a folder of odd images every file is decoded as by Pillow, or left out with a reason; nothing hangs, raises
or prints.

    .venv/bin/python benchmarks/image_corpus.py --images DIR --out benchmarks/results/NAME.json

DIR is the folder Tests/images of Pillow's repository: some thousand images of every format and colour mode, among them
files that once crashed or stalled Pillow. A child process checks and decodes each file within a time limit, and its
standard error is recorded. Its pixels are compared with Pillow's `convert("RGB")`; a difference of more than two levels
needs one of the reasons of `_reason`, which are verified by a second calculation. At last all files are ingested with
`lakeclip ingest`, and each row that landed is decoded again.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from common.machine import machine
from common.results import command_line, log, today, write_result
from PIL import Image, ImageOps

#: Largest difference from Pillow in levels that needs no reason.
_MAX_DIFFERENCE = 2
_LIMIT_SECONDS = 20.0


def main() -> None:
    """Parse the flags; check every file of the folder, write and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="folder of images")
    parser.add_argument("--out", help="JSON file for the result")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        serve()
        return
    if flags.images is None:
        parser.error("--images DIR is needed")
    result = measure(Path(flags.images))
    write_result(result, flags.out)
    show(result)
    sys.exit(0 if result["holds"] else 1)


def measure(folder: Path) -> dict[str, Any]:
    """Check all files below a folder one by one, then ingest them together."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    log(f"{len(files):,} files")
    answers: dict[str, dict[str, Any]] = {}
    child = Child()
    for path in files:
        answers[path.relative_to(folder).as_posix()] = child.check(path)
    child.close()
    log("ingesting all of them")
    with tempfile.TemporaryDirectory() as work:
        ingested = ingest(files, Path(work))
    outcomes = Counter(answer["outcome"] for answer in answers.values())
    left_out = {name: answer for name, answer in answers.items() if answer["outcome"] == "left out"}
    differ = {name: answer for name, answer in answers.items() if answer.get("difference", 0) > _MAX_DIFFERENCE}
    reasons = Counter(answer["reason"].partition(":")[0] for answer in differ.values())
    result = {
        "claim": "every image is decoded as Pillow does, or left out with a reason; nothing hangs, raises or prints",
        "date": today(),
        "command": command_line("image_corpus.py", {"--images": "DIR"}),
        "machine": machine(os.cpu_count() or 1),
        "versions": {name: version(name) for name in ("lakeclip", "pillow", "simplejpeg", "numpy")},
        "files": len(files),
        "outcomes": dict(sorted(outcomes.items())),
        "left_out": dict(Counter(a["reason"].partition(":")[0] for a in left_out.values())),
        "equal_to_pillow": sum(a["outcome"] == "decoded" and "difference" in a for a in answers.values()) - len(differ),
        "differences_by_reason": dict(sorted(reasons.items())),
        "unexplained": {name: a["reason"] for name, a in differ.items() if a["reason"].startswith("unexplained")},
        "read_by_pillow_only": {name: a["reason"] for name, a in left_out.items() if a["pillow_reads"]},
        "read_by_us_only": sorted(n for n, a in answers.items() if a["outcome"] == "decoded" and not a["pillow_reads"]),
        "checked_but_not_decoded": {n: a["reason"] for n, a in answers.items() if a["outcome"] == "inconsistent"},
        "tracebacks": {name: a["reason"] for name, a in answers.items() if a["outcome"] == "raised"},
        "hangs": sorted(name for name, a in answers.items() if a["outcome"] == "hung"),
        "crashes": sorted(name for name, a in answers.items() if a["outcome"] == "crashed"),
        "printed": {name: a["printed"] for name, a in answers.items() if a.get("printed")},
        "slowest_seconds": round(max(answer["seconds"] for answer in answers.values()), 2),
        "ingest": ingested,
        "differences": {name: a["reason"] for name, a in sorted(differ.items())},
    }  # fmt: skip
    bad = ("unexplained", "checked_but_not_decoded", "tracebacks", "hangs", "crashes", "printed")
    result["holds"] = not any(result[key] for key in bad) and ingested["holds"]
    return result


class Child:
    """Process that checks files; it is started again after one that hung or crashed."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def check(self, path: Path) -> dict[str, Any]:
        """Check one file and return the child's answer, with the time and what it printed to standard error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        started = time.perf_counter()
        self._process.stdin.write(os.fsencode(path) + b"\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], _LIMIT_SECONDS)
        line = self._process.stdout.readline() if ready else b""
        answer: dict[str, Any] = json.loads(line) if line else {"outcome": "crashed" if ready else "hung", "reason": ""}
        answer["seconds"] = time.perf_counter() - started
        self._errors.seek(0)
        answer["printed"] = self._errors.read().decode("utf-8", "replace")[:500]
        self._errors.truncate(0)
        self._errors.seek(0)
        if not line:
            self.close()
            self._start()
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def serve() -> None:
    """Answer for each path on standard input with a line of JSON."""
    from lakeclip.data.decode import decode_image
    from lakeclip.errors import ImageError
    from lakeclip.lake.images import check_image

    warnings.simplefilter("always")
    print("ready", flush=True)
    for line in sys.stdin.buffer:
        data = Path(os.fsdecode(line.rstrip(b"\n"))).read_bytes()
        answer: dict[str, Any] = {"outcome": "decoded", "reason": ""}
        pixels = None
        try:
            info = check_image(data)
            if isinstance(info, str):
                answer.update(outcome="left out", reason=info)
            pixels = decode_image(data)
        except ImageError as error:
            if answer["outcome"] == "decoded":
                answer.update(outcome="inconsistent", reason=str(error))
        except Exception as error:
            answer.update(outcome="raised", reason=f"{type(error).__name__}: {error}")
        with warnings.catch_warnings():  # only what we print counts
            warnings.simplefilter("ignore")
            answer.update(_compare(data, pixels))
        print(json.dumps(answer), flush=True)


def _compare(data: bytes, pixels: np.ndarray | None) -> dict[str, Any]:
    """Compare decoded pixels with Pillow's."""
    try:
        image = Image.open(io.BytesIO(data))
        rawmode = image.tile[0][3] if getattr(image, "tile", None) else ""
        image.load()
        upright = ImageOps.exif_transpose(image)
        expected = np.asarray(upright.convert("RGB")).astype(int)
    except Exception:
        return {"pillow_reads": False}
    if pixels is None:
        return {"pillow_reads": True}
    if pixels.shape != expected.shape:
        return {"pillow_reads": True, "difference": 255, "reason": f"unexplained: {pixels.shape}, not {expected.shape}"}
    difference = int(np.abs(pixels - expected).max(initial=0))
    found: dict[str, Any] = {"pillow_reads": True, "difference": difference}
    if difference > _MAX_DIFFERENCE:
        found["reason"] = _reason(upright, rawmode, pixels)
    return found


def _reason(image: Image.Image, rawmode: object, pixels: np.ndarray) -> str:
    """Return why an image differs from Pillow's conversion, if a second calculation confirms it."""
    if image.mode.startswith(("I", "F")):
        levels = np.nan_to_num(np.asarray(image).astype(float), posinf=0, neginf=0)
        grey = pixels[..., 0].astype(float)
        fit = np.polyfit(levels.ravel(), grey.ravel(), 1) if levels.max() > levels.min() else (0.0, grey.mean())
        if np.abs(np.polyval(fit, levels) - grey).max() <= 1:
            return f"more than 8 bits: mode {image.mode} from {levels.min():g} to {levels.max():g}, scaled"
    if image.has_transparency_data:
        step = {"L;2": 85, "L;4": 17}.get(str(rawmode), 1)
        if image.mode == "L" and step > 1:
            image.info["transparency"] = image.info["transparency"] * step
        colours = np.asarray((image.convert("LA") if image.mode == "La" else image).convert("RGBA")).astype(float)
        white = colours[..., :3] * colours[..., 3:] / 255 + 255 - colours[..., 3:]
        if np.abs(white - pixels).max() <= _MAX_DIFFERENCE:
            return "transparency: laid on white"
    if "16" in str(rawmode):
        return "colours of 16 bits: scaled by their range"
    return f"unexplained: mode {image.mode}, {rawmode}"


def ingest(files: list[Path], work: Path) -> dict[str, Any]:
    """Ingest all files, each with a caption, and decode the rows that landed."""
    from lakeclip.data.decode import decode_image
    from lakeclip.lake.dataset import open_lake

    folder = work / "pairs"
    folder.mkdir()
    for number, path in enumerate(files):
        shutil.copyfile(path, folder / f"{number:05}{path.suffix.lower()}")
        if path.suffix.lower() != ".txt":
            (folder / f"{number:05}.txt").write_text(f"image {number}", encoding="utf-8")
    command = [sys.executable, "-m", "lakeclip", "ingest", str(folder), str(work / "lake"), "--report"]
    done = subprocess.run([*command, str(work / "report.json")], capture_output=True, text=True)
    report = json.loads((work / "report.json").read_text())
    lake = open_lake(work / "lake")
    for start in range(0, len(lake), 64):
        for data in lake.images(range(start, min(start + 64, len(lake)))):
            decode_image(data)
    return {
        "rows": report["rows"],
        "left_out": report["reasons"],
        "other_files": sum(report["ignored"].values()),
        "stderr": done.stderr[:500],
        "rows_decoded_again": len(lake),
        "holds": done.returncode == 0 and not done.stderr and len(lake) == report["rows"],
    }


def show(result: dict[str, Any]) -> None:
    """Print the counts."""
    for key, value in result.items():
        if isinstance(value, dict) and key not in ("machine", "versions", "differences"):
            print(f"{key}: {json.dumps(value, ensure_ascii=False)[:3000]}")
        elif not isinstance(value, dict):
            print(f"{key}: {value}")


if __name__ == "__main__":
    main()
