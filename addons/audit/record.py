"""Audit records: their keys, their encoding, and the `OpenRecord` that unseals a secret.

One record is one line of JSON in UTF-8 with the keys of docs/reference/audit.md in that order, absent rather than null.
No key can hold a secret value: values are names, numbers and what the caller sent as method, host and path.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, TypedDict, cast

from addons.clock import Clock


class Fields(TypedDict, total=False):
    """The keys of a record, apart from `v`, `time`, `event` and `id`, which the log adds."""

    request_id: str
    trace_id: str
    workload: str
    proof: str
    source: str
    listener: str
    route: str
    rule: str
    host: str
    port: int
    method: str
    path: str
    secret: str
    secret_version: str
    lease: str
    cache: str
    payload_sha256: str
    status: int
    outcome: str
    code: str
    bytes_in: int
    bytes_out: int
    ms: float
    ms_secret: float
    ms_upstream: float
    redactions: int
    retries: int
    count: int
    """How many refusals of one unproven source this record stands for."""
    version: str
    """Of the policy."""
    reason: str


ORDER: Final = tuple(Fields.__annotations__)
MAX_TEXT: Final = 2048
"""Characters of a text value; a longer one ends in …"""


class AuditUnavailable(Exception):
    """No sink could make the record durable in time."""


_PRIVATE: Final = object()


@dataclass(frozen=True, slots=True)
class OpenRecord:
    """Proof that `credential.opened` is durable. Only the audit log makes one."""

    id: str
    fields: Fields
    token: object

    def __post_init__(self) -> None:
        if self.token is not _PRIVATE:
            raise TypeError("open records are made by the audit log alone")

    @property
    def secret(self) -> str | None:
        return self.fields.get("secret")

    @property
    def secret_version(self) -> str | None:
        return self.fields.get("secret_version")


def make_open(record_id: str, fields: Fields) -> OpenRecord:
    """For the audit log only: the record is durable."""
    return OpenRecord(record_id, fields, _PRIVATE)


class Encoder:
    """Turns records into lines.

    Args:
        clock: wall time of the records.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._second = -1
        self._prefix = ""

    def time(self) -> str:
        """RFC 3339 in UTC with milliseconds."""
        import datetime as dt

        now_s = self._clock.wall_s()
        second = int(now_s)
        if second != self._second:
            self._second = second
            self._prefix = dt.datetime.fromtimestamp(second, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.")
        return f"{self._prefix}{int((now_s - second) * 1000):03d}Z"

    def line(self, event: str, record_id: str, fields: Fields) -> bytes:
        """One line, its line feed included."""
        record: dict[str, Any] = {"v": 1, "time": self.time(), "event": event, "id": record_id}
        given = cast("dict[str, Any]", fields)
        for key in ORDER:
            value = given.get(key)
            if value is None:
                continue
            if isinstance(value, str) and len(value) > MAX_TEXT:
                value = value[: MAX_TEXT - 1] + "…"
            record[key] = value
        # ensure_ascii escapes U+2028, controls and lone surrogates alike: a line is a line for every reader.
        return json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"
