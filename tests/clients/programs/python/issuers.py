"""Issuers of tokens that verify with code of others: google-auth, PyJWT, Authlib, moto with botocore.

`python issuers.py KIND`, with its settings as one line of JSON on stdin. It serves TLS on a free port of loopback and prints
JSON lines: first `{"port": …}`, then what it has judged.
"""

from __future__ import annotations

import datetime as dt
import json
import secrets
import ssl
import sys
import threading
from typing import Any

from flask import Flask, jsonify, request
from werkzeug.serving import make_server

_print = threading.Lock()


def say(**what: Any) -> None:
    with _print:
        print(json.dumps(what), flush=True)


class Given:
    """What was handed out, told to the test, and what the API knows a caller by."""

    def __init__(self) -> None:
        self.tokens: set[str] = set()

    def token(self, **more: Any) -> str:
        token = f"issued-{secrets.token_hex(16)}"
        self.tokens.add(token)
        say(given=token, **more)
        return token

    def shown(self) -> bool:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        good = kind.lower() in {"bearer", "token"} and token in self.tokens
        if not good:
            say(refused=f"{request.method} {request.path}: no token of this issuer")
        return good


def google(with_: dict[str, Any]) -> Flask:
    """Google's token endpoint and Cloud Storage: the assertion is judged by google-auth's own verifier."""
    from google.auth import jwt

    app, given = Flask(__name__), Given()

    @app.post("/token")
    def token() -> Any:
        try:
            assert request.form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
            claims = jwt.decode(
                request.form["assertion"],
                certs={with_["key_id"]: with_["certificate"]},
                audience="https://oauth2.googleapis.com/token",
            )
            assert claims["iss"] == with_["email"], "iss"
            assert "sub" not in claims, "an account that acts for itself names no subject"
            assert claims["exp"] - claims["iat"] <= 3600, "Google takes an hour at most"
            assert claims["scope"] == with_["scope"], "scope"
        except Exception as error:
            say(refused=f"{type(error).__name__}: {error}")
            return jsonify(error="invalid_grant"), 400
        return jsonify(access_token=given.token(), token_type="Bearer", expires_in=3599)

    @app.post("/v1beta1/projects/corp/locations/us-central1/publishers/google/models/gemini-3.5-flash:generateContent")
    def generate() -> Any:
        if not given.shown():
            return jsonify(error={"code": 401, "message": "no"}), 401
        return jsonify(
            candidates=[{"content": {"role": "model", "parts": [{"text": "hello"}]}, "finishReason": "STOP"}]
        )

    @app.get("/storage/v1/b/reports/o")
    def objects() -> Any:
        if not given.shown():
            return jsonify(error={"code": 401, "message": "no"}), 401
        return jsonify(
            kind="storage#objects", items=[{"kind": "storage#object", "name": "may.csv", "bucket": "reports"}]
        )

    return app


def github(with_: dict[str, Any]) -> Flask:
    """GitHub's API for apps: the JWT of the app is judged by PyJWT, by the rules of GitHub's page on it."""
    import jwt

    app, given = Flask(__name__), Given()

    @app.post("/app/installations/4711/access_tokens")
    def access_tokens() -> Any:
        try:
            kind, _, text = request.headers["Authorization"].partition(" ")
            assert kind == "Bearer"
            claims = jwt.decode(
                text,
                with_["public_key"],
                algorithms=["RS256"],
                issuer=with_["app_id"],
                options={"require": ["iat", "exp", "iss"], "verify_iat": True},
            )
            assert claims["exp"] <= dt.datetime.now(dt.UTC).timestamp() + 600, "more than ten minutes ahead"
            assert request.headers["X-GitHub-Api-Version"] == "2022-11-28"
            asked = request.get_json()
        except Exception as error:
            say(refused=f"{type(error).__name__}: {error}")
            return jsonify(message="A JSON web token could not be decoded"), 401
        ends = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(hours=1)
        return jsonify(
            token=given.token(asked=asked),
            expires_at=ends.isoformat().replace("+00:00", "Z"),
            permissions=asked.get("permissions", {}),
            repository_selection="selected",
        ), 201

    @app.get("/repos/corp/one")
    def repository() -> Any:
        if not given.shown():
            return jsonify(message="Bad credentials"), 401
        return jsonify(id=1, name="one", full_name="corp/one", url="https://api.github.com/repos/corp/one")

    @app.get("/repos/corp/one/issues/7")
    def issue() -> Any:
        if not given.shown():
            return jsonify(message="Bad credentials"), 401
        return jsonify(id=70, number=7, title="hello", url="https://api.github.com/repos/corp/one/issues/7")

    return app


def salesforce(with_: dict[str, Any]) -> Flask:
    """Salesforce's token endpoint for the JWT bearer flow, judged by PyJWT, and a query."""
    import jwt

    app, given = Flask(__name__), Given()

    @app.post("/services/oauth2/token")
    def token() -> Any:
        try:
            assert request.form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
            claims = jwt.decode(
                request.form["assertion"],
                with_["public_key"],
                algorithms=["RS256"],
                audience=["https://login.salesforce.com", "https://test.salesforce.com"],
                issuer=with_["consumer_key"],
                options={"require": ["iss", "sub", "aud", "exp"]},
            )
            assert claims["sub"] == with_["username"], "user hasn't approved this consumer"
            assert claims["exp"] <= dt.datetime.now(dt.UTC).timestamp() + 180, "more than three minutes ahead"
        except Exception as error:
            say(refused=f"{type(error).__name__}: {error}")
            return jsonify(error="invalid_grant"), 400
        # As it answers: with the address of the org, and without a life.
        return jsonify(
            access_token=given.token(), instance_url=f"https://{request.host}", token_type="Bearer", scope="api"
        )

    @app.get("/services/data/<version>/query/")
    def query(version: str) -> Any:
        if not given.shown():
            return jsonify([{"errorCode": "INVALID_SESSION_ID", "message": f"no session of {version}"}]), 401
        return jsonify(totalSize=1, done=True, records=[{"Name": "hello"}])

    return app


def oauth(with_: dict[str, Any]) -> Flask:
    """An authorization server of Authlib, and an API behind it."""
    from authlib.integrations.flask_oauth2 import AuthorizationServer
    from authlib.oauth2.rfc6749 import ClientCredentialsGrant, ClientMixin, RefreshTokenGrant
    from authlib.oauth2.rfc7523 import JWTBearerClientAssertion, JWTBearerGrant
    from joserfc.jwk import import_key

    app, given = Flask(__name__), Given()
    url, used = "https://login.test/token", set[str]()
    refresh = {with_["refresh_token"]: "rotating"}

    class Client(ClientMixin):  # type: ignore[misc] # untyped here
        def __init__(self, name: str, secret: str = "", key: str = "", kind: str = "EC", **rules: Any) -> None:
            self.name, self.secret, self.rules = name, secret, rules
            self.key = import_key(key, kind) if key else None

        def get_client_id(self) -> str:
            return self.name

        def check_client_secret(self, secret: str) -> bool:
            return secrets.compare_digest(self.secret, secret)

        def check_endpoint_auth_method(self, method: str, _endpoint: str) -> bool:
            return bool(method == self.rules["auth"])

        def check_grant_type(self, grant: str) -> bool:
            return bool(grant == self.rules["grant"])

        def get_allowed_scope(self, scope: str | None) -> str:
            return " ".join(one for one in (scope or "").split() if one in {"read", "write"})

    clients = {name: Client(name, **of) for name, of in with_["clients"].items()}

    class Assertion(JWTBearerClientAssertion):  # type: ignore[misc] # untyped here
        def get_audiences(self) -> list[str]:
            return [url]

        def validate_jti(self, _claims: Any, jti: str) -> bool:
            fresh = jti not in used
            used.add(jti)
            return fresh

        def resolve_client_public_key(self, client: Client) -> Any:
            return client.key

    class Methods:
        TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic", "client_secret_post", "client_assertion_jwt")

    class Credentials(Methods, ClientCredentialsGrant):  # type: ignore[misc] # untyped here
        pass

    class Bearer(JWTBearerGrant):  # type: ignore[misc] # untyped here
        def get_audiences(self) -> list[str]:
            return [url]

        def resolve_issuer_client(self, issuer: str) -> Client | None:
            return clients.get(issuer)

        def resolve_client_public_key(self, client: Client) -> Any:
            return client.key

        def authenticate_user(self, subject: str) -> str | None:
            return subject if subject == "joe@corp.test" else None

        def has_granted_permission(self, _client: Client, _user: str) -> bool:
            return True

    class Held:
        def __init__(self, text: str) -> None:
            self.text = text

        def check_client(self, client: Client) -> bool:
            return refresh[self.text] == client.name

        def get_scope(self) -> str:
            return "read"

    class Refresh(Methods, RefreshTokenGrant):  # type: ignore[misc] # untyped here
        INCLUDE_NEW_REFRESH_TOKEN = True

        def authenticate_refresh_token(self, text: str) -> Held | None:
            return Held(text) if text in refresh else None

        def authenticate_user(self, _held: Held) -> str:
            return "joe"

        def revoke_old_credential(self, held: Held) -> None:
            del refresh[held.text]

    def save(token: dict[str, Any], asked: Any) -> None:
        given.tokens.add(token["access_token"])
        if "refresh_token" in token:
            refresh[token["refresh_token"]] = asked.client.name
        say(
            given=token["access_token"],
            client=asked.client.name,
            scope=token.get("scope"),
            refresh=token.get("refresh_token"),
        )

    app.config["OAUTH2_REFRESH_TOKEN_GENERATOR"] = True
    server = AuthorizationServer(app, clients.get, save)
    server.register_client_auth_method("client_assertion_jwt", Assertion())
    for grant in (Credentials, Bearer, Refresh):
        server.register_grant(grant)

    @app.post("/token")
    def token() -> Any:
        answer = server.create_token_response()
        if answer.status_code != 200:
            say(refused=answer.get_data(as_text=True))
        return answer

    @app.get("/minted-<algorithm>/x")
    def minted(algorithm: str) -> Any:
        """Takes what was signed for it: judged by PyJWT."""
        import jwt

        try:
            claims = jwt.decode(
                request.headers["Authorization"].removeprefix("Bearer "),
                with_["keys"][algorithm],
                algorithms=[algorithm],
                audience="api",
                issuer="billing",
                options={"require": ["iat", "exp", "iss", "aud", "jti"]},
            )
        except Exception as error:
            say(refused=f"{type(error).__name__}: {error}")
            return "no", 401
        return str(claims["env"]), 200

    @app.get("/<path:rest>")
    def api(rest: str) -> Any:
        return ("hello", 200) if given.shown() else (f"no {rest}", 401)

    return app


def aws(with_: dict[str, Any]) -> Any:
    """moto, which here verifies each signature by botocore and what IAM allows: a role, who may take it, a bucket for it."""
    from moto import settings
    from moto.iam.models import iam_backends
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.s3.models import s3_backends

    account, arn = "123456789012", "arn:aws:iam::123456789012:role/reader"
    iam, s3 = iam_backends[account]["aws"], s3_backends[account]["aws"]

    def allow(action: str, resource: str) -> str:
        one = {"Effect": "Allow", "Action": action, "Resource": resource}
        return json.dumps({"Version": "2012-10-17", "Statement": [one]})

    trust = {
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:aws:iam::{account}:user/billing"},
        "Action": "sts:AssumeRole",
    }
    iam.create_user("eu-west-1", "billing")
    iam.put_user_policy("billing", "take", allow("sts:AssumeRole", arn))
    key = iam.create_access_key("billing")
    iam.create_role("reader", json.dumps({"Version": "2012-10-17", "Statement": [trust]}), "/", None, "", [], "43200")
    iam.put_role_policy("reader", "read", allow("s3:*", "*"))
    s3.create_bucket("reports", "eu-west-1")
    s3.put_object("reports", "may.csv", b"hello")
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
    say(access_key_id=key.access_key_id, secret_access_key=key.secret_access_key)
    inner = DomainDispatcherApplication(create_backend_app)

    def app(environ: dict[str, Any], start: Any) -> Any:
        def started(status: str, headers: Any, *more: Any) -> Any:
            say(host=environ["HTTP_HOST"], method=environ["REQUEST_METHOD"], status=int(status[:3]))
            return start(status, headers, *more)

        return inner(environ, started)

    return app


def main() -> None:
    with_ = json.loads(sys.stdin.readline())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(with_["tls"])
    app = {one.__name__: one for one in (google, github, salesforce, oauth, aws)}[sys.argv[1]](with_)
    server = make_server("127.0.0.1", 0, app, threaded=True, ssl_context=context)
    say(port=server.port)
    server.serve_forever()


if __name__ == "__main__":
    main()
