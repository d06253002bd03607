"""Property: whatever is edited between two ingests, the account adds up, and a further append changes nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lakeclip
from lakeclip.lake.dataset import open_lake
from tests.integration.test_append_identity import WRITERS

#: Pairs of a picture, of which there are few, so that some are equal, and a caption.
PAIRS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["a cat", "a dog", "ein Hund", "猫"])), min_size=1, max_size=8
)


def ingest(source: Path, lake: Path, on_change: str) -> lakeclip.IngestResult:
    result = lakeclip.ingest(source, lake, append=True, on_change=on_change)
    for unit, read in result.account.read.items():
        assert read == result.account.used[unit] + result.account.num_left_out(unit), unit
    assert result.account.read["samples"] == result.rows + result.updated + result.known + result.reasons.total()
    assert len(open_lake(lake, include_unusable=True)) == result.rows_before + result.rows
    return result


@pytest.mark.parametrize("kind", WRITERS)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(first=PAIRS, second=PAIRS, on_change=st.sampled_from(["update", "keep", "add"]))
def test_appends_add_up_and_settle(
    kind: str, first: list[tuple[int, str]], second: list[tuple[int, str]], on_change: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, lake = Path(folder) / "source", Path(folder) / "lake"
        assert ingest(WRITERS[kind](source, *first), lake, on_change).rows == len(first)
        shutil.rmtree(source)
        path = WRITERS[kind](source, *second)
        result = ingest(path, lake, on_change)
        stored = Counter(open_lake(lake, include_unusable=True).column("text"))
        if on_change != "keep":
            assert not Counter(caption for _, caption in second) - stored, "every pair of the source is in the lake"
        assert result.rows + result.updated + result.known + result.reasons.total() == len(second)
        again = ingest(path, lake, on_change)
        assert (again.rows, again.updated) == (0, 0)
        assert Counter(open_lake(lake, include_unusable=True).column("text")) == stored
