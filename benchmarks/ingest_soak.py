"""Claim: whatever is ingested, killed, edited and appended, nothing is lost and every account adds up.

    .venv/bin/python benchmarks/ingest_soak.py --ingests 200 --out benchmarks/results/NAME.json

Each lake has one to three sources of random kinds (folders, tars, tables of files, addresses or bytes), whose paths end
alike. Again and again they are edited at random (captions and pictures changed, items added, removed, renamed and
broken, whole folders moved), and appended with `on_change` update, keep or add. Some ingests are killed by SIGKILL, at
a random moment or beside a commit, and run again. After each, the lake must hold the rows that a model in this script
expects; if it was not killed, the numbers of rows added, updated, known and gone must be the model's as well.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import signal
import sys
import tarfile
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common.machine import machine
from common.results import command_line, log, today, write_result
from PIL import Image

KINDS = ("folder", "tar", "files", "addresses", "lines", "parquet")
#: Kinds whose rows are numbered, not named.
_NUMBERED = ("files", "addresses", "lines", "parquet")
_BROKEN = -1


@dataclass
class Item:
    """A pair: its name, the number of its picture (`_BROKEN` for none that can be read), and its caption."""

    name: str
    picture: int
    caption: str


@dataclass
class SoakSource:
    """A source, the rows that the lake should hold of it, and numbers of what the last ingest should report."""

    kind: str
    root: Path
    items: list[Item] = field(default_factory=list)
    rows: list[Item] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """Path to ingest."""
        names = {"folder": "", "tar": "0.tar", "lines": "0.jsonl", "parquet": "0.parquet"}
        return self.root / "data" / names.get(self.kind, "0.csv")

    def write(self) -> None:
        """Write the items."""
        folder = self.root / "data"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        if self.kind == "folder":
            for item in self.items:
                (folder / f"{item.name}.png").write_bytes(picture(item.picture))
                (folder / f"{item.name}.txt").write_text(item.caption)
        elif self.kind == "tar":
            with tarfile.open(self.path, "w") as file:
                for item in self.items:
                    for name, content in (
                        (f"{item.name}.png", picture(item.picture)),
                        (f"{item.name}.txt", item.caption),
                    ):
                        data = content if isinstance(content, bytes) else content.encode()
                        info = tarfile.TarInfo(name)
                        info.size = len(data)
                        file.addfile(info, io.BytesIO(data))
        else:
            self._write_table(folder)

    def _write_table(self, folder: Path) -> None:
        if self.kind == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            images = [picture(item.picture) for item in self.items]
            pq.write_table(pa.table({"image": images, "caption": [item.caption for item in self.items]}), self.path)
        elif self.kind == "lines":
            lines = [json.dumps({"url": address(item.picture), "caption": item.caption}) for item in self.items]
            self.path.write_text("\n".join(lines) + "\n")
        else:
            with self.path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["filepath" if self.kind == "files" else "url", "caption"])
                for item in self.items:
                    name = f"p{item.picture}.png" if self.kind == "files" else address(item.picture)
                    if self.kind == "files":
                        (folder / name).write_bytes(picture(item.picture))
                    writer.writerow([name, item.caption])

    def expect(self, mode: str) -> Counter[str]:
        """Update the expected rows as an ingest of the items does, and return the numbers that it should report."""
        counts: Counter[str] = Counter()
        unmatched = list(self.rows)
        items = [item for item in self.items if item.picture != _BROKEN]

        def take(item: Item, *fields: str) -> Item | None:
            for row in unmatched:
                if all(getattr(row, name) == getattr(item, name) for name in fields):
                    unmatched.remove(row)
                    return row
            return None

        remaining = []
        for item in items:
            if take(item, "picture", "caption") is None:
                remaining.append(item)
            else:
                counts["known"] += 1
        for fields in (("picture",), ("name",)):
            undecided = []
            for item in remaining:
                row = take(item, *fields) if fields != ("name",) or self.kind not in _NUMBERED else None
                if row is None:
                    undecided.append(item)
                elif mode == "update":
                    row.picture, row.caption = item.picture, item.caption
                    counts["updated"] += 1
                elif mode == "keep":
                    counts["kept"] += 1
                else:
                    self.rows.append(Item(item.name, item.picture, item.caption))
                    counts["rows"] += 1
            remaining = undecided
        for item in remaining:
            self.rows.append(Item(item.name, item.picture, item.caption))
            counts["rows"] += 1
        counts["removed"] += len(unmatched)
        return counts


class Soak:
    """Random ingests into random lakes.

    Args:
        work: folder for them.
        seed: of everything that is random, except the moments of kills.
    """

    def __init__(self, work: Path, seed: int) -> None:
        self._work = work
        self._rng = random.Random(seed)
        self._next = 0
        self.kills: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.edits: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.lakes = 0
        self.ingests = 0
        self.problems: list[str] = []

    def run(self, ingests: int) -> None:
        """Make this many ingests."""
        while self.ingests < ingests:
            self.lakes += 1
            folder = self._work / f"lake{self.lakes}"
            sources = [
                SoakSource(self._rng.choice(KINDS), folder / f"source{number}")
                for number in range(self._rng.randint(1, 3))
            ]
            mode = self._rng.choice(("update", "update", "keep", "add"))
            for source in sources:
                self.kinds[source.kind] += 1
                source.items = [self._item(source) for _ in range(self._rng.randint(5, 40))]
            for step in range(min(self._rng.randint(3, 8), ingests - self.ingests)):
                if step:
                    for source in sources:
                        self._edit(source, may_move=mode == "update")
                chosen = sources if not step else self._rng.sample(sources, self._rng.randint(1, len(sources)))
                for source in sources:
                    source.write()
                self._ingest(folder / "lake", sources, chosen, mode)
                if self.ingests % 10 == 0:
                    log(f"{self.ingests} ingests, {self.kills.total()} kills, {len(self.problems)} problems")

    def _item(self, source: SoakSource) -> Item:
        self._next += 1
        # A table of addresses has no broken pictures: they are not downloaded.
        is_broken = source.kind not in ("addresses", "lines") and self._rng.random() < 0.05
        return Item(f"item{self._next}", _BROKEN if is_broken else self._next, f"caption {self._next}")

    def _edit(self, source: SoakSource, *, may_move: bool) -> None:
        for _ in range(self._rng.randint(0, max(1, len(source.items) // 5))):
            edit = self._rng.choice(("caption", "picture", "add", "remove", "rename"))
            item = self._rng.choice(source.items)
            self._next += 1
            if edit == "caption":
                item.caption = f"corrected {self._next}"
            elif edit == "picture":
                item.picture = self._next
            elif edit == "add":
                source.items.insert(self._rng.randint(0, len(source.items)), self._item(source))
            elif edit == "rename":
                item.name = f"renamed{self._next}"
            elif len(source.items) > 4:
                source.items.remove(item)
            self.edits[edit] += 1
        if self._rng.random() < 0.2:
            self._rng.shuffle(source.items)
            self.edits["shuffle"] += 1
        if may_move and self._rng.random() < 0.1:
            source.root.rename(source.root.with_name(f"moved{self._next}"))
            source.root = source.root.with_name(f"moved{self._next}")
            self.edits["move"] += 1

    def _ingest(self, lake: Path, sources: list[SoakSource], chosen: list[SoakSource], mode: str) -> None:
        self.ingests += 1
        self.modes[mode] += 1
        expected: Counter[str] = Counter()
        for source in chosen:
            expected.update(source.expect(mode))
        paths = [str(source.path) for source in chosen]
        killed = 0
        while killed < 3 and self._rng.random() < 0.35:
            kill = self._rng.choice(("moment", "before a commit", "after a commit"))
            outcome = in_process(_run_ingest, paths, str(lake), mode, kill, self._rng.random())
            if outcome is None:
                self.kills[kill] += 1
                killed += 1
            else:
                break
        else:
            outcome = None
        is_clean = not killed
        if outcome is None:
            outcome = in_process(_run_ingest, paths, str(lake), mode, "", 0.0)
        name = f"ingest {self.ingests} ({mode}, {killed} kills, {', '.join(source.kind for source in chosen)})"
        if outcome is None or "error" in outcome:
            self.problems.append(f"{name}: {outcome}")
            return
        found = in_process(_read_lake, str(lake))
        wanted = Counter(
            (row.caption, address(row.picture) if source.kind in ("addresses", "lines") else _checksum(row.picture))
            for source in sources
            for row in source.rows
        )
        stored = Counter(map(tuple, (found or {}).get("rows", [])))
        if stored != wanted:
            self.problems.append(f"{name}: missing {wanted - stored}, not expected {stored - wanted}")
        if is_clean:
            self.outcomes.update({key: expected[key] for key in ("rows", "updated", "known", "kept", "removed")})
            figures = {key: outcome[key] for key in ("rows", "updated", "known", "removed")}
            if any(figures[key] != expected[key] for key in figures):
                self.problems.append(f"{name}: reported {figures}, expected {dict(expected)}")
        for unit, counts in outcome["account"].items():
            if counts["read"] != counts["used"] + sum(counts["left_out"].values()):
                self.problems.append(f"{name}: {unit} do not add up: {counts}")


def picture(number: int) -> bytes:
    """Return a small PNG, another one for each number; no image for `_BROKEN`."""
    if number == _BROKEN:
        return b"not an image"
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def address(number: int) -> str:
    """Return the address of a picture, which is not downloaded."""
    return f"https://pictures.example/{number}.png"


def _checksum(number: int) -> str:
    import zlib

    return str(zlib.crc32(picture(number)))


def in_process(work: Any, *arguments: Any) -> dict[str, Any] | None:
    """Run a function in a process of its own, and return its result; None if the process was killed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        try:
            result = work(*arguments)
        except BaseException:
            result = {"error": traceback.format_exc()[-3000:]}
        with os.fdopen(writer, "w") as pipe:
            json.dump(result, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    return json.loads(text) if text and not os.WIFSIGNALED(status) else None


def _run_ingest(paths: list[str], lake: str, mode: str, kill: str, chance: float) -> dict[str, Any]:
    from lakeclip.ingestion import writer
    from lakeclip.ingestion.run import ingest

    writer.ROWS_PER_APPEND, writer.ROWS_PER_COMMIT = 4, 8
    commit = writer.LakeWriter.commit
    commits = 0

    def counted(self: writer.LakeWriter) -> None:
        nonlocal commits
        commits += 1
        last = int(1 + 6 * chance)
        if kill == "before a commit" and commits == last:
            os.kill(os.getpid(), signal.SIGKILL)
        commit(self)
        if kill == "after a commit" and commits == last:
            os.kill(os.getpid(), signal.SIGKILL)

    writer.LakeWriter.commit = counted  # type: ignore[method-assign]
    if kill == "moment":
        from lakeclip.lake import engine

        engine.deeplake()
        threading.Timer(0.2 * chance, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return ingest(paths, lake, append=True, on_change=mode, progress=False).to_dict()


def _read_lake(lake: str) -> dict[str, Any]:
    from lakeclip.lake.dataset import open_lake

    opened = open_lake(lake, include_unusable=True)
    urls = opened.column("url") if "url" in opened.columns else [None] * len(opened)
    checksums = opened.column("crc32")
    images = opened.images(range(len(opened)))
    import zlib

    assert all(zlib.crc32(image) == int(str(crc)) for image, crc in zip(images, checksums, strict=True))
    places = [str(url) if url else str(crc) for url, crc in zip(urls, checksums, strict=True)]
    return {"rows": list(zip(opened.column("text"), places, strict=True))}


def soak(work: Path, ingests: int, seed: int) -> dict[str, Any]:
    """Make random ingests, and return what happened."""
    import lakeclip.ingestion.run  # noqa: F401  once, before the processes are forked

    started = time.perf_counter()
    run = Soak(work, seed)
    run.run(ingests)
    return {
        "date": today(),
        "command": command_line("ingest_soak.py"),
        "machine": machine(1),
        "ingests": run.ingests,
        "lakes": run.lakes,
        "kills": dict(run.kills),
        "on_change": dict(run.modes),
        "sources": dict(run.kinds),
        "edits": dict(run.edits),
        "outcomes_without_kills": dict(run.outcomes),
        "problems": run.problems,
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    """Parse the flags, ingest, and write the result; exit with 1 if something was lost or does not add up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ingests", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        result = soak(Path(work), flags.ingests, flags.seed)
    write_result(result, flags.out)
    print(json.dumps(result, indent=1))
    if result["problems"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
