"""One sentence for each key, shown by editors where the key is hovered or offered. tests/policies/test_schema.py holds it
against the table of keys: a key without a sentence is a failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_WORKLOADS: Final = "One or more workloads, by name."
_GROUPS: Final = "One or more groups, by name."
_METHODS: Final = "Upper-case methods. Left out: all but TRACE, TRACK and CONNECT."
_PATHS: Final = "Path patterns: * inside one segment, ** for any number of segments. Left out: all."
_VALUE: Final = "A template: literal text with {secret}, {secret.NAME} or {NAME} of secrets."
_ONE: Final = "Where one secret lives; {secret} stands for its field."
_MANY: Final = "Several secrets, each with a name that templates use: {NAME} or {NAME.FIELD}."

_DERIVE: Final = "A grant that makes a token of the secrets; {token} stands for it."
_ROLE: Final = "The role, as an ARN."
_TOKEN_URL: Final = "The token endpoint: https, and no secret."  # noqa: S105 - a sentence
_SCOPES: Final = "The scopes that are asked for."
_AUDIENCE: Final = "The audience that is asked for."
_JWT_KEY: Final = "The signing key: one secret. PEM (PKCS #8 or #1), for HS256 its bytes."
_KEY_ID: Final = "The kid of the JWT header."
_JWT_ALGORITHM: Final = "How the JWT is signed."
_PER: Final = "workload: a token for each workload. Left out: one token for all."

_KEY: Final = "The key: one secret or one of its fields, such as {secret.signing_key}."
_TRANSIT: Final = "In the place of key: a key that stays in Vault's Transit engine, which signs."
_KEYS: Final = (
    "Keys that are taken, the present one first: each one secret or one of its fields, such as {keys.current}."
)
_MAX_SKEW: Final = "How far the timestamp may be from our clock, either way (300s). At most 1h."
_KEY_ENCODING: Final = "How an HMAC key is stored: utf8 (as it is), hex or base64."

_CLIENT: Final[Mapping[str, str]] = {
    "token_url": _TOKEN_URL,
    "client_id": "The client id.",
    "client_secret": "The client secret: one secret.",
    "auth": "How the client proves itself: basic (default), post, private_key_jwt or mtls.",
    "key": _JWT_KEY,
    "key_id": _KEY_ID,
    "algorithm": _JWT_ALGORITHM,
    "assertion_audience": "The aud of the client's assertion. Left out: the token endpoint.",
    "client_cert": "The certificate that is shown to the token endpoint: with auth: mtls it is the client's proof.",
    "scopes": _SCOPES,
}
_STS: Final[Mapping[str, str]] = {
    "role_arn": _ROLE,
    "region": "The region whose STS is asked.",
    "session_name": "The name of the session, as CloudTrail shows it (ostiary).",
    "duration": "How long the keys live (1h), between 15m and 12h.",
}

DESCRIPTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "file": {
        "version": "Of the language: 1. May be left out.",
        "default": "What becomes of a CONNECT to an authority that no route names: deny refuses it, tunnel and observe pass it on unopened.",
        "workloads": "Who calls: each workload with the proofs by which it is known.",
        "groups": "Names for several workloads.",
        "credentials": "Secrets that several routes share, by name.",
        "routes": "Who may call what, and with which secret.",
        "presets": "Own presets, by name; routes name them under use.",
        "tests": "Examples that the policy carries; ostiary policy test runs them.",
    },
    "workload": {
        "proofs": "How the workload is known; any one suffices.",
        "labels": "Free text about the workload, by name.",
    },
    "proof": {
        "key_hash": "The hash of a caller key, as ostiary key mint prints it.",
        "peer": "The process at the other end of a Unix socket.",
        "any": "Whoever reaches a listener that names this workload.",
    },
    "peer": {"uid": "The user id of the process."},
    "credential": {"secret": _ONE, "secrets": _MANY, "derive": _DERIVE},
    "secret": {
        "path": "Mount first (secret/egress/stripe), or below mount. ${name} is put in from vars of the settings.",
        "field": "The field that {secret} stands for.",
        "engine": "kv (the default), or an engine that lends: path is then what is read to make a credential, such as database/creds/ROLE.",
        "mount": "The mount, where it is not the first segment of path.",
        "namespace": "A Vault namespace.",
        "kv": "The version of the key-value engine, 1 or 2. Left out: detected.",
        "version": "A pinned version of the secret. Left out: the newest.",
        "ttl": "How long a value serves from memory (15s). At most a day.",
        "max_stale": "How long beyond ttl a value serves while the store is unreachable (10m). At most a day.",
        "watch": "How often the version, without the value, is asked for inside ttl. Left out: never.",
        "public": "The field is no secret, such as an account id.",
    },
    "route": {
        "use": "Presets that bring what the route does not write: a name, or {preset: NAME, tenant: …}.",
        "match": "Which requests the route is for.",
        "allow": "Workloads, groups or grants; the first that holds counts.",
        "deny": "What is refused although allow names it; wins over allow.",
        "secret": _ONE,
        "derive": _DERIVE,
        "secrets": _MANY,
        "credential": "The name of an entry of credentials.",
        "inject": "Where the credential is put, one kind an item.",
        "sign": "Signers, applied last, over the bytes that leave; one kind an item.",
        "verify": "What must be signed by the caller; one kind. Nothing is opened or sent before it is.",
        "caller_credentials": "What becomes of credentials the caller sent: replace strips them, reject answers 400, keep is for routes without inject.",
        "mode": "observe: limits and content checks only report. A grant is needed either way.",
        "http2": "Where HTTP/2 is offered to the upstream: auto for callers that speak it, prefer for all callers, never for none.",
        "allow_cleartext": "Lets the credential go over plain http, to addresses that are not public.",
        "egress": "Private networks and fixed dial targets of this route.",
        "tls": "How the upstream's certificate is verified.",
        "timeouts": "Deadlines of this route; they win over limits of the settings.",
        "listener": "Reverse listeners of the settings that serve this route too, for clients that cannot use a proxy.",
        "upstream": "Where its listener leads: https://host or http://host:port. Left out: the one host of match.",
        "reply": "What is done to answers before they reach the caller.",
    },
    "preset": {
        "docs": "The provider's page that tells how the API is called.",
        "driven": "The SDK, with its version, that a test drives through this preset.",
        "checked": "When that page was last looked at, as a date, or untested.",
        "parameters": "Parameters that a route must give, each with a sentence; {tenant} stands for tenant.",
        "placeholder": "Variables that the SDK reads, with values that satisfy its format check.",
        "sdk": "How each SDK is pointed at a reverse listener.",
        "example": "A documented request and where the credential stands in it.",
        "match": "Which requests the API takes; needs a host.",
        "deny": "What mints or shows credentials; a route can add to it and take nothing away.",
        "secret": "Where the secret lives, unless the route says. Left out: secret/egress/NAME, field api_key.",
        "secrets": _MANY,
        "derive": _DERIVE,
        "inject": "Where the credential is put, one kind an item.",
        "sign": "Signers, applied last, over the bytes that leave; one kind an item.",
        "caller_credentials": "What becomes of credentials the caller sent: replace or reject.",
        "http2": "Where HTTP/2 is offered to the upstream.",
        "timeouts": "Deadlines that the API needs.",
        "reply": "What is done to answers before they reach the caller.",
    },
    "example": {
        "method": "The method of the request.",
        "url": "The URL of the request, parameters put in.",
        "put": "Places (header NAME, query NAME, path) and what stands there.",
        "fields": "Values of the secret's fields in the example.",
    },
    "match": {
        "host": 'Exact host names, or "*.example.com" for one label.',
        "port": "443 unless it stands here.",
        "methods": _METHODS,
        "paths": _PATHS,
    },
    "grant": {
        "workload": _WORKLOADS,
        "group": _GROUPS,
        "credential": "The credential for these callers; goes before the route's own.",
        "methods": _METHODS,
        "paths": _PATHS,
        "reason": "Why: a ticket, a decision. For whoever reads the policy.",
    },
    "deny": {
        "workload": _WORKLOADS + " Neither workload nor group: everybody.",
        "group": _GROUPS,
        "methods": _METHODS,
        "paths": _PATHS,
    },
    "inject": {
        "header": "A header field, replacing all of that name; needs value.",
        "bearer": "Authorization: Bearer with this template.",
        "basic": "Authorization: Basic with user name and password.",
        "query": "A query parameter, replacing all of that name; needs value.",
        "path": "A pattern of the path that value writes anew: what ** matches is kept, what a * matches is replaced; needs value.",
        "json": "A member of the JSON body, as a JSON pointer such as /auth/key; needs value. The body is held until it is whole.",
        "form": "A field of the form in the body, replacing all of that name; needs value. The body is held until it is whole.",
        "cookie": "One cookie, the others stay; needs value.",
        "swap": "A placeholder that the caller sends and that is replaced; needs in and value.",
        "value": _VALUE,
        "in": "Where the placeholder may stand: header:NAME, query:NAME or json:/POINTER.",
    },
    "basic": {"username": _VALUE, "password": _VALUE},
    "sign": {
        "hmac": "An HMAC over chosen lines or over a template, sent in a header or in the query.",
        "aws_sigv4": "AWS Signature Version 4; what an SDK signed with placeholder keys is signed anew.",
        "http_message": "An HTTP message signature (RFC 9421) with content digests (RFC 9530).",
        "edgegrid": "Akamai EdgeGrid (EG1-HMAC-SHA256).",
        "acs3": "Alibaba Cloud, signature version 3 (ACS3-HMAC-SHA256).",
        "tc3": "Tencent Cloud, signature version 3 (TC3-HMAC-SHA256).",
        "dpop": "A DPoP proof (RFC 9449) beside a token that is bound to a key.",
    },
    "hmac": {
        "key": _KEY,
        "transit": _TRANSIT,
        "key_encoding": _KEY_ENCODING,
        "algorithm": "The hash inside the HMAC: sha256 unless it stands here.",
        "encoding": "How the signature is written: hex unless it stands here.",
        "prefix": "Text in front of the signature: sha256= unless it stands here; none with a template.",
        "timestamp": "How the timestamp is written: seconds unless it stands here.",
        "headers": "Header fields that are signed, in this order.",
        "host": "Signs a line host:VALUE (false).",
        "nonce": "Sends and signs a random value (false).",
        "names": "What signature, timestamp and nonce are called: a header, or query:NAME.",
        "template": "The signed text, with {method} {target} {path} {query} {host} {timestamp} {nonce} {body} {body_sha256} {header.NAME}.",
    },
    "transit": {
        "key": "The name of the key.",
        "mount": "The mount of the Transit engine: transit unless it stands here.",
        "namespace": "The namespace of the mount, where it is not that of the login.",
        "version": "A pinned version of the key. Left out: the newest signs.",
    },
    "names": {
        "signature": "X-Signature unless it stands here.",
        "timestamp": "X-Timestamp unless it stands here.",
        "nonce": "X-Nonce unless it stands here.",
    },
    "aws_sigv4": {
        "access_key_id": "The id of the key, from the same secret as the key.",
        "secret_access_key": "The key: a field of a secret.",
        "session_token": "The token of temporary keys, from the same secret. Left out: long-lived keys.",
        "regions": "Regions that callers may sign for; the one region of a caller that signs nothing.",
        "services": "Services that callers may sign for, as their scope names them: s3, sqs, sts.",
        "payload": "Whether bodies are signed: auto does what the SDKs of the service do.",
        "asymmetric": "Signature Version 4A, good for a set of regions, which may then be patterns or * (false).",
    },
    "edgegrid": {
        "client_token": "The client token, from the same secret.",
        "client_secret": "The client secret: the key.",
        "access_token": "The access token, from the same secret.",
        "headers": "Header fields that this API wants signed, in its order. Left out: none.",
        "max_body": "How much of a POST body the signature covers: 128KiB unless this API says otherwise.",
    },
    "acs3": {
        "access_key_id": "The id of the key, from the same secret as the key.",
        "access_key_secret": "The key: a field of a secret.",
        "security_token": "The token of temporary keys, from the same secret. Left out: long-lived keys.",
    },
    "tc3": {
        "secret_id": "The id of the key, from the same secret as the key.",
        "secret_key": "The key: a field of a secret.",
        "token": "The token of temporary keys, from the same secret. Left out: long-lived keys.",
        "services": "Services that callers may sign for, as their scope names them: cvm; the one of a caller that signs nothing.",
    },
    "dpop": {
        "key": "The private key to which the token is bound, PEM (PKCS #8).",
        "algorithm": "ES256 (P-256) unless it stands here, or EdDSA (Ed25519).",
    },
    "http_message": {
        "key_id": "The keyid parameter: literal text, or a field of the secret.",
        "algorithm": "The signature algorithm.",
        "key": _KEY,
        "transit": _TRANSIT,
        "key_encoding": _KEY_ENCODING,
        "components": "What is signed, in this order: @method, @target-uri, header fields, content-digest.",
        "label": "The label of the signature: sig1 unless it stands here.",
        "expires": "How long the signature is good for; at most 1h. Left out: it does not say.",
        "nonce": "Adds a random nonce parameter (false).",
        "tag": "The tag parameter: which application the signature is for.",
    },
    "verify": {
        "hmac": "An HMAC over chosen lines or over a template, in a header or in the query.",
        "http_message": "An HTTP message signature (RFC 9421); a body is covered by its content digest (RFC 9530).",
        "stripe": "Webhooks of Stripe (Stripe-Signature).",
        "github": "Webhooks of GitHub (X-Hub-Signature-256).",
        "slack": "Requests of Slack (X-Slack-Signature).",
        "twilio": "Webhooks of Twilio (X-Twilio-Signature).",
        "standard_webhooks": "Standard Webhooks (webhook-signature), v1 and v1a.",
        "sns": "Messages of Amazon SNS, whose signature stands in the body.",
    },
    "verify_hmac": {
        "keys": _KEYS,
        "transit": "A key that stays in Vault, in the place of keys: Vault computes what the signature must be.",
        "max_skew": _MAX_SKEW,
        "key_encoding": _KEY_ENCODING,
        "algorithm": "The hash inside the HMAC: sha256 unless it stands here.",
        "encoding": "How the signature is written: hex unless it stands here.",
        "prefix": "Text in front of the signature: sha256= unless it stands here; none with a template.",
        "timestamp": "How the timestamp is written: seconds unless it stands here.",
        "headers": "Header fields that are signed, in this order.",
        "host": "A line host:VALUE is signed (false).",
        "nonce": "A nonce must be there and be new (true).",
        "names": "What signature, timestamp and nonce are called: a header, or query:NAME.",
        "template": "The signed text, with {method} {target} {path} {query} {host} {timestamp} {nonce} {body} {body_sha256} {header.NAME}.",
    },
    "verify_message": {
        "keys": 'Keys that are taken, by key id: {billing-2026: "{keys.current}"}. Public keys are PEM.',
        "max_skew": _MAX_SKEW,
        "algorithm": "The one algorithm that is taken.",
        "key_encoding": _KEY_ENCODING,
        "components": "What a signature must cover: @method and a target at least. It may cover more.",
        "label": "The label of the signature. Left out: there must be one signature alone.",
        "nonce": "A nonce must be there (true). One that is there must be new either way.",
        "tag": "The tag parameter that it must have. Left out: any.",
    },
    "webhook": {"keys": _KEYS, "max_skew": _MAX_SKEW},
    "webhook_untimed": {"keys": _KEYS},
    "twilio": {
        "keys": _KEYS,
        "origin": "The origin in the URL that Twilio was given, https://hooks.example.com, where it is not that of the listener.",
    },
    "sns": {
        "topics": "ARNs of the topics whose messages are taken: AWS signs for every topic of everybody.",
        "max_skew": "How old a message may be (65m): SNS sends it again for up to an hour. At most 24h.",
    },
    "derive": {
        "client_credentials": "OAuth 2.0 client credentials (RFC 6749 section 4.4).",
        "refresh_token": "OAuth 2.0 refresh token; a new one goes back to where it was read.",
        "jwt_bearer": "A signed assertion for an access token (RFC 7523).",
        "token_exchange": "One token for another (RFC 8693).",
        "google_service_account": "A Google service account: access token or ID token.",
        "github_app": "An installation token of a GitHub App.",
        "jwt": "A JWT that is signed here; no endpoint is asked.",
        "aws_assume_role": "Short-lived AWS keys of a role, for a pair of AWS keys.",
        "aws_web_identity": "Short-lived AWS keys of a role, for an OIDC token.",
        "azure": "A token of Microsoft Entra, for a client secret or a certificate.",
    },
    "client_credentials": {**_CLIENT, "audience": _AUDIENCE, "per": _PER},
    "refresh_token": {**_CLIENT, "refresh_token": "The refresh token: one field; a new one is written back there."},
    "jwt_bearer": {
        "token_url": _TOKEN_URL,
        "issuer": "The iss of the assertion.",
        "subject": "The sub of the assertion. Left out: the issuer.",
        "audience": "The aud of the assertion. Left out: the token endpoint.",
        "algorithm": _JWT_ALGORITHM,
        "key": _JWT_KEY,
        "key_id": _KEY_ID,
        "scopes": _SCOPES,
    },
    "token_exchange": {
        **_CLIENT,
        "subject_token": "The token that is exchanged: one secret.",
        "subject_token_type": "Its type. Left out: urn:ietf:params:oauth:token-type:access_token.",
        "actor_token": "The token of who acts: one secret.",
        "actor_token_type": "Its type. Left out: urn:ietf:params:oauth:token-type:access_token.",
        "requested_token_type": "The type of token that is asked for.",
        "audience": _AUDIENCE,
        "resource": "The URI of the service that the token is for.",
        "per": _PER,
    },
    "google_service_account": {
        "key_json": "The key file of the service account, as Google gives it: one secret.",
        "scopes": "Scopes: an access token is made.",
        "audience": "An audience: an ID token is made.",
        "subject": "The user it acts for, by domain-wide delegation.",
        "token_url": "Another token endpoint than oauth2.googleapis.com/token.",
    },
    "github_app": {
        "app_id": "The id of the app, or its client id.",
        "installation_id": "The id of the installation.",
        "private_key": "The private key of the app, PEM: one secret.",
        "permissions": "What the token may do, by permission. Left out: all that the installation may.",
        "repositories": "Names of the repositories that the token reaches. Left out: all of the installation.",
        "api_url": "The API of a GitHub Enterprise server, such as https://github.corp/api/v3.",
    },
    "minted_jwt": {
        "algorithm": _JWT_ALGORITHM,
        "key": _JWT_KEY,
        "issuer": "The claim iss.",
        "subject": "The claim sub.",
        "audience": "The claim aud; several are a list.",
        "ttl": "How long it lives (300s). At most an hour.",
        "claims": "More claims: texts, or lists of texts.",
        "key_id": _KEY_ID,
    },
    "aws_assume_role": {
        **_STS,
        "access_key_id": "The access key id of who takes the role.",
        "secret_access_key": "Its secret access key: one secret.",
        "session_token": "Its session token, where it has one.",
        "external_id": "What the role's trust policy asks for.",
    },
    "aws_web_identity": {**_STS, "token": "The OIDC token: one secret."},
    "azure": {
        "tenant": "The id or domain of the tenant.",
        "client_id": "The id of the application.",
        "client_secret": "A client secret: one secret.",
        "certificate": "PEM with the private key and its certificate: one secret.",
        "scope": "Such as https://vault.azure.net/.default.",
        "host": "Another host than login.microsoftonline.com, such as login.microsoftonline.us.",
    },
    "egress": {
        "allow": "Address blocks inside the network that may be dialled, such as 10.1.0.0/16.",
        "resolve": 'Fixed dial targets: "host:port" to "address:port".',
        "share_connections": "Workloads of such routes use each other's idle connections to this upstream (false).",
    },
    "tls": {
        "ca_file": "Roots for this upstream, a PEM file relative to the policy.",
        "client_cert": "The certificate that is shown to this upstream: read from the store, or issued by Vault (pki).",
        "pin_spki": "Keys of which the upstream's chain must have one: sha256/ and the base64 of the SHA-256 of a SubjectPublicKeyInfo.",
    },
    "client_cert": {
        "path": "Where the certificate lies, mount first, such as secret/egress/stripe-mtls.",
        "cert": "The field with the certificate and its chain, PEM, the certificate itself first.",
        "key": "The field with its private key, PEM, not encrypted.",
        "pki": "In the place of path: a certificate that Vault issues for a key made here.",
        "mount": "The mount, where path does not begin with it.",
        "namespace": "Vault's namespace, where it is not that of the login.",
        "kv": "Version of the KV engine; left out it is detected.",
        "version": "A pinned version; left out, the newest.",
        "ttl": "How long a read is used (15s); 0 reads for each request.",
        "max_stale": "How much longer it may serve while the store cannot be reached (10m).",
        "watch": "How often the version is asked for between reads (never).",
    },
    "pki": {
        "mount": "Of the PKI engine (pki).",
        "role": "Of that engine: what it may sign.",
        "common_name": "Of the certificate.",
        "uri_sans": "URIs in it, such as a SPIFFE ID.",
        "ttl": "The life that is asked for, 1m to 90d; left out, the role says.",
        "namespace": "Vault's namespace, where it is not that of the login.",
    },
    "timeouts": {
        "connect": "Until the upstream is connected.",
        "first_byte": "Until the answer begins.",
        "idle": "Without a byte in either direction.",
        "total": "For the whole exchange.",
    },
    "reply": {
        "scrub": "What becomes of the credential where an answer shows it: scrub fills it with asterisks, block ends the answer, none passes it on.",
    },
    "test": {
        "as": "The workload that asks.",
        "request": "METHOD https://host/path",
        "headers": "Header fields of the request, for swap.",
        "listener": "The reverse listener that the request is sent to; then the URL's host does not count.",
        "expect": "A refusal code, or the route that is chosen.",
    },
    "expect": {
        "route": "The name of the route.",
        "inject": "What is put: header names, and query:NAME for parameters.",
        "rule": "The entry that granted it: allow[0].",
    },
}
