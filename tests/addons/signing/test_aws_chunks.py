"""S3's rules: the examples of its own documentation, chunk by chunk too."""

from __future__ import annotations

import hashlib

import pytest

from addons.credentials import Credential
from addons.head import RequestHead
from addons.refusal import Code, Refusal
from addons.signing.aws import payload_way, sign_aws
from addons.signing.aws_chunks import ChunkSigner
from addons.signing.aws_scope import Scope
from addons.signing.outgoing import Outgoing
from policies.sign import AwsSigV4Signer
from policies.template import parse_template
from tests.harness.signing import credential, outgoing

# Request, signed names and signature of each example stand on the pages
# docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html, sigv4-query-string-auth.html, sigv4-streaming.html and
# sigv4-streaming-trailers.html (read 2026-11).
SECRET = {"id": "AKIAIOSFODNN7EXAMPLE", "key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}
NOW_S = 1_369_353_600.0
SIGNER = AwsSigV4Signer(parse_template("{secret.id}"), parse_template("{secret.key}"), ("us-east-1",), ("s3",))
BUCKET = b"examplebucket.s3.amazonaws.com"
EMPTY = hashlib.sha256(b"").hexdigest().encode()
CONTENT = b"a" * 66_560
PIECES = (CONTENT[:65_536], CONTENT[65_536:], b"")


def signed_aws(
    signer: AwsSigV4Signer, scope: Scope, request: Outgoing, held: Credential, now_s: float, *, chunk_bytes: int
) -> tuple[Outgoing, ChunkSigner | None]:
    way = payload_way(signer, scope, request.caller)
    return request, sign_aws(signer, scope, way, request, held, now_s, chunk_bytes=chunk_bytes)


@pytest.mark.parametrize(
    ("method", "target", "fields", "claim", "signature"),
    [
        ("GET", b"/test.txt", [(b"Range", b"bytes=0-9")], EMPTY, "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
        (
            "PUT", b"/test%24file.text",
            [(b"Date", b"Fri, 24 May 2013 00:00:00 GMT"), (b"x-amz-storage-class", b"REDUCED_REDUNDANCY")],
            hashlib.sha256(b"Welcome to Amazon S3.").hexdigest().encode(),
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        ("PUT", b"/test$file.text",
            [(b"Date", b"Fri, 24 May 2013 00:00:00 GMT"), (b"x-amz-storage-class", b"REDUCED_REDUNDANCY")],
            hashlib.sha256(b"Welcome to Amazon S3.").hexdigest().encode(),
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        ("GET", b"/?lifecycle", [], EMPTY, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ("GET", b"/?max-keys=2&prefix=J", [], EMPTY, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ],
)  # fmt: skip
def test_examples_of_headers(
    method: str, target: bytes, fields: list[tuple[bytes, bytes]], claim: bytes, signature: str
) -> None:
    request = outgoing(method, target, fields, None, host=BUCKET, caller=[*fields, (b"X-Amz-Content-Sha256", claim)])
    scope = Scope("us-east-1", "s3", frozenset({b"range", b"date", b"host"}))
    made, chunks = signed_aws(SIGNER, scope, request, credential(SECRET), NOW_S, chunk_bytes=1)
    assert chunks is None
    assert made.values(b"authorization")[0].decode().endswith(f"Signature={signature}")


def test_the_example_of_a_presigned_url() -> None:
    request = outgoing("GET", b"/test.txt", (), None, host=BUCKET)
    scope = Scope("us-east-1", "s3", frozenset({b"host"}), 86_400)
    made, _ = signed_aws(SIGNER, scope, request, credential(SECRET), NOW_S, chunk_bytes=1)
    assert made.query.decode().endswith(
        "X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )


EXAMPLES = {
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD": (
        [(b"Content-Encoding", b"aws-chunked"), (b"Content-Length", b"66824")],
        "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
        (
            "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
            "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
            "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
        ),
        None,
    ),
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER": (
        [(b"Content-Encoding", b"aws-chunked"), (b"x-amz-trailer", b"x-amz-checksum-crc32c")],
        "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
        (
            "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
            "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
            "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
        ),
        "d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435",
    ),
}


def body(signatures: tuple[str, ...], trailer: str | None) -> bytes:
    made = b""
    for content, signature in zip(PIECES, signatures, strict=True):
        made += b"%x;chunk-signature=%b\r\n" % (len(content), signature.encode())
        made += content + b"\r\n" if content or trailer is None else b""
    if trailer is not None:
        made += b"x-amz-checksum-crc32c:sOO8/Q==\r\nx-amz-trailer-signature:%b\r\n\r\n" % trailer.encode()
    return made


def chunked(claim: str, chunk_bytes: int = 1 << 20) -> tuple[str, ChunkSigner]:
    fields = [
        *EXAMPLES[claim][0],
        (b"x-amz-storage-class", b"REDUCED_REDUNDANCY"),
        (b"x-amz-decoded-content-length", b"66560"),
    ]
    request = outgoing(
        "PUT", b"/examplebucket/chunkObject.txt", fields, None, host=b"s3.amazonaws.com",
        caller=[*fields, (b"x-amz-content-sha256", claim.encode())],
    )  # fmt: skip
    scope = Scope("us-east-1", "s3", frozenset({b"content-encoding", b"content-length"}))
    made, chunks = signed_aws(SIGNER, scope, request, credential(SECRET), NOW_S, chunk_bytes=chunk_bytes)
    assert chunks is not None
    return made.values(b"authorization")[0].decode().rpartition("Signature=")[2], chunks


@pytest.mark.parametrize("claim", EXAMPLES)
@pytest.mark.parametrize("step", [1, 7, 1000, 65_536, 1 << 20])
def test_the_examples_of_chunks(claim: str, step: int) -> None:
    _, seed, signatures, trailer = EXAMPLES[claim]
    found, chunks = chunked(claim)
    assert found == seed
    placeholder = body(("0" * 64,) * 3, "0" * 64 if trailer else None)
    if step == 1:
        # Byte by byte around what can be split wrongly, not through all of the content.
        cuts = [*range(200), *range(65_500, 65_800), *range(len(placeholder) - 400, len(placeholder))]
    else:
        cuts = list(range(0, len(placeholder), step))
    parts = [placeholder[a:b] for a, b in zip([0, *cuts], [*cuts, len(placeholder)], strict=True)]
    made = b"".join(chunks.feed(part) for part in parts if part)
    assert chunks.feed(b"") == b""
    assert made == body(signatures, trailer)
    assert len(made) == len(placeholder)


GOOD = body(("0" * 64,) * 3, None)
TRAILED = body(("0" * 64,) * 3, "0" * 64)


@pytest.mark.parametrize(
    ("claim", "sent"),
    [
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", GOOD[:-2]),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", GOOD + b"x"),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", GOOD + GOOD),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", TRAILED),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", CONTENT),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", GOOD.replace(b"10000;chunk-signature=", b"10000; chunk-signature=")),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", GOOD.replace(b"10000;", b"10001;")),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", GOOD.replace(b"\r\na", b"\na")),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", GOOD[65_540 + 80 :]),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", b"400;chunk-signature=" + b"0" * 64 + b"\r\n" + b"a" * 1024 + b"\r\n" + GOOD),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", b"x" * 2000),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", GOOD),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", TRAILED[:-2]),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", TRAILED + b"x"),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", TRAILED.replace(b"x-amz-checksum", b"x amz")),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", TRAILED[:-2] + b"x-more:1\r\n\r\n"),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", TRAILED.replace(b"x-amz-checksum-crc32c:sOO8/Q==\r\n", b"a:b\r\n" * 17)),
    ],
)  # fmt: skip
def test_what_is_not_in_signed_chunks_is_refused(claim: str, sent: bytes) -> None:
    _, chunks = chunked(claim)
    with pytest.raises(Refusal) as caught:
        for start in range(0, len(sent), 5000):
            chunks.feed(sent[start : start + 5000])
        chunks.feed(b"")
    assert caught.value.code is Code.BAD_REQUEST
    assert "aaa" not in caught.value.message


def test_a_chunk_over_the_cap_is_refused_before_it_is_held() -> None:
    _, chunks = chunked("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", 65_535)
    with pytest.raises(Refusal) as caught:
        chunks.feed(GOOD[:100])
    assert caught.value.code is Code.BODY_TOO_LARGE


@pytest.mark.parametrize("lengths", [(), (b"x",), (b"1", b"1"), (b"-1",)])
def test_the_length_of_the_content_must_be_told(lengths: tuple[bytes, ...]) -> None:
    fields = tuple((b"x-amz-decoded-content-length", one) for one in lengths)
    with pytest.raises(Refusal) as caught:
        ChunkSigner(b"k", b"t", b"p", b"s", RequestHead("PUT", b"/", fields, http2=False), 10)
    assert caught.value.code is Code.BAD_REQUEST


def test_nothing_shows_its_key() -> None:
    _, chunks = chunked("STREAMING-AWS4-HMAC-SHA256-PAYLOAD")
    assert repr(chunks) == "ChunkSigner(…)"
