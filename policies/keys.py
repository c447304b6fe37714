"""The one table of keys: what may stand where, and what is of the language but not built yet.

The loader knows a key if it is here, and the editor schema is generated from here, so the two cannot drift apart. Every
value is the JSON Schema of what the key holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from policies.model import KV, LENDING

type Schema = Mapping[str, Any]
type Keys = Mapping[str, Schema]

_TEXT: Final[Schema] = {"type": "string", "minLength": 1}
_SCALAR: Final[Schema] = {"type": ["string", "number", "boolean"]}
"""What the loader takes as text however it looks: an editor types plain scalars."""
_BOOLEAN: Final[Schema] = {"type": "boolean"}


def _one_or_list(item: Schema) -> Schema:
    return {"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _map(item: Schema) -> Schema:
    return {"type": "object", "additionalProperties": item, "minProperties": 1}


_DURATION: Final[Schema] = {"type": ["string", "integer"], "pattern": "^(0|[0-9]{1,9}(ms|s|m|h|d))$"}
_SIZE: Final[Schema] = {"type": "string", "pattern": "^[0-9]{1,9}(B|KiB|MiB|GiB)$"}
_TEMPLATE: Final[Schema] = {
    "type": "string",
    "description": "literal text with {secret}, {secret.NAME}, {NAME} or {token}",
}
_PATHS: Final[Schema] = _one_or_list({"type": "string", "pattern": "^/"})
_METHODS: Final[Schema] = _one_or_list({"type": "string", "pattern": "^[A-Z]+$"})
_NAMES: Final[Schema] = _one_or_list(_TEXT)

FILE: Final[Keys] = {
    "version": {"const": 1},
    "default": {"enum": ["deny", "tunnel", "observe"]},
    "workloads": _map(_ref("workload")),
    "groups": _map(_NAMES),
    "credentials": _map(_ref("credential")),
    "routes": _map(_ref("route")),
    "presets": _map(_ref("preset")),
    "tests": _one_or_list(_ref("test")),
}
WORKLOAD: Final[Keys] = {"proofs": _one_or_list(_ref("proof")), "labels": _map(_SCALAR)}
PROOF: Final[Keys] = {
    "key_hash": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"},
    "peer": _ref("peer"),
    "any": {"const": True},
}
PEER: Final[Keys] = {"uid": {"type": "integer", "minimum": 0}}
CREDENTIAL: Final[Keys] = {"secret": _ref("secret"), "secrets": _map(_ref("secret")), "derive": _ref("derive")}
SECRET: Final[Keys] = {
    "path": _TEXT,
    "field": _TEXT,
    "engine": {"enum": [KV, *LENDING]},
    "mount": _TEXT,
    "namespace": _TEXT,
    "kv": {"enum": [1, 2]},
    "version": {"type": "integer", "minimum": 1},
    "ttl": _DURATION,
    "max_stale": _DURATION,
    "watch": _DURATION,
    "public": _BOOLEAN,
}
ROUTE: Final[Keys] = {
    "use": _one_or_list({"anyOf": [_TEXT, _ref("use")]}),
    "match": _ref("match"),
    "allow": _one_or_list({"anyOf": [_TEXT, _ref("grant")]}),
    "deny": _one_or_list(_ref("deny")),
    "secret": _ref("secret"),
    "secrets": _map(_ref("secret")),
    "credential": _TEXT,
    "derive": _ref("derive"),
    "inject": _one_or_list(_ref("inject")),
    "sign": _one_or_list(_ref("sign")),
    "verify": _ref("verify"),
    "caller_credentials": {"enum": ["replace", "reject", "keep"]},
    "mode": {"enum": ["enforce", "observe"]},
    "http2": {"enum": ["auto", "prefer", "never"]},
    "allow_cleartext": _BOOLEAN,
    "egress": _ref("egress"),
    "tls": _ref("tls"),
    "timeouts": _ref("timeouts"),
    "listener": _NAMES,
    "upstream": {"type": "string", "pattern": "^https?://[^/?#@]+/?$"},
    "reply": _ref("reply"),
}
_ROUTE_OF_PRESET: Final = (
    "match", "deny", "secret", "secrets", "derive", "inject", "sign", "caller_credentials", "http2", "timeouts", "reply",
)  # fmt: skip
PRESET: Final[Keys] = {
    "docs": {"type": "string", "pattern": "^https://"},
    "checked": _TEXT,
    "driven": _TEXT,
    "parameters": _map(_TEXT),
    "placeholder": _map(_TEXT),
    "sdk": _map(_TEXT),
    "example": _ref("example"),
    **{key: ROUTE[key] for key in _ROUTE_OF_PRESET},
}
"""What an API needs of a route. Who may call it, networks and what weakens a rule are the route's alone."""
EXAMPLE: Final[Keys] = {"method": _TEXT, "url": _TEXT, "put": _map({"type": "string"}), "fields": _map(_TEXT)}
MATCH: Final[Keys] = {
    "host": _NAMES,
    "port": {"type": "integer", "minimum": 1, "maximum": 65535},
    "methods": _METHODS,
    "paths": _PATHS,
}
GRANT: Final[Keys] = {
    "workload": _NAMES,
    "group": _NAMES,
    "credential": _TEXT,
    "methods": _METHODS,
    "paths": _PATHS,
    "reason": _TEXT,
}
DENY: Final[Keys] = {"workload": _NAMES, "group": _NAMES, "methods": _METHODS, "paths": _PATHS}
INJECT: Final[Keys] = {
    "header": _TEXT,
    "bearer": _TEMPLATE,
    "basic": _ref("basic"),
    "query": _TEXT,
    "path": {"type": "string", "pattern": "^/"},
    "json": {"type": "string", "pattern": "^/"},
    "form": _TEXT,
    "cookie": _TEXT,
    "swap": _TEXT,
    "value": _TEMPLATE,
    "in": _one_or_list({"type": "string", "pattern": "^(header|query|json):"}),
}
BASIC: Final[Keys] = {"username": _TEMPLATE, "password": _TEMPLATE}
SIGN: Final[Keys] = {
    kind: _ref(kind) for kind in ("hmac", "aws_sigv4", "http_message", "edgegrid", "acs3", "tc3", "dpop")
}
_KEY: Final[Schema] = {"type": "string", "description": "the key: {secret} or {secret.NAME}"}
_KEY_ENCODING: Final[Schema] = {"enum": ["utf8", "hex", "base64"]}
TRANSIT: Final[Keys] = {
    "key": _TEXT,
    "mount": _TEXT,
    "namespace": _TEXT,
    "version": {"type": "integer", "minimum": 1},
}
HMAC: Final[Keys] = {
    "key": _KEY,
    "transit": _ref("transit"),
    "key_encoding": _KEY_ENCODING,
    "algorithm": {"enum": ["sha1", "sha256", "sha384", "sha512"]},
    "encoding": {"enum": ["hex", "base64", "base64url"]},
    "prefix": {"type": "string"},
    "timestamp": {"enum": ["seconds", "milliseconds", "rfc3339"]},
    "headers": _NAMES,
    "host": _BOOLEAN,
    "nonce": _BOOLEAN,
    "names": _ref("names"),
    "template": {"type": "string", "minLength": 1},
}
NAMES_SENT: Final[Keys] = {"signature": _TEXT, "timestamp": _TEXT, "nonce": _TEXT}
AWS_SIGV4: Final[Keys] = {
    "access_key_id": _TEMPLATE,
    "secret_access_key": _KEY,
    "session_token": _KEY,
    "regions": _NAMES,
    "services": _NAMES,
    "payload": {"enum": ["auto", "signed", "unsigned"]},
    "asymmetric": _BOOLEAN,
}
EDGEGRID: Final[Keys] = {
    "client_token": _TEMPLATE,
    "client_secret": _KEY,
    "access_token": _TEMPLATE,
    "headers": _NAMES,
    "max_body": _SIZE,
}
ACS3: Final[Keys] = {"access_key_id": _TEMPLATE, "access_key_secret": _KEY, "security_token": _KEY}
TC3: Final[Keys] = {"secret_id": _TEMPLATE, "secret_key": _KEY, "token": _KEY, "services": _NAMES}
DPOP: Final[Keys] = {"key": _KEY, "algorithm": {"enum": ["ES256", "EdDSA"]}}
HTTP_MESSAGE: Final[Keys] = {
    "key_id": _TEMPLATE,
    "algorithm": {"enum": ["hmac-sha256", "ed25519", "ecdsa-p256-sha256", "rsa-pss-sha512"]},
    "key": _KEY,
    "transit": _ref("transit"),
    "key_encoding": _KEY_ENCODING,
    "components": _NAMES,
    "label": _TEXT,
    "expires": _DURATION,
    "nonce": _BOOLEAN,
    "tag": _TEXT,
}
VERIFY: Final[Keys] = {
    "hmac": _ref("verify_hmac"),
    "http_message": _ref("verify_message"),
    "stripe": _ref("webhook"),
    "github": _ref("webhook_untimed"),
    "slack": _ref("webhook"),
    "twilio": _ref("twilio"),
    "standard_webhooks": _ref("webhook"),
    "sns": _ref("sns"),
}
_KEYS: Final[Schema] = _one_or_list(_KEY)
VERIFY_HMAC: Final[Keys] = {
    "keys": _KEYS,
    "max_skew": _DURATION,
    **{key: schema for key, schema in HMAC.items() if key != "key"},
}
VERIFY_MESSAGE: Final[Keys] = {
    "keys": _map(_KEY),
    "max_skew": _DURATION,
    **{key: HTTP_MESSAGE[key] for key in ("algorithm", "key_encoding", "components", "label", "nonce", "tag")},
}
WEBHOOK: Final[Keys] = {"keys": _KEYS, "max_skew": _DURATION}
WEBHOOK_UNTIMED: Final[Keys] = {"keys": _KEYS}
TWILIO: Final[Keys] = {"keys": _KEYS, "origin": ROUTE["upstream"]}
SNS: Final[Keys] = {"topics": _NAMES, "max_skew": _DURATION}
DERIVE: Final[Keys] = {
    "client_credentials": _ref("client_credentials"),
    "refresh_token": _ref("refresh_token"),
    "jwt_bearer": _ref("jwt_bearer"),
    "token_exchange": _ref("token_exchange"),
    "google_service_account": _ref("google_service_account"),
    "github_app": _ref("github_app"),
    "jwt": _ref("minted_jwt"),
    "aws_assume_role": _ref("aws_assume_role"),
    "aws_web_identity": _ref("aws_web_identity"),
    "azure": _ref("azure"),
}
_URL: Final[Schema] = {"type": "string", "pattern": "^https://[^/?#@]+"}
_JWT_ALGORITHM: Final[Schema] = {"enum": ["HS256", "RS256", "PS256", "ES256", "EdDSA"]}
_CLIENT: Final[Keys] = {
    "token_url": _URL,
    "client_id": _TEMPLATE,
    "client_secret": _KEY,
    "auth": {"enum": ["basic", "post", "private_key_jwt", "mtls"]},
    "key": _KEY,
    "key_id": _TEMPLATE,
    "algorithm": _JWT_ALGORITHM,
    "assertion_audience": _TEXT,
    "client_cert": _ref("client_cert"),
    "scopes": _NAMES,
}
"""What most grants of OAuth 2.0 share."""
_PER: Final[Schema] = {"const": "workload"}
CLIENT_CREDENTIALS: Final[Keys] = {**_CLIENT, "audience": _TEXT, "per": _PER}
REFRESH_TOKEN: Final[Keys] = {**_CLIENT, "refresh_token": _KEY}
JWT_BEARER: Final[Keys] = {
    "token_url": _URL,
    "issuer": _TEMPLATE,
    "subject": _TEMPLATE,
    "audience": _TEXT,
    "algorithm": _JWT_ALGORITHM,
    "key": _KEY,
    "key_id": _TEMPLATE,
    "scopes": _NAMES,
}
TOKEN_EXCHANGE: Final[Keys] = {
    **_CLIENT,
    "subject_token": _KEY,
    "subject_token_type": _TEXT,
    "actor_token": _KEY,
    "actor_token_type": _TEXT,
    "requested_token_type": _TEXT,
    "audience": _TEXT,
    "resource": _TEXT,
    "per": _PER,
}
GOOGLE: Final[Keys] = {"key_json": _KEY, "scopes": _NAMES, "audience": _TEXT, "subject": _TEMPLATE, "token_url": _URL}
GITHUB_APP: Final[Keys] = {
    "app_id": _TEMPLATE,
    "installation_id": _TEMPLATE,
    "private_key": _KEY,
    "permissions": _map({"enum": ["read", "write", "admin"]}),
    "repositories": _NAMES,
    "api_url": _URL,
}
MINTED_JWT: Final[Keys] = {
    "algorithm": _JWT_ALGORITHM,
    "key": _KEY,
    "issuer": _TEMPLATE,
    "subject": _TEMPLATE,
    "audience": _NAMES,
    "ttl": _DURATION,
    "claims": _map(_one_or_list(_SCALAR)),
    "key_id": _TEMPLATE,
}
_STS: Final[Keys] = {"role_arn": _TEMPLATE, "region": _TEXT, "session_name": _TEXT, "duration": _DURATION}
AWS_ASSUME_ROLE: Final[Keys] = {
    **_STS,
    "access_key_id": _TEMPLATE,
    "secret_access_key": _KEY,
    "session_token": _KEY,
    "external_id": _TEMPLATE,
}
AWS_WEB_IDENTITY: Final[Keys] = {**_STS, "token": _KEY}
AZURE: Final[Keys] = {
    "tenant": _TEMPLATE,
    "client_id": _TEMPLATE,
    "client_secret": _KEY,
    "certificate": _KEY,
    "scope": _TEXT,
    "host": _TEXT,
}
EGRESS: Final[Keys] = {"allow": _NAMES, "resolve": _map(_TEXT), "share_connections": _BOOLEAN}
TLS: Final[Keys] = {
    "ca_file": _TEXT,
    "client_cert": _ref("client_cert"),
    "pin_spki": _one_or_list({"type": "string", "pattern": "^sha256/[A-Za-z0-9+/]{43}=$"}),
}
CLIENT_CERT: Final[Keys] = {
    **{key: schema for key, schema in SECRET.items() if key not in {"field", "public", "engine"}},
    "cert": _TEXT,
    "key": _TEXT,
    "pki": _ref("pki"),
}
PKI: Final[Keys] = {
    "mount": _TEXT,
    "role": _TEXT,
    "common_name": _TEXT,
    "uri_sans": _NAMES,
    "ttl": _DURATION,
    "namespace": _TEXT,
}
TIMEOUTS: Final[Keys] = {"connect": _DURATION, "first_byte": _DURATION, "idle": _DURATION, "total": _DURATION}
REPLY: Final[Keys] = {"scrub": {"enum": ["scrub", "block", "none"]}}
TEST: Final[Keys] = {
    "as": _TEXT,
    "request": {"type": "string", "pattern": "^[A-Z]+ https://"},
    "headers": _map(_SCALAR),
    "listener": _TEXT,
    "expect": {"anyOf": [_TEXT, _ref("expect")]},
}
EXPECT: Final[Keys] = {"route": _TEXT, "inject": _NAMES, "rule": _TEXT}

TABLES: Final[Mapping[str, Keys]] = {
    "file": FILE,
    "workload": WORKLOAD,
    "proof": PROOF,
    "peer": PEER,
    "credential": CREDENTIAL,
    "secret": SECRET,
    "route": ROUTE,
    "preset": PRESET,
    "example": EXAMPLE,
    "match": MATCH,
    "grant": GRANT,
    "deny": DENY,
    "inject": INJECT,
    "basic": BASIC,
    "sign": SIGN,
    "hmac": HMAC,
    "transit": TRANSIT,
    "names": NAMES_SENT,
    "aws_sigv4": AWS_SIGV4,
    "http_message": HTTP_MESSAGE,
    "edgegrid": EDGEGRID,
    "acs3": ACS3,
    "tc3": TC3,
    "dpop": DPOP,
    "verify": VERIFY,
    "verify_hmac": VERIFY_HMAC,
    "verify_message": VERIFY_MESSAGE,
    "webhook": WEBHOOK,
    "webhook_untimed": WEBHOOK_UNTIMED,
    "twilio": TWILIO,
    "sns": SNS,
    "derive": DERIVE,
    "client_credentials": CLIENT_CREDENTIALS,
    "refresh_token": REFRESH_TOKEN,
    "jwt_bearer": JWT_BEARER,
    "token_exchange": TOKEN_EXCHANGE,
    "google_service_account": GOOGLE,
    "github_app": GITHUB_APP,
    "minted_jwt": MINTED_JWT,
    "aws_assume_role": AWS_ASSUME_ROLE,
    "aws_web_identity": AWS_WEB_IDENTITY,
    "azure": AZURE,
    "egress": EGRESS,
    "tls": TLS,
    "client_cert": CLIENT_CERT,
    "pki": PKI,
    "timeouts": TIMEOUTS,
    "reply": REPLY,
    "test": TEST,
    "expect": EXPECT,
}

LATER: Final[Mapping[str, Mapping[str, str]]] = {
    "proof": {
        "mtls": "client certificates as proof come later",
        "jwt": "tokens of an issuer come with JWT identity",
        "spiffe": "JWT-SVIDs come with JWT identity",
        "kubernetes": "service-account tokens come with JWT identity",
        "all": "several proofs at once come with JWT identity",
    },
    "route": {
        "model": "model access control comes later",
        "tunnel": "unopened tunnels come later",
        "limits": "limits come later",
        "body": "body checks come later",
        "classification": "classification labels come later",
    },
    "match": {
        "headers": "conditions on headers come later",
        "query": "conditions on the query come later",
        "form": "conditions on form fields come later",
    },
    "grant": {
        "scopes": "scopes come with JWT identity",
        "models": "model access control comes later",
        "when": "conditions come later",
        "not_before": "grants with dates come later",
        "expires_at": "grants with dates come later",
        "approver": "approved grants come later",
    },
    "deny": {
        "when": "conditions come later",
        "scopes": "scopes come with JWT identity",
        "models": "model access control comes later",
    },
    "verify_message": {"transit": "keys that stay in Vault come later here; store the key"},
    "egress": {"source": "a fixed source address comes later", "via": "parent proxies come later"},
    "reply": {
        "project": "projection of answers comes later",
        "filter": "filters on answers come later",
    },
    "test": {
        "claims": "claims come with JWT identity",
        "source": "conditions on the source come later",
        "at": "conditions on time come later",
    },
}
"""Keys of the language that this version does not know what to do with. They are faults, never ignored."""
