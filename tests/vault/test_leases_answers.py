"""What Vault's engines answer with: kinds of fields, and a lease that cannot be used is given back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import hvac
import pytest

from vault.hashicorp.leases import lease
from vault.leases import LeaseRef
from vault.secret import Secret
from vault.store import SecretMalformed, SecretRef

REF = LeaseRef("database/creds/ro")


class Adapter:
    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer = answer
        self.revoked: list[str] = []

    def get(self, path: str) -> dict[str, Any]:
        assert path == "/v1/database/creds/ro"
        return self.answer

    def post(self, path: str, *, json: dict[str, Any], repeatable: bool) -> None:
        assert path == "/v1/sys/leases/revoke"
        self.revoked.append(json["lease_id"])


class Calls:
    """As the store: what has no shape is malformed."""

    def __init__(self, **answer: Any) -> None:
        self.adapter = Adapter(
            {"lease_id": "database/creds/ro/1", "lease_duration": 60, "renewable": True, "data": {}, **answer}
        )

    async def __call__[T](self, ref: SecretRef, work: Callable[[hvac.Client, Literal[1, 2]], T]) -> T:
        try:
            return work(cast("Any", self), 1)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise SecretMalformed(ref.name, "shape") from None


async def test_fields_of_other_kinds_do_not_spoil_the_credential() -> None:
    # Consul gives `local: false`, LDAP a list of `distinguished_names`.
    calls = Calls(data={"token": "t", "local": False, "distinguished_names": ["cn=a", "cn=b"], "none": None, "port": 5})
    fields = (await lease(calls, REF, 1)).version.fields
    assert set(fields) == {"token", "local", "port"}
    assert fields["local"].matches(Secret("false"))
    assert calls.adapter.revoked == []


@pytest.mark.parametrize(
    "answer",
    [
        {"data": {"password": "x" * 70_000}},
        {"data": {str(number): "x" for number in range(65)}},
        {"data": {}},
        {"data": None},
        {"data": {"only": [1]}},
        {"lease_duration": "60"},
        {"lease_duration": -1},
        {"lease_duration": 10**400},
    ],
)
async def test_a_lease_that_cannot_be_used_is_given_back(answer: dict[str, Any]) -> None:
    calls = Calls(**{"data": {"password": "x"}, **answer})
    with pytest.raises(SecretMalformed):
        await lease(calls, REF, 1)
    assert calls.adapter.revoked == ["database/creds/ro/1"]


@pytest.mark.parametrize("lease_id", ["a\nb", "\x1b[2J", "x" * 2000, "", None, 5])
async def test_no_identifier_that_could_forge_a_line_or_is_none(lease_id: object) -> None:
    calls = Calls(lease_id=lease_id, data={"password": "x"})
    with pytest.raises(SecretMalformed):
        await lease(calls, REF, 1)
    assert calls.adapter.revoked == ([lease_id] if isinstance(lease_id, str) and lease_id else [])
