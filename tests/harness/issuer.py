"""An issuer of JWTs with a key of its own, and a Kubernetes API that reviews the tokens it is asked about."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tests.harness.pki import Pki


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Issuer:
    """Signs with ES256 (RFC 7518 section 3.4)."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())

    @property
    def public_key(self) -> str:
        return (
            self._key.public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            .decode()
        )

    def token(self, *, lives_s: float = 600, **claims: Any) -> str:
        now = int(dt.datetime.now(dt.UTC).timestamp())
        told = {"iat": now, "nbf": now - 5, "exp": now + int(lives_s), **claims}
        signed = f"{_b64(b'{"alg":"ES256","typ":"JWT"}')}.{_b64(json.dumps(told).encode())}"
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_b64(r.to_bytes(32) + s.to_bytes(32))}"

    def service_account(self, namespace: str, name: str) -> str:
        """A token as Kubernetes projects it into a pod."""
        account = {"namespace": namespace, "serviceaccount": {"name": name, "uid": f"uid-{name}"}}
        claims: dict[str, Any] = {"sub": f"system:serviceaccount:{namespace}:{name}", "kubernetes.io": account}
        return self.token(**claims)


class Kubernetes:
    """The one endpoint that Vault asks: TokenReview, over TLS."""

    def __init__(self, pki: Pki, issuer: Issuer) -> None:
        self.issuer = issuer
        self.ca = pki.ca_file.read_text()
        self.reviewed: list[str] = []
        self.known: dict[str, tuple[str, str]] = {}
        """Tokens that live, and the namespace and name of their service account."""
        kubernetes = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                token = asked["spec"]["token"]
                kubernetes.reviewed.append(token)
                status: dict[str, Any] = {"authenticated": False, "error": "the token has expired"}
                if (account := kubernetes.known.get(token)) is not None:
                    namespace, name = account
                    user = {
                        "username": f"system:serviceaccount:{namespace}:{name}",
                        "uid": f"uid-{name}",
                        "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}"],
                    }
                    status = {"authenticated": True, "user": user}
                body = json.dumps({**asked, "status": status}).encode()
                self.send_response(201)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki.certificate("127.0.0.1"))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"https://127.0.0.1:{self._server.server_port}"

    def token(self, namespace: str, name: str) -> str:
        """A token of a service account that is there."""
        made = self.issuer.service_account(namespace, name)
        self.known[made] = (namespace, name)
        return made

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def kubernetes_api(pki: Pki, issuer: Issuer) -> Iterator[Kubernetes]:
    api = Kubernetes(pki, issuer)
    try:
        yield api
    finally:
        api.stop()
