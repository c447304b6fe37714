"""Reads `tls:` of a route: roots, client certificate, pins; and the client certificate of a token endpoint."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from policies.document import Mapping as MappingNode
from policies.document import Node
from policies.fields import Fields
from policies.keys import CLIENT_CERT as CLIENT_CERT_KEYS
from policies.keys import PKI, TLS
from policies.load_parts import Context, put_variables, read_file_key, read_place, read_secret, refuse_own
from policies.model import CredentialSpec, Route, SecretSpec
from policies.tls import CLIENT_CERT, ISSUED_CERT, ISSUED_KEY, ClientCertSpec, IssueSpec, TlsSpec

MAX_PINS: Final = 16
MAX_ROOTS_BYTES: Final = 16 * 1024 * 1024
"""Of a file of roots; what is behind that is not told from what was there before."""
MAX_URI_SANS: Final = 16
MIN_LIFE_S: Final = 60.0
MAX_LIFE_S: Final = 90 * 86_400.0
_PIN: Final = re.compile(r"sha256/([A-Za-z0-9+/]{43}=)")
_ROLE: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_])?")
_COMMON_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._@ -]{0,62}[A-Za-z0-9])?")
"""At most 64 characters (RFC 5280 appendix A.1), none of which has a meaning in a distinguished name."""
_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}://[A-Za-z0-9._~:/@%-]{1,500}")


@dataclass(frozen=True, slots=True)
class ReadTls:
    """What stands under `tls:`. `secret` is what the client certificate is read from."""

    ca_file: Path | None = None
    spec: TlsSpec | None = None
    secret: SecretSpec | None = None


def read_tls(name: str, keys: Fields, context: Context) -> ReadTls:
    """`tls:` of a route; nothing where there is none, or where its faults were told."""
    node = keys.node("tls")
    if node is None:
        return ReadTls()
    inner = Fields(node, context.faults, f"tls of route {name}", known=TLS)
    ca_file = read_file_key(inner, "ca_file", context)
    # Other roots under the same name are other roots: what the old ones have proven is not to be used again.
    roots = "" if ca_file is None else _digest(ca_file)
    cert, secret = read_client_cert(f"route {name}", inner, context)
    spec = TlsSpec(cert, _pins(inner, context), roots)
    return ReadTls(ca_file, None if spec == TlsSpec() else spec, secret)


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.sha256(handle.read(MAX_ROOTS_BYTES)).hexdigest()


def with_client_cert(route: Route, secret: SecretSpec | None) -> Route:
    """The route, each of whose credentials also holds the certificate."""
    if secret is None:
        return route

    def extended(spec: CredentialSpec) -> CredentialSpec:
        return replace(spec, secrets={**spec.secrets, CLIENT_CERT: secret})

    return replace(
        route,
        credential=extended(route.credential or CredentialSpec(route.name, {})),
        allow=tuple(
            entry if entry.credential is None else replace(entry, credential=extended(entry.credential))
            for entry in route.allow
        ),
    )


def _pins(keys: Fields, context: Context) -> frozenset[bytes]:
    found: set[bytes] = set()
    for scalar in keys.texts("pin_spki"):
        written = _PIN.fullmatch(scalar.text)
        try:
            digest = base64.b64decode(written[1], validate=True) if written is not None else b""
        except binascii.Error:
            digest = b""
        # The last character of base64 has bits that say nothing: only the one spelling is taken.
        if len(digest) != 32 or written is None or base64.b64encode(digest).decode() != written[1]:
            context.faults.add(
                scalar.place,
                f"{scalar.text!r} is no pin",
                "write sha256/ and the base64 of the SHA-256 of a SubjectPublicKeyInfo, 44 characters with its = at the end",
            )
        elif digest in found:
            context.faults.add(scalar.place, f"{scalar.text!r} stands twice in pin_spki of {keys.what}")
        else:
            found.add(digest)
    if len(found) > MAX_PINS:
        context.faults.add(keys.place_of("pin_spki"), f"pin_spki of {keys.what} has more than {MAX_PINS} pins")
    return frozenset(found)


def read_client_cert(owner: str, keys: Fields, context: Context) -> tuple[ClientCertSpec | None, SecretSpec | None]:
    """`client_cert:` and the secret that it is read from; None and None where there is none, or its faults were told."""
    node, what = keys.node("client_cert"), f"client_cert of {owner}"
    if node is None:
        return None, None
    before = len(context.faults.found)
    inner = Fields(node, context.faults, what, known=CLIENT_CERT_KEYS)
    if not isinstance(node, MappingNode):
        return None, None
    pki = inner.node("pki")
    if pki is not None:
        others = [key for key in CLIENT_CERT_KEYS if key != "pki" and key in inner]
        if others:
            context.faults.add(
                inner.place_of(others[0]), f"{what} has both pki and {others[0]}", "a certificate is issued, or read"
            )
        secret = _issued(pki, f"pki of {what}", context)
        spec = ClientCertSpec(ISSUED_CERT, ISSUED_KEY, issued=True)
    else:
        inner.require("cert", "key")
        cert, key = inner.text("cert"), inner.text("key")
        if cert is not None and cert == key:
            context.faults.add(inner.place_of("key"), f"cert and key of {what} are one field", "store them as two")
        rest = MappingNode(tuple(entry for entry in node if entry.key in _OF_SECRET), node.place)
        secret = read_secret(rest, what, context)
        # Public: no upstream is sent the key, so no answer could show it.
        secret = None if secret is None else replace(secret, needs=(cert or "", key or ""), public=True)
        spec = ClientCertSpec(cert or "", key or "")
    if secret is None or len(context.faults.found) > before:
        return None, None
    return spec, secret


_OF_SECRET: Final = frozenset(CLIENT_CERT_KEYS) - {"pki", "cert", "key"}


def _issued(node: Node, what: str, context: Context) -> SecretSpec | None:
    faults = context.faults
    keys = Fields(node, faults, what, known=PKI)
    if not isinstance(node, MappingNode) or not keys.require("role", "common_name"):
        return None
    before = len(faults.found)
    mount = read_place(keys, "mount", faults) or "pki"
    if "mount" in keys:
        refuse_own(mount, keys.place_of("mount"), faults)
    role = keys.text("role")
    if role is not None and not _ROLE.fullmatch(role):
        faults.add(keys.place_of("role"), f"{role!r} is no name of a role", "letters, digits and . _ -")
    scalar = keys.scalar("common_name")
    common_name = None if scalar is None else put_variables(scalar, context)
    if scalar is not None and common_name is not None and not _COMMON_NAME.fullmatch(common_name):
        faults.add(scalar.place, f"{common_name!r} is no common name", "at most 64 letters, digits and . _ @ -")
    uris: list[str] = []
    for one in keys.texts("uri_sans"):
        text = put_variables(one, context)
        if text is not None and not _URI.fullmatch(text):
            faults.add(one.place, f"{text!r} is no URI", "write scheme://name/path, such as spiffe://corp/billing")
        elif text is not None:
            uris.append(text)
    if len(uris) > MAX_URI_SANS:
        faults.add(keys.place_of("uri_sans"), f"uri_sans of {what} has more than {MAX_URI_SANS} names")
    ttl_s = keys.duration("ttl")
    if ttl_s is not None and not MIN_LIFE_S <= ttl_s <= MAX_LIFE_S:
        faults.add(keys.place_of("ttl"), f"'ttl' of {what} must lie between 1m and 90d")
    namespace = read_place(keys, "namespace", faults)
    if role is None or common_name is None or len(faults.found) > before:
        return None
    issue = IssueSpec(mount, role, common_name, tuple(dict.fromkeys(uris)), ttl_s)
    return SecretSpec(
        f"sign/{role}",
        mount=mount,
        namespace=namespace,
        ttl_s=0.0,
        max_stale_s=0.0,
        public=True,  # as above
        issue=issue,
    )
