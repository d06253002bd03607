"""Where a run stands in its data, against a simulation that counts batch by batch."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lakeclip.data.progress import Mark


def walk(steps: int, num_rows: int, size: int, max_batches: int | None, per_step: int) -> list[Mark]:
    """Every step's mark, found by taking the batches one after another."""
    batches = num_rows // size if max_batches is None else min(num_rows // size, max_batches)
    marks = [Mark()]
    epoch = batch = seen = 0
    for step in range(1, steps + 1):
        taken = min(per_step, batches - batch)
        seen += taken * size
        batch += taken
        if batch == batches:
            epoch, batch = epoch + 1, 0
        marks.append(Mark(step, epoch, batch * size, seen))
    return marks


@given(
    st.integers(1, 50),
    st.integers(1, 8),
    st.one_of(st.none(), st.integers(1, 9)),
    st.integers(1, 3),
    st.integers(0, 30),
)
def test_any_step_from_any_earlier_mark(num_rows, size, max_batches, per_step, start):
    size = min(size, num_rows)
    marks = walk(60, num_rows, size, max_batches, per_step)
    for later in (start, start + 1, start + 13, 60):
        found = marks[start].after(
            later, num_rows=num_rows, global_batch=size, max_batches=max_batches, batches_per_step=per_step
        )
        assert found == marks[later]


def test_another_batch_size_goes_on_from_the_same_sample():
    mark = Mark().after(3, num_rows=100, global_batch=10)
    assert mark == Mark(3, 0, 30, 30)
    assert mark.after(4, num_rows=100, global_batch=20) == Mark(4, 0, 50, 50)
    assert mark.after(6, num_rows=100, global_batch=20) == Mark(6, 1, 0, 90)
    assert mark.after(7, num_rows=100, global_batch=20) == Mark(7, 1, 20, 110)
    assert mark.after(3, num_rows=100, global_batch=80) == Mark(3, 1, 0, 30)
