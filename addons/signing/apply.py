"""The signers of one route, compiled: whether they read the body, and their turn, in order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from addons.credentials import Credential
from addons.head import HeadersToSend, RequestHead
from addons.refusal import Code, Refusal
from addons.signing.aws import PayloadWay, payload_way, sign_aws
from addons.signing.aws_chunks import ChunkSigner
from addons.signing.aws_scope import Scope, scope_of
from addons.signing.hmac_lines import hmac_text, put_hmac, sign_hmac
from addons.signing.http_message import message_base, put_message, sign_message
from addons.signing.outgoing import Outgoing
from policies.sign import AwsSigV4Signer, HmacSigner, HttpMessageSigner, Signer, TransitUse, transit_use

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


class Signing:
    """What a route does to a request that is ready to leave.

    Args:
        signers: of the route, in their order.
        chunk_bytes: the most that one signed chunk of a body may have.
    """

    __slots__ = ("_always", "_aws", "_chunk_bytes", "remote", "signers")

    def __init__(self, signers: Sequence[Signer], chunk_bytes: int) -> None:
        self.signers = tuple(signers)
        self._chunk_bytes = chunk_bytes
        self.remote = any(transit_use(signer) is not None for signer in self.signers)
        reads = any(signer.reads_body for signer in self.signers if isinstance(signer, HmacSigner | HttpMessageSigner))
        self._always = Judged(reads)
        self._aws = next((signer for signer in self.signers if isinstance(signer, AwsSigV4Signer)), None)

    def judge(self, head: RequestHead) -> Judged:
        """What signing this request takes. Asked before anything of its body, or a secret, is read.

        Args:
            head: what the caller sent.

        Raises:
            Refusal: `access_denied` or `bad_request`; it could not be signed whatever its body is.
        """
        aws = self._aws
        if aws is None:
            return self._always
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

    @staticmethod
    def _one(signer: Signer, request: Outgoing, credential: Credential, now_s: float) -> None:
        match signer:
            case HmacSigner():
                sign_hmac(signer, request, credential, now_s)
            case HttpMessageSigner():
                sign_message(signer, request, credential, now_s)
            case AwsSigV4Signer():
                raise Refusal(Code.INTERNAL, "A request was to be signed for AWS beside other signers.")
