"""Test positions in the data against a simulation that counts batch by batch."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lakeclip.data.position import DataPosition


def simulate(steps: int, num_rows: int, size: int, max_batches: int | None, per_step: int) -> list[DataPosition]:
    """Return the position after every step, counting the batches one by one."""
    batches = num_rows // size if max_batches is None else min(num_rows // size, max_batches)
    positions = [DataPosition()]
    epoch = batch = seen = 0
    for step in range(1, steps + 1):
        batches_taken = min(per_step, batches - batch)
        seen += batches_taken * size
        batch += batches_taken
        if batch == batches:
            epoch, batch = epoch + 1, 0
        positions.append(DataPosition(step, epoch, batch * size, seen))
    return positions


@given(
    st.integers(1, 50),
    st.integers(1, 8),
    st.one_of(st.none(), st.integers(1, 9)),
    st.integers(1, 3),
    st.integers(0, 30),
)
def test_a_position_is_reached_from_any_earlier_one(num_rows, size, max_batches, per_step, start):
    size = min(size, num_rows)
    positions = simulate(60, num_rows, size, max_batches, per_step)
    for later in (start, start + 1, start + 13, 60):
        computed = positions[start].advance_to(
            later, num_rows=num_rows, global_batch=size, max_batches=max_batches, batches_per_step=per_step
        )
        assert computed == positions[later]


def test_a_new_batch_size_continues_at_the_same_sample():
    position = DataPosition().advance_to(3, num_rows=100, global_batch=10)
    assert position == DataPosition(3, 0, 30, 30)
    assert position.advance_to(4, num_rows=100, global_batch=20) == DataPosition(4, 0, 50, 50)
    assert position.advance_to(6, num_rows=100, global_batch=20) == DataPosition(6, 1, 0, 90)
    assert position.advance_to(7, num_rows=100, global_batch=20) == DataPosition(7, 1, 20, 110)
    assert position.advance_to(3, num_rows=100, global_batch=80) == DataPosition(3, 1, 0, 30)
