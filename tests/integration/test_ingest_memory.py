"""Memory of an ingest from a large source."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.lake.sample_files import picture

#: VmHWM instead of `getrusage`, whose peak is inherited from pytest across exec.
_MEASURE = """
import re, sys
from lakeclip.lake.engine import deeplake
from lakeclip.ingestion.run import ingest

def peak():
    return int(re.findall(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[0]) // 1024

deeplake()
before = peak()
result = ingest(sys.argv[1:2], sys.argv[2])
print(result.rows, peak() - before, before)
"""


def write_parquet(path: Path, images: list[bytes]) -> None:
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("caption", pa.string())]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for _ in range(20):
            rows = [{"bytes": image, "path": "x"} for image in images]
            writer.write_table(pa.table({"image": rows, "caption": ["a cat"] * len(rows)}, schema=schema))


def write_tar(path: Path, images: list[bytes]) -> None:
    with tarfile.open(path, "w") as file:
        for number in range(20 * len(images)):
            for suffix, content in (("jpg", images[number % len(images)]), ("txt", b"a cat")):
                info = tarfile.TarInfo(f"{number:05}.{suffix}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_parquet, write_tar])
def test_memory_does_not_grow_with_the_source(write: object, tmp_path: Path) -> None:
    images = [picture(seed, size=(360, 300)) for seed in range(200)]
    source = tmp_path / f"big.{write.__name__.removeprefix('write_')}"
    write(source, images)
    assert source.stat().st_size > 250 * 2**20
    command = [sys.executable, "-c", _MEASURE, str(source), str(tmp_path / "lake")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    rows, growth, before = map(int, result.stdout.split())
    assert rows == 4000
    assert before < 200, "the peak is that of the new process"
    assert 0 < growth < 300
