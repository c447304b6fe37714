"""A caller of the admin API, over TCP or a Unix socket, that can send anything and keeps what it was told for the scan."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from tests.harness.canaries import canary
from tests.harness.client import Answer, Raw
from tests.harness.ostiary_process import Ostiary

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
PROBLEM = {"type", "title", "status", "detail", "request_id"}


@dataclass
class Token:
    """A token and its entry in the settings. The token is a canary: it may show up nowhere."""

    name: str
    roles: str
    value: str = field(default_factory=lambda: "ost_" + canary("admin"))

    @property
    def entry(self) -> str:
        digest = hashlib.sha256(self.value.encode()).hexdigest()
        return f'{{name: {self.name}, hash: "sha256:{digest}", roles: {self.roles}}}'


def block(*tokens: Token, bind: str = "127.0.0.1:0", more: str = "") -> str:
    """The `admin:` block."""
    return f'{{bind: "{bind}", tokens: [{", ".join(token.entry for token in tokens)}]{more}}}'


def request(
    address: str, method: str, path: str, *headers: str, token: Token | None = None, host: str | None = None
) -> bytes:
    """The bytes of one request."""
    named = host if host is not None else "localhost" if address.startswith("unix:") else address
    lines = [f"{method} {path} HTTP/1.1", f"Host: {named}", *headers]
    if token is not None:
        lines.append(f"Authorization: Bearer {token.value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def call(
    proxy: Ostiary,
    method: str,
    path: str,
    *headers: str,
    token: Token | None = None,
    host: str | None = None,
    where: str = "admin",
) -> Answer:
    """One request on a connection of its own; what every answer must carry is checked."""
    address = proxy.ready[where]
    with Raw(address) as raw:
        raw.send(request(address, method, path, *headers, token=token, host=host))
        answer = raw.answer(method=method)
    proxy.told.append((path, repr(answer.headers).encode() + answer.body))
    checked(answer)
    return answer


def checked(answer: Answer) -> Answer:
    """Checks what every answer carries, and the shape of a problem."""
    for name, value in HEADERS.items():
        assert answer.all(name) == [value], (name, answer.headers)
    assert answer.get("Server") is None
    assert not [name for name, _ in answer.headers if name.lower().startswith("access-control-")]
    if answer.get("Content-Type") == "application/problem+json" and answer.body:
        shown = answer.json()
        assert PROBLEM <= shown.keys() <= PROBLEM | {"faults", "policy"}
        assert shown["status"] == answer.status
        assert shown["request_id"] == answer.get("X-Request-Id")
    return answer


def kind(answer: Answer) -> tuple[int, str]:
    """Status and the last part of a problem's type."""
    return answer.status, str(answer.json()["type"]).rpartition(":")[2]
