"""G56: refusals of unproven callers."""

from __future__ import annotations

from addons.audit.coalesce import MAX_SOURCES, Coalescer
from addons.audit.record import Fields


def refusal(source: str = "10.0.0.1", code: str = "proof_required", **more: str) -> Fields:
    fields: Fields = {"source": source, "code": code}
    return {**fields, **more}  # type: ignore[typeddict-item]  # test data


def test_the_first_is_written_at_once_and_the_rest_is_counted() -> None:
    one = Coalescer()
    assert one.take(refusal(method="GET"), 0) == refusal(method="GET")
    assert [one.take(refusal(method="PUT"), second) for second in range(5)] == [None] * 5
    assert one.due(9.9) == []
    assert one.due(10) == [{**refusal(method="PUT"), "count": 5}]


def test_a_source_that_goes_on_is_written_once_in_a_window() -> None:
    one = Coalescer()
    written = 0
    for tenth in range(1000):
        written += one.take(refusal(), tenth / 10) is not None
        written += len(one.due(tenth / 10))
    assert written == 10


def test_a_source_that_stops_is_forgotten() -> None:
    one = Coalescer()
    one.take(refusal(), 0)
    assert one.due(10) == []
    assert len(one) == 0
    assert one.take(refusal(), 11) is not None


def test_codes_are_counted_apart() -> None:
    one = Coalescer()
    assert one.take(refusal(code="proof_required"), 0) is not None
    assert one.take(refusal(code="bad_request"), 0) is not None


def test_many_sources_share_one_count() -> None:
    one = Coalescer()
    written = [one.take(refusal(f"10.0.{number // 256}.{number % 256}"), 0) for number in range(10_000)]
    kept = [fields for fields in written if fields is not None]
    assert len(kept) == MAX_SOURCES + 1
    assert kept[-1]["source"] == "other"
    assert len(one) == MAX_SOURCES + 1
    (counted,) = one.due(10)
    assert (counted["source"], counted["count"]) == ("other", 10_000 - MAX_SOURCES - 1)


def test_at_the_end_everything_is_due() -> None:
    one = Coalescer()
    one.take(refusal(), 0)
    one.take(refusal(), 1)
    assert [fields["count"] for fields in one.due(2, everything=True)] == [1]
