"""What a Java client needs: a trust store of its own kind, and options, since it reads no proxy variable.

Owns `trust.p12` and the text of JAVA_TOOL_OPTIONS, which every JVM reads at its start. The store holds what the PEM
bundle holds. It has no password: it keeps no secret, and a JVM reads such a store without one (17 by test; 8u301 and
later by its notes). The caller key cannot go into the options: the JDK has no property for a proxy's password, so a
program shows it through an `Authenticator`, or uses a listener that asks for no key (docs/guides/java.md).
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import NoEncryption
from cryptography.hazmat.primitives.serialization.pkcs12 import PKCS12Certificate, serialize_java_truststore

TRUST_STORE: Final = "trust.p12"
VARIABLE: Final = "JAVA_TOOL_OPTIONS"
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_WORD: Final = re.compile(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""")
"""How the JVM splits the variable."""


def write_trust_store(bundle: Path) -> Path:
    """Writes the trust store beside the bundle; left alone where it is newer than the bundle.

    Raises:
        OSError: it cannot be written.
    """
    store = bundle.with_name(TRUST_STORE)
    if store.exists() and store.stat().st_mtime_ns >= bundle.stat().st_mtime_ns:
        return store
    distinct = {cert.fingerprint(hashes.SHA256()): cert for cert in _certificates(bundle.read_bytes())}
    entries = [PKCS12Certificate(cert, digest.hex().encode()) for digest, cert in distinct.items()]
    fresh = bundle.with_name(f".trust-{os.getpid()}.p12")
    fresh.write_bytes(serialize_java_truststore(entries, NoEncryption()))
    fresh.chmod(0o644)
    fresh.replace(store)
    return store


def tool_options(proxy: str, store: Path, passed_by: Iterable[str], inherited: str) -> str:
    """JAVA_TOOL_OPTIONS for a proxy: what was there before, then ours (the JVM lets the later one win).

    Args:
        proxy: URL of the proxy; user and password are left out.
        store: trust store.
        passed_by: NO_PROXY entries that are no networks, which Java could not read.
        inherited: what the client has already; the same options in it are dropped.
    """
    split = urlsplit(proxy)
    host, port = split.hostname or "", split.port or 80
    ours = [
        *(f"-D{scheme}.proxy{name}={value}" for scheme in ("https", "http") for name, value in (("Host", host), ("Port", port))),
        f"-Dhttp.nonProxyHosts={'|'.join(_non_proxy_hosts(passed_by))}",
        # Since 8u111 the JDK refuses Basic on tunnels unless this list is emptied; Basic is all a caller key can use.
        "-Djdk.http.auth.tunneling.disabledSchemes=",
        f"-Djavax.net.ssl.trustStore={store}",
        "-Djavax.net.ssl.trustStoreType=PKCS12",
    ]  # fmt: skip
    names = {option.partition("=")[0] for option in ours}
    kept = [word for word in _WORD.findall(inherited) if word.strip("\"'").partition("=")[0] not in names]
    return " ".join([*kept, *(_quoted(option) for option in ours)])


def _non_proxy_hosts(entries: Iterable[str]) -> list[str]:
    """NO_PROXY in Java's syntax, where `example.com` stands for itself alone."""
    found: list[str] = []
    for entry in entries:
        if entry == "*" or "/" in entry:
            found += ["*"] if entry == "*" else []
        elif entry.count(":") > 1:
            found.append(f"[{entry.strip('[]')}]")
        else:
            name = entry.removeprefix("*").lstrip(".")
            found += [name, f"*.{name}"] if name else []
    return list(dict.fromkeys(found))


def _quoted(option: str) -> str:
    """An option the JVM reads as one word, though a path in it has blanks."""
    return f'"{option}"' if any(char in option for char in " \t'") else option


def _certificates(pem: bytes) -> Iterable[x509.Certificate]:
    """The certificates of a bundle. A root that cannot be read is left out: the system's bundles hold old ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in _PEM.findall(pem):
            with contextlib.suppress(ValueError):
                yield x509.load_pem_x509_certificate(block)
