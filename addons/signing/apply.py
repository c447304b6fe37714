"""The signers of one route, compiled: whether they read the body, and their turn, in order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from addons.credentials import Credential
from addons.head import HeadersToSend, RequestHead
from addons.refusal import Code, Refusal
from addons.signing.acs3 import sign_acs3
from addons.signing.aws import PayloadWay, payload_way, sign_aws
from addons.signing.aws_chunks import ChunkSigner
from addons.signing.aws_scope import Scope, scope_of
from addons.signing.dpop import Nonces, sign_dpop
from addons.signing.edgegrid import METHOD, sign_edgegrid
from addons.signing.hmac_lines import hmac_text, put_hmac, sign_hmac
from addons.signing.http_message import message_base, put_message, sign_message
from addons.signing.keys import decoded_key
from addons.signing.outgoing import Outgoing
from addons.signing.tc3 import service_of, sign_tc3
from policies.sign import (
    Acs3Signer,
    AwsSigV4Signer,
    DpopSigner,
    EdgeGridSigner,
    HmacSigner,
    HttpMessageSigner,
    Signer,
    Tc3Signer,
    TransitUse,
    transit_use,
)
from vault.secret import Secret

type Ask = Callable[[TransitUse, bytes], Awaitable[bytes]]
"""Asks for a signature of a key that stays in Vault."""


class Beside(Protocol):
    """Runs work where it holds up nobody: at once, or in a thread where the body is large."""

    async def __call__[T](self, work: Callable[[], T]) -> T: ...


@dataclass(frozen=True, slots=True)
class Judged:
    """What signing one request takes, by its head alone."""

    reads_body: bool
    """Whether the body must be whole first."""
    scope: Scope | None = None
    """Of a request to AWS."""
    way: PayloadWay | None = None
    service: str | None = None
    """Of a request to Tencent Cloud."""


class Signing:
    """What a route does to a request that is ready to leave.

    Args:
        signers: of the route, in their order.
        chunk_bytes: the most that one signed chunk of a body may have.
    """

    __slots__ = ("_always", "_aws", "_chunk_bytes", "_encoded", "_post", "_tc3", "nonces", "remote", "signers")

    def __init__(self, signers: Sequence[Signer], chunk_bytes: int) -> None:
        self.signers = tuple(signers)
        self._chunk_bytes = chunk_bytes
        self.remote = any(transit_use(signer) is not None for signer in self.signers)
        reads = any(_reads_body(signer) for signer in self.signers)
        self._always = Judged(reads)
        self._post = (
            Judged(reads_body=True) if any(isinstance(one, EdgeGridSigner) for one in self.signers) else self._always
        )
        self._aws = next((signer for signer in self.signers if isinstance(signer, AwsSigV4Signer)), None)
        self._tc3 = next((signer for signer in self.signers if isinstance(signer, Tc3Signer)), None)
        self._encoded = [
            signer
            for signer in self.signers
            if isinstance(signer, HmacSigner | HttpMessageSigner)
            and signer.key_encoding != "utf8"
            and transit_use(signer) is None
        ]
        self.nonces = Nonces() if any(isinstance(signer, DpopSigner) for signer in self.signers) else None
        """What upstreams want in the proofs of a route that makes some."""

    def shown(self, credential: Credential) -> tuple[Secret, ...]:
        """Forms of the keys that an upstream knows beside those that are stored."""
        return tuple([decoded_key(one.key, one.key_encoding, credential) for one in self._encoded])

    def judge(self, head: RequestHead) -> Judged:
        """What signing this request takes. Asked before anything of its body, or a secret, is read.

        Args:
            head: what the caller sent.

        Raises:
            Refusal: `access_denied` or `bad_request`; it could not be signed whatever its body is.
        """
        if self._tc3 is not None:
            return Judged(reads_body=True, service=service_of(self._tc3, head))
        aws = self._aws
        if aws is None:
            return self._post if head.method == METHOD else self._always
        scope = scope_of(aws, head)
        way = payload_way(aws, scope, head)
        return Judged(way == "held", scope, way)

    def sign(
        self, judged: Judged, request: Outgoing, credential: Credential, now_s: float
    ) -> tuple[HeadersToSend, ChunkSigner | None]:
        """The signed head, and what signs the chunks of the body behind it, where it has some.

        Args:
            judged: of this request.
            request: what leaves otherwise.
            credential: opened for this request.
            now_s: wall-clock seconds.

        Raises:
            Refusal: it cannot be signed; then nothing may leave.
        """
        chunks: ChunkSigner | None = None
        for signer in self.signers:
            match signer:
                case AwsSigV4Signer():
                    if judged.scope is None or judged.way is None:
                        raise Refusal(Code.INTERNAL, "A request was to be signed for AWS and was not judged.")
                    chunks = sign_aws(
                        signer, judged.scope, judged.way, request, credential, now_s, chunk_bytes=self._chunk_bytes
                    )
                case Tc3Signer():
                    if judged.service is None:
                        raise Refusal(Code.INTERNAL, "A request was to be signed for Tencent Cloud and was not judged.")
                    sign_tc3(signer, judged.service, request, credential, now_s)
                case _:
                    self._one(signer, request, credential, now_s)
        return request.to_send(), chunks

    async def sign_remotely(
        self, request: Outgoing, credential: Credential, now_s: float, ask: Ask, beside: Beside
    ) -> HeadersToSend:
        """As `sign`, for a route with a key that stays in Vault (`remote`): each such signer asks for its signature.

        Args:
            request: what leaves otherwise.
            credential: opened for this request.
            now_s: wall-clock seconds.
            ask: gives a signature over a text.
            beside: runs what reads the body where it does not hold up others.

        Raises:
            Refusal: it cannot be signed; then nothing may leave.
        """
        for signer in self.signers:
            use = transit_use(signer)
            match signer:
                case HmacSigner() if use is not None:
                    text = await beside(partial(hmac_text, signer, request, credential, now_s))
                    put_hmac(signer, request, await ask(use, text))
                case HttpMessageSigner() if use is not None:
                    base, params = await beside(partial(message_base, signer, request, credential, now_s))
                    put_message(signer, request, params, await ask(use, base))
                case _:
                    await beside(partial(self._one, signer, request, credential, now_s))
        return request.to_send()

    def _one(self, signer: Signer, request: Outgoing, credential: Credential, now_s: float) -> None:
        match signer:
            case HmacSigner():
                sign_hmac(signer, request, credential, now_s)
            case HttpMessageSigner():
                sign_message(signer, request, credential, now_s)
            case EdgeGridSigner():
                sign_edgegrid(signer, request, credential, now_s)
            case Acs3Signer():
                sign_acs3(signer, request, credential, now_s)
            case DpopSigner():
                nonce = self.nonces.of(request.host) if self.nonces is not None else None
                sign_dpop(signer, request, credential, now_s, nonce)
            case AwsSigV4Signer() | Tc3Signer():
                raise Refusal(Code.INTERNAL, "A request was to be signed by a signer that signs alone, beside others.")


def _reads_body(signer: Signer) -> bool:
    match signer:
        case HmacSigner() | HttpMessageSigner():
            return signer.reads_body
        case Acs3Signer() | Tc3Signer():
            return True
        case AwsSigV4Signer() | EdgeGridSigner() | DpopSigner():
            return False
