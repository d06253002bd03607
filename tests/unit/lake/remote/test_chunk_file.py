from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lakeclip.lake.remote.chunk_file import ChunkFile, DamagedChunkError, encode_chunk

CHUNKS: dict[str, Any] = {
    "bytes": [b"abc", b"", None, b"x" * 50],
    "text": ["a cat", "", None, "é\ud800"],
    "numbers": np.array([2**62, -1, 0, 7]),
    "vectors": np.arange(8, dtype=np.float32).reshape(4, 2),
}


def write(path: Path, values: Any) -> bytes:
    content = encode_chunk(values)
    assert content is not None
    path.write_bytes(b"".join(content))
    return path.read_bytes()


def read(path: Path, indices: list[int]) -> list[Any]:
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in ChunkFile(path).read(indices)]


@pytest.mark.parametrize("kind", CHUNKS)
def test_values_are_read_as_they_were_written(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "chunk", CHUNKS[kind])
    expected = CHUNKS[kind].tolist() if isinstance(CHUNKS[kind], np.ndarray) else CHUNKS[kind]
    assert read(tmp_path / "chunk", [2, 0, 3, 1]) == [expected[i] for i in (2, 0, 3, 1)]


@pytest.mark.parametrize("kind", CHUNKS)
def test_a_damaged_byte_never_gives_a_wrong_value(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "chunk"
    data = write(path, CHUNKS[kind])
    expected = read(path, [0, 1, 2, 3])
    for offset in range(len(data)):
        for bit in (1, 0x40):
            path.write_bytes(data[:offset] + bytes([data[offset] ^ bit]) + data[offset + 1 :])
            with contextlib.suppress(DamagedChunkError):
                assert read(path, [0, 1, 2, 3]) == expected


@pytest.mark.parametrize("kind", CHUNKS)
def test_a_truncated_file_is_rejected(tmp_path: Path, kind: str) -> None:
    data = write(tmp_path / "chunk", CHUNKS[kind])
    for length in range(len(data)):
        (tmp_path / "chunk").write_bytes(data[:length])
        with pytest.raises(DamagedChunkError):
            ChunkFile(tmp_path / "chunk")


def test_values_of_other_types_are_not_stored() -> None:
    assert encode_chunk([1, "a"]) is None
    assert encode_chunk(np.array([{}], dtype=object)) is None
