"""Reads `derive:`: one grant, each with its keys, and where it may be asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, cast
from urllib.parse import urlsplit

from policies.derive import (
    CLIENT_CERT,
    GOOGLE_TOKEN,
    JWT_ALGORITHMS,
    MAX_JWT_TTL_S,
    AwsAssumeRole,
    AwsWebIdentity,
    Azure,
    Client,
    ClientAssertion,
    ClientAuth,
    ClientCredentials,
    Derivation,
    Endpoint,
    GithubApp,
    GoogleServiceAccount,
    JwtAlgorithm,
    JwtBearer,
    MintedJwt,
    RefreshToken,
    TokenExchange,
    references_of_derivation,
)
from policies.document import Mapping as MappingNode
from policies.document import Node, Scalar, kind_of
from policies.document import Sequence as SequenceNode
from policies.fields import Fields
from policies.keys import DERIVE, LATER, TABLES
from policies.load_parts import Context, read_host, read_template
from policies.load_tls import read_client_cert
from policies.model import CredentialSpec
from policies.template import FieldRef, Template

KINDS: Final = tuple(DERIVE)
TABLE_OF: Final[Mapping[str, str]] = {kind: "minted_jwt" if kind == "jwt" else kind for kind in KINDS}
"""The table of keys of each grant."""

_ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a URN of RFC 8693 section 3
_REGION: Final = re.compile(r"[a-z]{2,4}(?:-[a-z]+)+-[0-9]{1,2}")
_SESSION: Final = re.compile(r"[A-Za-z0-9_+=,.@-]{2,64}")
_TARGET: Final = re.compile(r"/[!-~]*")
_SCOPE: Final = re.compile(r"[!#-\[\]-~]+")
"""RFC 6749 section 3.3."""
_SET_BY_US: Final = frozenset({"iss", "sub", "aud", "exp", "nbf", "iat", "jti"})


def read_derive(spec: CredentialSpec, keys: Fields, context: Context) -> CredentialSpec | None:
    """The credential with its `derive:`, and with the secrets that this adds or changes; None where a fault was told.

    Args:
        spec: of the secrets that it may name.
        keys: of the route or credential.
        context: where faults go.
    """
    node = keys.node("derive")
    if node is None:
        return None
    faults = context.faults
    what = f"derive of {keys.what}"
    outer = Fields(node, faults, what, known=DERIVE)
    if not isinstance(node, MappingNode):
        return None
    kinds = [kind for kind in KINDS if kind in outer]
    if len(kinds) != 1:
        faults.add(node.place, f"{what} has one grant", f"one of {', '.join(KINDS)}")
        return None
    kind = kinds[0]
    inner = outer.node(kind)
    if inner is None:
        return None
    table = TABLE_OF[kind]
    before = len(faults.found)
    grant = Fields(inner, faults, f"{kind} of {keys.what}", known=TABLES[table], later=LATER.get(table))
    found = _READERS[kind](grant, context) if isinstance(inner, MappingNode) else None
    secrets = dict(spec.secrets)
    if "client_cert" in TABLES[table]:
        certificate, secret = read_client_cert(grant.what, grant, context)
        if certificate is not None and secret is not None:
            secrets[CLIENT_CERT] = secret
            if isinstance(found, ClientCredentials | RefreshToken | TokenExchange):
                found = replace(found, client=replace(found.client, certificate=certificate))
    if found is None or len(faults.found) > before:
        return None
    extended = replace(spec, secrets=secrets, derive=found)
    _judge(found, extended, grant, context)
    if isinstance(found, RefreshToken) and len(faults.found) == before:
        (reference,) = found.refresh_token.references
        secrets[reference.entry] = replace(secrets[reference.entry], rotates=True)
    return extended if len(faults.found) == before else None


def needs_no_secret(keys: Fields) -> bool:
    """Whether `derive:` may stand without `secret:`: a client that proves itself by a certificate may have no other."""
    node = keys.node("derive")
    return isinstance(node, MappingNode) and any(
        isinstance(entry.value, MappingNode) and entry.value.get("client_cert") is not None for entry in node
    )


def endpoint_of(node: Node | None, context: Context) -> tuple[Endpoint, Node] | None:
    """Where the grant under a `derive:` would be asked, whatever else of it is right; with what says so. Its own reader
    tells the faults.
    """
    if not isinstance(node, MappingNode) or len(node.entries) != 1:
        return None
    (entry,) = node
    if entry.key not in DERIVE or not isinstance(entry.value, MappingNode):
        return None
    grant = Fields(entry.value, context.faults, "derive", known=TABLES[TABLE_OF[entry.key]])
    place = next((grant.node(key) for key in ("token_url", "api_url", "host", "region") if key in grant), None)
    found = _ENDPOINTS[entry.key](grant, context)
    return None if found is None else (found, place or node)


def _judge(found: Derivation, spec: CredentialSpec, keys: Fields, context: Context) -> None:
    """What only the secrets beside it can show."""
    faults = context.faults
    for reference in references_of_derivation(found):
        if reference.entry == "token":
            faults.add(keys.place, f"{keys.what} refers to {{token}}, which it makes", "name a secret")
        elif reference.entry not in spec.secrets:
            known = ", ".join(f"{{{entry}}}" for entry in spec.secrets if "." not in entry) or "none"
            faults.add(
                keys.place, f"{keys.what} refers to {{{reference.entry}}}, which is not there", f"it has {known}"
            )
        elif reference.field is None and spec.secrets[reference.entry].field is None:
            faults.add(
                keys.place,
                f"{{{reference.entry}}} of {keys.what} has no field to stand for",
                f"write {{{reference.entry}.NAME}} or give the secret a field",
            )
    if not isinstance(found, RefreshToken):
        return
    reference = found.refresh_token.references[0]
    secret = spec.secrets.get(reference.entry)
    if secret is not None and (secret.version is not None or secret.kv == 1):
        faults.add(
            keys.place_of("refresh_token"),
            "a refresh token is replaced by a new version where it was read",
            "remove version, and use a KV version 2 mount",
        )


# --- parts ---


def _template(keys: Fields, key: str, context: Context, *, secret: bool = False) -> Template | None:
    """A template; key material names one secret and nothing around it."""
    template, scalar = read_template(keys, key, context), keys.scalar(key)
    if template is None or scalar is None:
        return None
    if not scalar.text:
        context.faults.add(scalar.place, f"{key!r} of {keys.what} is empty")
        return None
    if secret and (len(template.parts) != 1 or not isinstance(template.parts[0], FieldRef)):
        context.faults.add(
            scalar.place,
            f"{key!r} of {keys.what} is one secret alone, not {'a literal' if template.literal else 'a text around it'}",
            "store the value and write {secret} or {secret.NAME}",
        )
        return None
    return template


def read_endpoint(keys: Fields, key: str, context: Context) -> Endpoint | None:
    """An https URL; there is no way to send a secret in the clear."""
    scalar = keys.scalar(key)
    if scalar is None:
        return None
    try:
        split = urlsplit(scalar.text)
        port = split.port or 443
    except ValueError:
        split, port = None, 0
    if (
        split is None
        or split.scheme.lower() != "https"
        or not split.hostname
        or "@" in split.netloc
        or "#" in scalar.text
    ):
        context.faults.add(
            scalar.place,
            f"{key!r} of {keys.what} is no https URL without user and fragment",
            "write https://host/path: secrets are sent there",
        )
        return None
    host = read_host(Scalar(split.hostname, scalar.place), context.faults)
    if host is None or host.wildcard:
        return None
    target = (split.path or "/") + (f"?{split.query}" if split.query else "")
    if not _TARGET.fullmatch(target):
        context.faults.add(scalar.place, f"{key!r} of {keys.what} holds what no URL has", "escape it")
        return None
    return Endpoint(host.text, port, target)


def _token_url(keys: Fields, context: Context) -> Endpoint | None:
    return read_endpoint(keys, "token_url", context) if keys.require("token_url") else None


def _google_url(keys: Fields, context: Context) -> Endpoint | None:
    return read_endpoint(keys, "token_url", context) if "token_url" in keys else GOOGLE_TOKEN


def _github_url(keys: Fields, context: Context) -> Endpoint | None:
    if "api_url" not in keys:
        return Endpoint("api.github.com", 443, "")
    found = read_endpoint(keys, "api_url", context)
    return None if found is None else Endpoint(found.host, found.port, found.target.rstrip("/"))


def _azure_url(keys: Fields, context: Context) -> Endpoint | None:
    scalar = keys.scalar("host")
    if scalar is None:
        return Endpoint("login.microsoftonline.com", 443, "/") if "host" not in keys else None
    host = read_host(scalar, context.faults)
    return None if host is None or host.wildcard else Endpoint(host.text, 443, "/")


def _aws_url(keys: Fields, context: Context) -> Endpoint | None:
    region = keys.text("region") if keys.require("region") else None
    if region is None:
        return None
    if not _REGION.fullmatch(region):
        context.faults.add(keys.place_of("region"), f"{region!r} is no AWS region", "write it as in eu-west-1")
        return None
    return Endpoint(f"sts.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}", 443, "/")


def _scopes(keys: Fields, context: Context) -> tuple[str, ...]:
    found: list[str] = []
    for scalar in keys.texts("scopes"):
        if not _SCOPE.fullmatch(scalar.text):
            context.faults.add(scalar.place, f"{scalar.text!r} is no scope", "write several as a list")
        else:
            found.append(scalar.text)
    return tuple(found)


def _algorithm(keys: Fields, default: JwtAlgorithm | None = "RS256") -> JwtAlgorithm:
    return cast("JwtAlgorithm", keys.choice("algorithm", JWT_ALGORITHMS, default) or "RS256")


def _per_workload(keys: Fields) -> bool:
    return keys.choice("per", {"workload"}) is not None


def _client(keys: Fields, context: Context, *, optional: bool) -> Client | None:
    """`client_id`, `client_secret`, `auth` and what an assertion needs. Who reads `client_cert` is `read_derive`."""
    faults = context.faults
    how = keys.choice("auth", {"basic", "post", "private_key_jwt", "mtls"})
    unsaid = (
        "basic"
        if "client_secret" in keys
        else "private_key_jwt"
        if "key" in keys
        else "mtls"
        if "client_cert" in keys
        else "basic"
    )
    named = how or unsaid
    if named != "private_key_jwt":
        for word in ("key", "key_id", "algorithm", "assertion_audience"):
            if word in keys:
                faults.add(keys.place_of(word), f"{word!r} of {keys.what} belongs to auth: private_key_jwt")
    if "client_id" not in keys and "client_secret" not in keys and named in {"basic", "post"} and optional:
        return Client(None, None, "none")
    if not keys.require("client_id"):
        return None
    client_id = _template(keys, "client_id", context)
    if named == "private_key_jwt":
        if "client_secret" in keys:
            faults.add(keys.place_of("client_secret"), f"'client_secret' of {keys.what} is not sent beside a key")
        if not keys.require("key"):
            return None
        key = _template(keys, "key", context, secret=True)
        if client_id is None or key is None:
            return None
        key_id = _template(keys, "key_id", context)
        assertion = ClientAssertion(key, _algorithm(keys), key_id, keys.text("assertion_audience"))
        return Client(client_id, None, "private_key_jwt", assertion)
    if named == "mtls":
        if "client_secret" in keys:
            faults.add(
                keys.place_of("client_secret"), f"'client_secret' of {keys.what} is not sent beside a certificate"
            )
        return Client(client_id, None, "mtls") if keys.require("client_cert") and client_id is not None else None
    if "client_secret" not in keys and optional:
        # A public client (RFC 6749 section 2.1) names itself, and proves nothing.
        return None if client_id is None else Client(client_id, None, "none")
    if not keys.require("client_secret"):
        return None
    secret = _template(keys, "client_secret", context, secret=True)
    if client_id is None or secret is None:
        return None
    return Client(client_id, secret, cast("ClientAuth", named))


# --- grants ---


def _client_credentials(keys: Fields, context: Context) -> Derivation | None:
    endpoint = _token_url(keys, context)
    if endpoint is None:
        return None
    client = _client(keys, context, optional=False)
    if client is None:
        return None
    return ClientCredentials(endpoint, client, _scopes(keys, context), keys.text("audience"), _per_workload(keys))


def _refresh_token(keys: Fields, context: Context) -> Derivation | None:
    endpoint = _token_url(keys, context)
    if endpoint is None or not keys.require("refresh_token"):
        return None
    client = _client(keys, context, optional=True)
    token = _template(keys, "refresh_token", context, secret=True)
    if client is None or token is None:
        return None
    return RefreshToken(endpoint, client, token, _scopes(keys, context))


def _jwt_bearer(keys: Fields, context: Context) -> Derivation | None:
    endpoint = _token_url(keys, context)
    if endpoint is None or not keys.require("issuer", "key"):
        return None
    issuer, key = _template(keys, "issuer", context), _template(keys, "key", context, secret=True)
    if issuer is None or key is None:
        return None
    return JwtBearer(
        endpoint,
        issuer,
        key,
        _algorithm(keys),
        _template(keys, "subject", context),
        keys.text("audience"),
        _template(keys, "key_id", context),
        _scopes(keys, context),
    )


def _token_exchange(keys: Fields, context: Context) -> Derivation | None:
    endpoint = _token_url(keys, context)
    if endpoint is None or not keys.require("subject_token"):
        return None
    client = _client(keys, context, optional=True)
    subject = _template(keys, "subject_token", context, secret=True)
    actor = _template(keys, "actor_token", context, secret=True)
    if client is None or subject is None:
        return None
    actor_type = keys.text("actor_token_type", _ACCESS_TOKEN if actor is not None else None)
    if actor is None and actor_type is not None:
        context.faults.add(keys.place_of("actor_token_type"), "'actor_token_type' without an actor_token")
    return TokenExchange(
        endpoint,
        client,
        subject,
        keys.text("subject_token_type", _ACCESS_TOKEN) or _ACCESS_TOKEN,
        actor,
        actor_type,
        keys.text("requested_token_type"),
        keys.text("audience"),
        keys.text("resource"),
        _scopes(keys, context),
        _per_workload(keys),
    )


def _google(keys: Fields, context: Context) -> Derivation | None:
    endpoint = _google_url(keys, context)
    if endpoint is None or not keys.require("key_json"):
        return None
    if ("scopes" in keys) == ("audience" in keys):
        context.faults.add(
            keys.place,
            f"{keys.what} needs scopes or an audience, not both",
            "scopes: an access token; audience: an ID token",
        )
    if "audience" in keys and "subject" in keys:
        context.faults.add(keys.place_of("subject"), f"'subject' of {keys.what} goes with scopes alone")
    key = _template(keys, "key_json", context, secret=True)
    if key is None:
        return None
    return GoogleServiceAccount(
        endpoint, key, _scopes(keys, context), keys.text("audience"), _template(keys, "subject", context)
    )


def _github_app(keys: Fields, context: Context) -> Derivation | None:
    endpoint = _github_url(keys, context)
    if endpoint is None or not keys.require("app_id", "installation_id", "private_key"):
        return None
    app, installation = _template(keys, "app_id", context), _template(keys, "installation_id", context)
    key = _template(keys, "private_key", context, secret=True)
    permissions = _texts_of(keys, "permissions", context)
    for name, level in permissions:
        if level not in {"read", "write", "admin"}:
            context.faults.add(keys.place_of("permissions"), f"permission {name!r} is read, write or admin")
    repositories = tuple(scalar.text for scalar in keys.texts("repositories"))
    for scalar in keys.texts("repositories"):
        if "/" in scalar.text:
            context.faults.add(
                scalar.place, f"{scalar.text!r} names an owner", "write the name of the repository alone"
            )
    if app is None or installation is None or key is None:
        return None
    return GithubApp(endpoint, app, installation, key, permissions, repositories)


def _texts_of(keys: Fields, key: str, context: Context) -> tuple[tuple[str, str], ...]:
    node = keys.node(key)
    if node is None:
        return ()
    if not isinstance(node, MappingNode):
        context.faults.add(node.place, f"{key} of {keys.what} must be a mapping, not {kind_of(node)}")
        return ()
    inner = Fields(node, context.faults, f"{key} of {keys.what}", known={entry.key for entry in node})
    return tuple((entry.key, text) for entry in node if (text := inner.text(entry.key)) is not None)


def _jwt(keys: Fields, context: Context) -> Derivation | None:
    if not keys.require("algorithm", "key"):
        return None
    key = _template(keys, "key", context, secret=True)
    ttl_s = keys.duration("ttl", 300.0)
    if ttl_s is not None and not 1 <= ttl_s <= MAX_JWT_TTL_S:
        context.faults.add(
            keys.place_of("ttl"), f"'ttl' of {keys.what} is not between 1s and 1h", "a token that leaks lives that long"
        )
    claims = _claims(keys, context)
    if key is None:
        return None
    return MintedJwt(
        _algorithm(keys, None),
        key,
        _template(keys, "issuer", context),
        _template(keys, "subject", context),
        tuple(scalar.text for scalar in keys.texts("audience")),
        ttl_s or 300.0,
        claims,
        _template(keys, "key_id", context),
    )


def _claims(keys: Fields, context: Context) -> tuple[tuple[str, Template | tuple[str, ...]], ...]:
    node = keys.node("claims")
    if node is None:
        return ()
    if not isinstance(node, MappingNode):
        context.faults.add(node.place, f"claims of {keys.what} must be a mapping, not {kind_of(node)}")
        return ()
    inner = Fields(node, context.faults, f"claims of {keys.what}", known={entry.key for entry in node})
    found: list[tuple[str, Template | tuple[str, ...]]] = []
    for entry in node:
        if entry.key in _SET_BY_US:
            context.faults.add(
                entry.key_place,
                f"claim {entry.key!r} of {keys.what} is not written here",
                "issuer, subject, audience and ttl say it",
            )
        elif isinstance(entry.value, SequenceNode):
            found.append((entry.key, tuple(scalar.text for scalar in inner.texts(entry.key))))
        elif (template := read_template(inner, entry.key, context)) is not None:
            found.append((entry.key, template))
    return tuple(found)


def _session_name(keys: Fields, context: Context) -> str:
    name = keys.text("session_name", "ostiary") or "ostiary"
    if not _SESSION.fullmatch(name):
        context.faults.add(
            keys.place_of("session_name"), f"{name!r} is no session name", "2 to 64 of A-Z a-z 0-9 _+=,.@-"
        )
    return name


def _duration(keys: Fields, context: Context) -> float:
    found_s = keys.duration("duration", 3600.0) or 0.0
    if not 900 <= found_s <= 43200 or found_s % 1:
        context.faults.add(keys.place_of("duration"), f"'duration' of {keys.what} is not between 15m and 12h")
    return found_s


def _aws_assume_role(keys: Fields, context: Context) -> Derivation | None:
    endpoint = _aws_url(keys, context)
    if endpoint is None or not keys.require("role_arn", "access_key_id", "secret_access_key"):
        return None
    role, access = _template(keys, "role_arn", context), _template(keys, "access_key_id", context)
    secret = _template(keys, "secret_access_key", context, secret=True)
    if role is None or access is None or secret is None:
        return None
    return AwsAssumeRole(
        endpoint,
        role,
        access,
        secret,
        keys.text("region") or "",
        _session_name(keys, context),
        _template(keys, "session_token", context, secret=True),
        _template(keys, "external_id", context),
        _duration(keys, context),
    )


def _aws_web_identity(keys: Fields, context: Context) -> Derivation | None:
    endpoint = _aws_url(keys, context)
    if endpoint is None or not keys.require("role_arn", "token"):
        return None
    role, token = _template(keys, "role_arn", context), _template(keys, "token", context, secret=True)
    if role is None or token is None:
        return None
    return AwsWebIdentity(
        endpoint, role, token, keys.text("region") or "", _session_name(keys, context), _duration(keys, context)
    )


def _azure(keys: Fields, context: Context) -> Derivation | None:
    endpoint = _azure_url(keys, context)
    if endpoint is None or not keys.require("tenant", "client_id", "scope"):
        return None
    tenant, client = _template(keys, "tenant", context), _template(keys, "client_id", context)
    if ("client_secret" in keys) == ("certificate" in keys):
        context.faults.add(keys.place, f"{keys.what} needs a client_secret or a certificate, not both")
    secret = _template(keys, "client_secret", context, secret=True)
    certificate = _template(keys, "certificate", context, secret=True)
    scope = keys.text("scope")
    if tenant is None or client is None or scope is None:
        return None
    return Azure(endpoint, tenant, client, scope, secret, certificate)


_READERS: Final[Mapping[str, Callable[[Fields, Context], Derivation | None]]] = {
    "client_credentials": _client_credentials,
    "refresh_token": _refresh_token,
    "jwt_bearer": _jwt_bearer,
    "token_exchange": _token_exchange,
    "google_service_account": _google,
    "github_app": _github_app,
    "jwt": _jwt,
    "aws_assume_role": _aws_assume_role,
    "aws_web_identity": _aws_web_identity,
    "azure": _azure,
}
_ENDPOINTS: Final[Mapping[str, Callable[[Fields, Context], Endpoint | None]]] = {
    "client_credentials": _token_url,
    "refresh_token": _token_url,
    "jwt_bearer": _token_url,
    "token_exchange": _token_url,
    "google_service_account": _google_url,
    "github_app": _github_url,
    "jwt": lambda _keys, _context: None,
    "aws_assume_role": _aws_url,
    "aws_web_identity": _aws_url,
    "azure": _azure_url,
}
