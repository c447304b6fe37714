"""The encoding of records, and who can make an open one."""

from __future__ import annotations

import copy
import json
import math
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addons.audit.record import MAX_TEXT, ORDER, Encoder, Fields, OpenRecord, make_open, text
from addons.clock import SystemClock
from tests.addons.audit.conftest import ENDED, FACTS, Moved
from vault.secret import Secret
from vault.store import SealedSecret, SecretVersion, WrongOpening

CONTRACT = [
    "v",
    "time",
    "event",
    "id",
    "request_id",
    "trace_id",
    "workload",
    "proof",
    "source",
    "listener",
    "route",
    "rule",
    "host",
    "port",
    "method",
    "path",
    "secret",
    "secret_version",
    "lease",
    "cache",
    "payload_sha256",
    "status",
    "outcome",
    "code",
    "bytes_in",
    "bytes_out",
    "ms",
    "ms_secret",
    "ms_upstream",
    "redactions",
    "retries",
]

NUMBERS = {"port", "status", "bytes_in", "bytes_out", "redactions", "retries", "count"}
FLOATS = {"ms", "ms_secret", "ms_upstream"}
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        key: st.integers() if key in NUMBERS else st.floats() if key in FLOATS else st.text(st.characters())
        for key in ORDER
    },
)


@given(FIELDS, st.randoms(use_true_random=False))
def test_a_record_is_one_line_of_json_that_reads_back(fields: dict[str, Any], shuffled: Any) -> None:
    names = list(fields)
    shuffled.shuffle(names)
    line = Encoder(SystemClock()).line("request.refused", "i" * 36, cast("Fields", {key: fields[key] for key in names}))
    assert line.endswith(b"}\n")
    assert len(line.decode("utf-8").splitlines()) == 1
    record = json.loads(line, parse_constant=pytest.fail)
    given_back = {key: record[key] for key in list(record)[4:]}
    expected: dict[str, Any] = {}
    for key in ORDER:
        value = fields.get(key)
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            continue
        if key == "path":
            value = value.partition("?")[0]
        if isinstance(value, float):
            value = float(f"{value:.3f}")  # milliseconds
        expected[key] = text(value) if isinstance(value, str) else value
    assert given_back == expected
    assert list(given_back) == list(expected)


@given(st.text(st.characters(categories=["Cs", "Cc", "Zl", "Zp", "Lu"]), max_size=3000))
def test_text_is_capped_and_every_reader_takes_it(value: str) -> None:
    held = text(value)
    assert len(held) <= MAX_TEXT
    held.encode("utf-8")
    if len(value) <= MAX_TEXT and not any("\ud800" <= letter <= "\udfff" for letter in value):
        assert held == value


def test_a_long_text_is_marked() -> None:
    line = Encoder(SystemClock()).line("request.refused", "i", {"path": "/" + "a" * 10_000})
    path = json.loads(line)["path"]
    assert (len(path), path[-1]) == (MAX_TEXT, "…")


def test_the_keys_of_the_contract_in_its_order() -> None:
    assert tuple(CONTRACT[4:]) == ORDER[: len(CONTRACT) - 4]
    fields = cast("Fields", dict.fromkeys(reversed(ORDER), 1))
    assert list(json.loads(Encoder(SystemClock()).line("e", "i", fields)))[: len(CONTRACT)] == CONTRACT


def test_head_of_a_record() -> None:
    record = json.loads(Encoder(Moved()).line("credential.opened", "the-id", FACTS))
    assert record["v"] == 1
    assert record["time"] == "2026-09-21T14:13:20.250Z"
    assert (record["event"], record["id"]) == ("credential.opened", "the-id")


def test_time_goes_on() -> None:
    clock = Moved()
    encoder = Encoder(clock)
    first = encoder.time()
    clock.wall += 0.7494
    assert (first[-7:], encoder.time()[-7:]) == ("20.250Z", "20.999Z")
    clock.wall += 1
    assert encoder.time()[-7:] == "21.999Z"


def test_a_query_never_stands_in_a_record() -> None:
    line = Encoder(SystemClock()).line("request.refused", "i", {"path": "/v1/items?api_key=canary#f"})
    assert b"canary" not in line
    assert json.loads(line)["path"] == "/v1/items"


def test_keys_that_no_record_has_and_none_are_left_out() -> None:
    fields = cast("Fields", {"password": "canary", "workload": None, "host": "api.test", "reason": b"bytes"})
    line = Encoder(SystemClock()).line("e", "i", fields)
    assert b"canary" not in line
    assert list(json.loads(line))[4:] == ["host"]


def test_joined_bodies_are_the_same_line() -> None:
    encoder = Encoder(Moved())
    whole = encoder.line("credential.closed", "i", {**FACTS, **ENDED})
    assert encoder.join("credential.closed", "i", encoder.body(FACTS), encoder.body(ENDED)) == whole


def test_shapes_are_bounded() -> None:
    encoder = Encoder(Moved())
    for number in range(2000):
        names = [key for bit, key in enumerate(ORDER) if number >> bit & 1]
        encoder.line("e", "i", cast("Fields", dict.fromkeys(names, "x")))
    assert len(encoder._shapes) <= 256


def test_only_the_log_makes_an_open_record() -> None:
    with pytest.raises(TypeError):
        OpenRecord("i", FACTS, 0.0, "", object())
    with pytest.raises(TypeError):
        OpenRecord("i", FACTS, 0.0, "", None)
    real = make_open("i", FACTS, 5.0, "")
    with pytest.raises(AttributeError):
        real.secret = "secret/other"  # type: ignore[misc]  # frozen: that is what is tested
    assert (real.id, real.request_id, real.secret, real.secret_version, real.opened_s) == (
        "i",
        FACTS["request_id"],
        "secret/egress/api",
        "7",
        5.0,
    )


def test_what_a_record_proves_does_not_change_with_the_fields_it_was_made_of() -> None:
    fields = copy.copy(FACTS)
    record = make_open("i", fields, 0.0, "")
    fields["secret"] = "secret/other"
    record.fields["secret_version"] = "8"
    assert (record.secret, record.secret_version) == ("secret/egress/api", "7")


def test_an_open_record_opens_its_secret_and_no_other() -> None:
    record = make_open("i", FACTS, 0.0, "")
    material = SecretVersion({"key": Secret("value")}, "7")
    assert SealedSecret("secret/egress/api", material, cache="hit", age_s=0).unseal(record)["key"].reveal() == "value"
    with pytest.raises(WrongOpening):
        SealedSecret("secret/egress/other", material, cache="hit", age_s=0).unseal(record)
