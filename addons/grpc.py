"""A refusal as gRPC callers read it: an answer of a head alone that holds `grpc-status` and `grpc-message`.

gRPC libraries show neither the fields nor the body of an answer that is not theirs, only its status. With these two they
show the code and the reason. Status and `X-Ostiary-Error` stay as in any refusal. The mapping is that of gRPC itself
(doc/http-grpc-status-mapping.md of grpc/grpc), so a caller sees the same status with and without these fields.
"""

from __future__ import annotations

import json
from typing import Final
from urllib.parse import quote

from addons.head import Fields
from addons.refusal import Answer

_STATUS: Final = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
UNKNOWN: Final = 2
_PRINTABLE: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


def speaks_grpc(fields: Fields) -> bool:
    """Whether a request head is gRPC's; gRPC-Web is not."""
    kinds = [value.lower() for name, value in fields if name.lower() == b"content-type"]
    return len(kinds) == 1 and (kinds[0] == b"application/grpc" or kinds[0].startswith((b"application/grpc+", b"application/grpc;")))  # fmt: skip


def for_grpc(answer: Answer) -> Answer:
    """The refusal for a gRPC caller."""
    shown = json.loads(answer.body)
    message = f"{shown['code']}: {shown['error']} ({shown['request_id']})"
    kept = [(name, value) for name, value in answer.headers if name not in {"Content-Type", "Content-Length"}]
    return Answer(
        answer.status,
        (
            ("Content-Type", "application/grpc"),
            *kept,
            ("Grpc-Status", str(_STATUS.get(answer.status, UNKNOWN))),
            ("Grpc-Message", quote(message, safe=_PRINTABLE)),
        ),
        b"",
    )
