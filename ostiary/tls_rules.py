"""The one table of TLS rules, for every engine and both sides.

CPython's `ssl` and the pyOpenSSL that mitmproxy brings are built on different OpenSSL releases with different defaults,
so nothing is left to defaults: versions, cipher lists (RFC 9325 section 4.2), verification and roots are said here.
"""

from __future__ import annotations

from typing import Final

from OpenSSL import SSL

MIN_VERSION: Final = SSL.TLS1_2_VERSION
CIPHERS: Final = b":".join(
    (
        b"ECDHE-ECDSA-AES128-GCM-SHA256",
        b"ECDHE-RSA-AES128-GCM-SHA256",
        b"ECDHE-ECDSA-AES256-GCM-SHA384",
        b"ECDHE-RSA-AES256-GCM-SHA384",
        b"ECDHE-ECDSA-CHACHA20-POLY1305",
        b"ECDHE-RSA-CHACHA20-POLY1305",
    )
)
"""For TLS 1.2: forward secrecy and AEAD only. TLS 1.3 suites are all of that kind."""
ALPN_HTTP2: Final = b"h2"
ALPN_HTTP1: Final = b"http/1.1"
