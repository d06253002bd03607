"""Tests of the defaults of `RowSource`: a local source without a query."""

from __future__ import annotations

from tests.unit.data.memory_source import MemorySource


def test_a_single_source_has_itself_as_its_only_part() -> None:
    source = MemorySource(5)
    assert (source.parts, source.shares, source.offsets) == ([source], [1.0], [0])
    assert source.num_total_rows == 5
    assert source.locate(3) == ("memory", 3)
    assert (source.query, source.weights, source.extra_columns) == (None, None, ())
    assert not source.is_remote
    assert not source.is_queryable
    source.prefetch([0, 1])
