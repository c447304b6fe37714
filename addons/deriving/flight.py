"""One flight for a token: the secrets are opened behind records, the endpoint is asked, the records are closed.

A secret leaves for a token endpoint only behind an open record that names it, its version and where it goes; the record is
closed with what came of it. So it is where a key only signs something here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from addons.audit import AuditLog, AuditUnavailable, Fields, OpenRecord
from addons.clock import Clock
from addons.credentials import Credential, refusal_for
from addons.deriving.asking import Asker, Way
from addons.deriving.entry import Inputs
from addons.deriving.grants import ask, made
from addons.deriving.made import Made
from addons.refusal import Code, Refusal
from policies.derive import Derivation
from policies.model import CredentialSpec
from vault.store import SealedSecret, SecretRef, StoreError

ASKING_S: Final = 9.0
"""Over one exchange with an endpoint, inside the deadline of the flight."""
_DOWN: Final = Code.SECRET_UNAVAILABLE


class Flight:
    """How one credential's token is asked for.

    Args:
        spec: the credential.
        derive: its grant.
        way: to the endpoint.
        refs: the secrets that it needs, by their names in the credential.
        fields: those of their fields that must be there.
        asker: of endpoints.
        audit: records.
        clock: for assertions.
    """

    def __init__(
        self,
        spec: CredentialSpec,
        derive: Derivation,
        way: Way,
        *,
        refs: Mapping[str, SecretRef],
        fields: Sequence[tuple[str, str]],
        asker: Asker,
        audit: AuditLog,
        clock: Clock,
    ) -> None:
        self._spec, self._derive, self._way = spec, derive, way
        self._refs, self._fields = refs, fields
        self._asker, self._audit, self._clock = asker, audit, clock

    async def made(self, inputs: Inputs, workload: str) -> Made:
        """Opens the records and the secrets, asks, and closes the records. The secrets stay opened for the token."""
        for name, field in self._fields:
            try:
                inputs[self._refs[name]].require(field)
            except StoreError as error:
                raise refusal_for(error) from None
        began_s = self._clock.monotonic_s()
        records: list[OpenRecord] = []
        ended: Fields = {"outcome": "interrupted"}
        kept = False
        try:
            for secret in inputs.values():
                records.append(await self._audit.open(self._opening(secret, workload)))  # noqa: PERF401 - where the second fails, the first must be closed
            opened = {ref: one.unseal(record) for (ref, one), record in zip(inputs.items(), records, strict=True)}
            credential = Credential(self._spec, {name: opened[ref] for name, ref in self._refs.items()})
            found = await self._asked(credential, ended)
            kept = True
        except Refusal as refusal:
            ended |= {
                "outcome": "upstream_error" if "status" in ended or refusal.code is _DOWN else "refused",
                "code": refusal.code.value,
            }
            raise
        except AuditUnavailable:
            ended |= {"outcome": "refused", "code": Code.AUDIT_UNAVAILABLE.value}
            raise
        else:
            ended |= (
                {"outcome": "ok"}
                if found.refusal is None
                else {"outcome": "upstream_error", "code": found.refusal.code.value}
            )
            return found
        finally:
            ended["ms"] = (self._clock.monotonic_s() - began_s) * 1000
            for record in records:
                self._audit.close(record, ended)
            if not kept:
                for secret in inputs.values():
                    secret.release()

    async def _asked(self, credential: Credential, ended: Fields) -> Made:
        # Beside the loop: a private key may be parsed.
        asked = await asyncio.to_thread(ask, self._derive, credential, self._clock.wall_s())
        if isinstance(asked, Made):
            return asked
        try:
            async with asyncio.timeout(ASKING_S):
                reply = await self._asker.ask(asked, self._way)
        except TimeoutError:
            what = f"The token endpoint {asked.endpoint.host} did not answer within {ASKING_S:.0f} s."
            raise Refusal(Code.SECRET_UNAVAILABLE, what, retry_after_s=1.0) from None
        ended["status"], ended["bytes_in"], ended["bytes_out"] = reply.status, len(asked.body), len(reply.body)
        return made(self._derive, reply, self._clock.wall_s())

    def _opening(self, secret: SealedSecret, workload: str) -> Fields:
        fields: Fields = {"secret": secret.name, "secret_version": secret.version, "cache": secret.cache}
        if self._derive.per_workload:
            fields["workload"] = workload
        if self._derive.endpoint is not None:
            fields["host"], fields["port"] = self._derive.endpoint.host, self._derive.endpoint.port
            fields["method"] = "POST"
            if self._derive.endpoint.target:  # GitHub's goes on with the installation, which is told by nothing yet
                fields["path"] = self._derive.endpoint.target
        fields["reason"] = f"derive {self._derive.word}"
        return fields
