"""The arithmetic of a bucket: never more than capacity and refill, and a wait that is told is a wait that suffices."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from addons.state.bucket import ROUNDING, Bucket, full_in_s, take

STEPS = st.lists(st.tuples(st.floats(0, 30), st.floats(0.001, 5)), max_size=60)


@given(capacity=st.floats(5, 1000), refill_per_s=st.floats(0.001, 100), steps=STEPS)
def test_never_more_than_there_was(capacity: float, refill_per_s: float, steps: list[tuple[float, float]]) -> None:
    bucket: Bucket | None = None
    began_s = now_s = 1_800_000_000.0
    granted = 0.0
    for passed_s, cost in steps:
        now_s += passed_s
        after, taken = take(bucket, cost, capacity, refill_per_s, now_s)
        bucket = after or bucket
        if taken.allowed:
            assert taken.retry_after_s == 0
            granted += cost
            assert after is not None
            assert 0 <= after.tokens <= capacity
            assert full_in_s(after, capacity, refill_per_s) >= 0
        else:
            assert taken.retry_after_s > 0
            _, later = take(bucket, cost, capacity, refill_per_s, now_s + taken.retry_after_s + 1e-6)
            assert later.allowed
        assert granted <= capacity + (now_s - began_s) * refill_per_s + len(steps) * (ROUNDING + 1e-4)


def test_a_refusal_writes_nothing_unless_the_clock_went_back() -> None:
    empty = Bucket(0.0, 100.0)
    assert take(empty, 1, 10, 1, 100.5)[0] is None
    assert take(empty, 1, 10, 1, 50.0)[0] == Bucket(0.0, 50.0)
