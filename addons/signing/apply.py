"""The signers of one route, compiled: whether they read the body, and their turn, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from addons.credentials import Credential
from addons.head import HeadersToSend, RequestHead
from addons.refusal import Code, Refusal
from addons.signing.aws import PayloadWay, payload_way, sign_aws
from addons.signing.aws_chunks import ChunkSigner
from addons.signing.aws_scope import Scope, scope_of
from addons.signing.hmac_lines import sign_hmac
from addons.signing.http_message import sign_message
from addons.signing.outgoing import Outgoing
from policies.sign import AwsSigV4Signer, HmacSigner, HttpMessageSigner, Signer


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

    __slots__ = ("_always", "_aws", "_chunk_bytes", "signers")

    def __init__(self, signers: Sequence[Signer], chunk_bytes: int) -> None:
        self.signers = tuple(signers)
        self._chunk_bytes = chunk_bytes
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
                case HmacSigner():
                    sign_hmac(signer, request, credential, now_s)
                case HttpMessageSigner():
                    sign_message(signer, request, credential, now_s)
                case AwsSigV4Signer():
                    if judged.scope is None or judged.way is None:
                        raise Refusal(Code.INTERNAL, "A request was to be signed for AWS and was not judged.")
                    chunks = sign_aws(
                        signer, judged.scope, judged.way, request, credential, now_s, chunk_bytes=self._chunk_bytes
                    )
        return request.to_send(), chunks
