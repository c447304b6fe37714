"""P6: tokens asked of issuers that verify with code of others, and used by clients that hold none."""

from __future__ import annotations

import datetime as dt
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from policies.preset import built_in
from tests.e2e.test_derived import asked, flights
from tests.harness.canaries import canary
from tests.harness.installed import python_with
from tests.harness.ostiary_process import ENGINES, Ostiary, clean_environment
from tests.harness.pki import Pki
from tests.harness.token_server import new_key
from tests.harness.two_ways import PROGRAMS, ROOT

LOCK = ROOT / "requirements" / "issuers.txt"
ONE_ENGINE = pytest.mark.parametrize("engine", ENGINES[-1:], indirect=True)
AUTH = "https://www.googleapis.com/auth"
HEAD = "workloads: {billing: {proofs: [{any: true}]}}\nroutes:\n"


@pytest.fixture(scope="session")
def python() -> Path:
    """A Python with the locked issuers and clients beside it, made once for a lock file."""
    return python_with("issuers", LOCK, patience_s=600)


class Issuer:
    """One of `programs/python/issuers.py`, and what it has said."""

    def __init__(self, python: Path, kind: str, settings: dict[str, Any]) -> None:
        self.said: list[dict[str, Any]] = []
        self._errors = TemporaryFile()
        self._process = subprocess.Popen(
            [str(python), str(PROGRAMS / "python" / "issuers.py"), kind],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=clean_environment(),
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(settings) + "\n")
        self._process.stdin.flush()
        deadline = time.monotonic() + 60
        while not self.all("port"):
            if self._process.poll() is not None:
                self._errors.seek(0)
                raise AssertionError(f"the {kind} issuer has ended: {self._errors.read()[-1000:].decode()}")
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (self.port,) = self.all("port")

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self.said.append(json.loads(line))

    def all(self, name: str) -> list[Any]:
        return [one[name] for one in self.said if name in one]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(10)
        self._errors.close()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


@contextmanager
def issuing(python: Path, kind: str, pki: Pki, names: tuple[str, ...], **settings: Any) -> Iterator[Issuer]:
    issuer = Issuer(python, kind, {"tls": str(pki.certificate(*names)), **settings})
    try:
        yield issuer
    finally:
        issuer.stop()


def called(python: Path, proxy: Ostiary, name: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A client under `ostiary exec`, which has a proxy of its own."""
    return subprocess.run(
        [
            sys.executable, "-m", "ostiary", "exec", "--config", str(proxy.folder / "ostiary.yaml"), "--",
            str(python), str(PROGRAMS / "python" / "token_callers.py"), name,
        ],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
        env=clean_environment(PYTHONPATH=str(ROOT), AWS_EC2_METADATA_DISABLED="true"),
    )  # fmt: skip


def public(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def certified() -> tuple[str, str]:
    """A key, and a certificate of it, as Google publishes those of its service accounts."""
    key, pem = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "reader")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now).not_valid_after(now + dt.timedelta(days=1)).sign(key, hashes.SHA256())
    )  # fmt: skip
    return pem, made.public_bytes(Encoding.PEM).decode()


def test_what_these_presets_say_is_what_is_driven_here() -> None:
    for name, sdk in (("vertex", "google-genai"), ("salesforce", "simple-salesforce")):
        found = re.search(rf"^{sdk}==(\S+)", LOCK.read_text(), re.MULTILINE)
        assert found is not None
        assert built_in(name).driven == f"{sdk} {found[1]}"


@pytest.mark.slow
@ONE_ENGINE
@pytest.mark.parametrize("name", ["vertex", "salesforce"])
def test_p9_an_sdk_through_a_preset_that_derives(
    ostiary: Callable[..., Ostiary], pki: Pki, python: Path, tmp_path: Path, name: str
) -> None:
    """Nothing but `use:`; the SDK holds nothing, or the preset's placeholder."""
    if name == "vertex":
        kind, use, (pem, certificate) = "google", "preset: vertex, region: us-central1", certified()
        hosts: tuple[str, ...] = ("us-central1-aiplatform.googleapis.com", "oauth2.googleapis.com")
        email = "models@corp.iam.gserviceaccount.com"
        account = {"type": "service_account", "client_email": email, "private_key_id": "k1", "private_key": pem}
        fields = {"key_json": json.dumps(account)}
        known = {"key_id": "k1", "certificate": certificate, "email": email, "scope": f"{AUTH}/cloud-platform"}
    else:
        kind, use, (key, pem) = name, "preset: salesforce, tenant: acme", new_key()
        hosts = ("acme.my.salesforce.com",)
        known = {"consumer_key": "3MVG9example", "username": "integration@acme.example"}
        fields = {**known, "private_key": pem}
        known["public_key"] = public(key)
    with issuing(python, kind, pki, hosts, **known) as issuer:
        proxy = ostiary(
            HEAD + f"  api: {{use: {{{use}}}, allow: billing}}\n",
            start=False,
            upstreams={f"{host}:443": issuer.port for host in hosts},
            secrets={f"secret/egress/{name}": fields},
        )
        done = called(python, proxy, name, tmp_path)
        assert done.returncode == 0, (done.stderr[-2000:], issuer.said)
        assert done.stdout.split()[-1] == "hello"
        assert (len(issuer.all("given")), issuer.all("refused")) == (1, [])
        proxy.canaries += [*issuer.all("given"), *pem.splitlines()[1:-1]]
        assert issuer.all("given")[0] not in done.stdout + done.stderr


@pytest.mark.slow
@ONE_ENGINE
def test_a_google_client_without_a_key(ostiary: Callable[..., Ostiary], pki: Pki, python: Path, tmp_path: Path) -> None:
    """google-cloud-storage holds nothing; google-auth's verifier takes the assertion, and no other key's."""
    pem, pem_of = certified()
    _, other = new_key()
    email = "reader@corp.iam.gserviceaccount.com"
    account = {"type": "service_account", "client_email": email, "private_key_id": "k1", "private_key": pem}
    policy = HEAD
    for number, host in enumerate(("storage.googleapis.com", "other.test")):
        policy += (
            f"  google-{number}:\n    match: {{host: {host}}}\n    allow: billing\n"
            f"    secret: {{path: secret/egress/google-{number}, field: key_json}}\n"
            '    derive: {google_service_account: {key_json: "{secret}", scopes: ["https://www.googleapis.com/auth/devstorage.read_only"]}}\n'
            '    inject: {bearer: "{token}"}\n'
        )
    names = ("oauth2.googleapis.com", "storage.googleapis.com", "other.test")
    with issuing(
        python, "google", pki, names, key_id="k1", certificate=pem_of, email=email, scope=f"{AUTH}/devstorage.read_only"
    ) as google:
        proxy = ostiary(
            policy,
            upstreams={f"{host}:443": google.port for host in names},
            secrets={
                "secret/egress/google-0": {"key_json": json.dumps(account)},
                "secret/egress/google-1": {"key_json": json.dumps(account | {"private_key": other})},
            },
        )
        done = called(python, proxy, "google", tmp_path)
        assert done.returncode == 0, (done.stderr[-2000:], google.all("refused"))
        assert done.stdout.split()[-1] == "may.csv"
        assert len(google.all("given")) == 1
        assert google.all("refused") == []
        # The verifier does verify: the key of somebody else is refused.
        assert asked(proxy, "/storage/v1/b/reports/o", "other.test:443").code == "secret_denied"
        assert len(google.all("refused")) == 1
        proxy.canaries += [*google.all("given"), *pem.splitlines()[1:-1]]
        assert google.all("given")[0] not in done.stdout + done.stderr


@pytest.mark.slow
@ONE_ENGINE
def test_pygithub_as_an_app(ostiary: Callable[..., Ostiary], pki: Pki, python: Path, tmp_path: Path) -> None:
    """PyGithub holds a placeholder; PyJWT judges the JWT of the app."""
    key, pem = new_key()
    policy = HEAD + (
        "  github:\n    use: github\n    allow: billing\n    secret: {path: secret/ci/github, field: private_key}\n"
        '    derive: {github_app: {app_id: "{secret.app_id}", installation_id: "{secret.installation}", private_key: "{secret}", permissions: {contents: read}, repositories: [one]}}\n'
        '    inject: {bearer: "{token}"}\n'
    )
    with issuing(python, "github", pki, ("api.github.com",), public_key=public(key), app_id="12345") as github:
        proxy = ostiary(
            policy,
            upstreams={"api.github.com:443": github.port},
            secrets={"secret/ci/github": {"app_id": "12345", "installation": "4711", "private_key": pem}},
        )
        done = called(python, proxy, "github", tmp_path)
        assert done.returncode == 0, (done.stderr[-2000:], github.all("refused"))
        assert done.stdout.split()[-1] == "hello"
        assert github.all("refused") == []
        assert github.all("asked") == [{"repositories": ["one"], "permissions": {"contents": "read"}}]
        # Another app's id over the same key is no proof.
        proxy.set_secret("secret/ci/github", "app_id", "54321")
        assert asked(proxy, "/repos/corp/one", "api.github.com:443").code == "secret_denied"
        assert "issuer" in github.all("refused")[0].lower()
        proxy.canaries += [*github.all("given"), *pem.splitlines()[1:-1]]
        assert github.all("given")[0] not in done.stdout + done.stderr


@pytest.mark.slow
@ONE_ENGINE
def test_boto3_with_the_keys_of_a_role(ostiary: Callable[..., Ostiary], pki: Pki, python: Path, tmp_path: Path) -> None:
    """moto verifies both signatures: that over AssumeRole, by the keys of the user, and that of S3, by those of the role."""
    policy = HEAD + (
        "  s3:\n    match: {host: reports.s3.eu-west-1.amazonaws.com}\n    allow: billing\n    secret: {path: secret/egress/aws}\n"
        '    derive: {aws_assume_role: {role_arn: "arn:aws:iam::123456789012:role/reader", access_key_id: "{secret.access_key_id}", secret_access_key: "{secret.secret_access_key}", region: eu-west-1, session_name: billing, duration: 15m}}\n'
        '    sign: {aws_sigv4: {access_key_id: "{token.access_key_id}", secret_access_key: "{token.secret_access_key}", session_token: "{token.session_token}", regions: eu-west-1, services: s3}}\n'
    )
    names = ("sts.eu-west-1.amazonaws.com", "reports.s3.eu-west-1.amazonaws.com")
    with issuing(python, "aws", pki, names) as aws:
        keys = {name: aws.all(name)[0] for name in ("access_key_id", "secret_access_key")}
        proxy = ostiary(
            policy, upstreams={f"{host}:443": aws.port for host in names}, secrets={"secret/egress/aws": keys}
        )
        proxy.canaries.append(keys["secret_access_key"])
        done = called(python, proxy, "aws", tmp_path)
        assert done.returncode == 0, (done.stderr[-2000:], aws.said)
        assert done.stdout.split()[-1] == "hello"
        assert [(one["host"].split(".")[0], one["status"]) for one in aws.said if "host" in one] == [
            ("sts", 200),
            ("reports", 200),
        ]
        # moto does verify: with a wrong key of the user there is no role.
        proxy.set_secret("secret/egress/aws", "secret_access_key", canary())
        answer = asked(proxy, "/may.csv", f"{names[1]}:443")
        assert (answer.status, answer.code) == (502, "secret_denied"), answer.body
        assert aws.said[-1]["status"] == 403


@pytest.mark.slow
@ONE_ENGINE
def test_an_authorization_server_of_others(ostiary: Callable[..., Ostiary], pki: Pki, python: Path) -> None:
    """Authlib's: Basic and form, assertions of clients and issuers, refresh tokens that are good once. What is minted here for
    an API is judged by PyJWT, by every algorithm; Authlib takes two of them.
    """
    pairs = {"ES256": new_key("ec"), "EdDSA": new_key("ed25519"), "RS256": new_key(), "PS256": new_key()}
    kinds, keys = {"ES256": "EC", "RS256": "RSA"}, {"HS256": canary("hmac") * 2}
    cc, bearer = "client_credentials", "urn:ietf:params:oauth:grant-type:jwt-bearer"
    secret, refresh = "s:3/cret +%&" + canary(), canary("refresh")
    clients: dict[str, dict[str, str]] = {
        "by:basic": {"secret": secret, "auth": "client_secret_basic", "grant": cc},
        "by-post": {"secret": secret, "auth": "client_secret_post", "grant": cc},
        "rotating": {"secret": secret, "auth": "client_secret_basic", "grant": "refresh_token"},
    }
    routes: dict[str, str] = {
        "basic": f'{cc}: {{CLIENT, client_id: "by:basic", client_secret: "{{secret.shared}}", scopes: [read, write]}}',
        "post": f'{cc}: {{CLIENT, client_id: by-post, client_secret: "{{secret.shared}}", auth: post}}',
        "refresh": 'refresh_token: {CLIENT, client_id: rotating, client_secret: "{secret.shared}", refresh_token: "{secret.refresh}"}',
    }
    fields = {"shared": secret, "refresh": refresh, **keys, **{name: pem for name, (_, pem) in pairs.items()}}
    routes["minted-HS256"] = (
        'jwt: {algorithm: HS256, key: "{secret.HS256}", issuer: billing, audience: api, claims: {env: prod}}'
    )
    for algorithm, (key, _) in pairs.items():
        keys[algorithm] = public(key)
        routes[f"minted-{algorithm}"] = (
            f'jwt: {{algorithm: {algorithm}, key: "{{secret.{algorithm}}}", issuer: billing, audience: api, claims: {{env: prod}}}}'
        )
        if algorithm not in kinds:
            continue
        pem, kind = keys[algorithm], kinds[algorithm]
        clients[f"signs-{algorithm}"] = {"key": pem, "kind": kind, "auth": "client_assertion_jwt", "grant": cc}
        clients[f"bears-{algorithm}"] = {"key": pem, "kind": kind, "auth": "none", "grant": bearer}
        signed = f'CLIENT, algorithm: {algorithm}, key: "{{secret.{algorithm}}}"'
        routes[f"signs-{algorithm}"] = f"{cc}: {{{signed}, client_id: signs-{algorithm}}}"
        routes[f"bears-{algorithm}"] = (
            f'jwt_bearer: {{{signed}, issuer: bears-{algorithm}, subject: "joe@corp.test", scopes: [read]}}'
        )
    # Each of these is refused by the server, and so shows that it looks.
    clients["wrong-key"] = {**clients["signs-ES256"], "key": public(new_key("ec")[0])}
    wrong = {
        "wrong-secret": f'{cc}: {{CLIENT, client_id: "by:basic", client_secret: "{{secret.HS256}}"}}',
        "wrong-way": f'{cc}: {{CLIENT, client_id: by-post, client_secret: "{{secret.shared}}"}}',
        "wrong-key": f'{cc}: {{CLIENT, algorithm: ES256, key: "{{secret.ES256}}", client_id: wrong-key}}',
        "wrong-audience": f'{cc}: {{CLIENT, algorithm: ES256, key: "{{secret.ES256}}", client_id: signs-ES256, assertion_audience: "https://other.test"}}',
        "wrong-subject": 'jwt_bearer: {CLIENT, algorithm: ES256, key: "{secret.ES256}", issuer: bears-ES256, subject: nobody}',
    }
    policy = HEAD + "".join(
        f'  {name}:\n    match: {{host: api.test, paths: "/{name}/**"}}\n    allow: billing\n    secret: {{path: secret/egress/all}}\n'
        f'    derive: {{{grant.replace("CLIENT", "token_url: https://login.test/token")}}}\n    inject: {{bearer: "{{token}}"}}\n'
        for name, grant in {**routes, **wrong}.items()
    )
    names = ("login.test", "api.test")
    with issuing(python, "oauth", pki, names, clients=clients, keys=keys, refresh_token=refresh) as login:
        proxy = ostiary(
            policy, upstreams={f"{host}:443": login.port for host in names}, secrets={"secret/egress/all": fields}
        )
        for name in routes:
            assert asked(proxy, f"/{name}/x").status == 200, (name, login.said)
        assert login.all("refused") == []
        scopes = {one["client"]: one["scope"] for one in login.said if "client" in one}
        assert (scopes["by:basic"], scopes["bears-RS256"]) == ("read write", "read")
        for name in wrong:
            answer = asked(proxy, f"/{name}/x")
            assert (answer.status, answer.code) == (502, "secret_denied"), (name, answer.body)
        assert len(login.all("refused")) == len(wrong)
        # The refresh token is good once: what came in its place was stored, and serves after a restart.
        second = next(one["refresh"] for one in login.said if one.get("refresh"))
        assert second != refresh
        proxy.canaries += [*login.all("given"), second]
        assert proxy.stop() == 0
        proxy.run()
        assert asked(proxy, "/refresh/x").status == 200, login.all("refused")
        proxy.canaries += [*login.all("given"), *filter(None, login.all("refresh"))]
        assert (
            len([one for one in flights(proxy) if one["reason"] == "derive refresh_token" and one["outcome"] == "ok"])
            == 2
        )
