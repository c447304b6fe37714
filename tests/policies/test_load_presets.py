"""Presets: each built-in one puts its credential where its example shows it; merging, faults and rights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import jsonschema
import pytest
import yaml

from addons.clock import SystemClock
from addons.credentials import Credential, field_name
from addons.deriving.asking import Ask
from addons.deriving.grants import ask
from addons.exchange import Authority
from addons.head import RequestHead
from addons.injection import applicable, build_with_credential, plan_for
from addons.signing.aws import payload_way, sign_aws
from addons.signing.aws_scope import scope_of
from policies import Denial, FaultError, Grant, Policy, Question, Rights, load_policy, policy_schema
from policies.derive import ClientCredentials, JwtBearer, MintedJwt, references_of_derivation
from policies.faults import Place
from policies.model import CredentialSpec, HostPattern
from policies.preset import Example, Preset, built_in, built_in_names, read_new
from policies.rights import HostRight, SecretRight
from policies.sign import AwsSigV4Signer
from tests.harness.signing import outgoing
from tests.harness.token_server import new_key, verified
from vault.secret import Secret

HEAD = "workloads: {w: {proofs: [{peer: {uid: 1}}]}}\n"
VALUES = {"tenant": "acme", "region": "eu-west-1", "cloud": "aws"}
Load = Callable[..., Policy]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def go(*files: str, rights: dict[int, Rights] | None = None, **variables: str) -> Policy:
        paths = []
        for number, text in enumerate(files):
            path = tmp_path / f"{number}.yaml"
            path.write_text((HEAD if number == 0 else "") + text)
            paths.append(path)
        held = {path: (rights or {}).get(number) for number, path in enumerate(paths)}
        return load_policy(paths, rights=held, variables=variables, base=tmp_path)

    return go


def faults(load: Load, *files: str, rights: dict[int, Rights] | None = None) -> list[str]:
    with pytest.raises(FaultError) as error:
        load(*files, rights=rights)
    return [str(fault) for fault in error.value.faults]


def using(name: str) -> str:
    parameters = "".join(f", {one}: {VALUES[one]}" for one in built_in(name).parameters)
    return f"routes: {{r: {{use: {{preset: {name}{parameters}}}, allow: w}}}}\n"


def example_of(preset: Preset) -> Example:
    assert preset.example is not None
    return preset.example


def needed(spec: CredentialSpec) -> set[tuple[str, str]]:
    """The fields that a grant asks with."""
    assert spec.derive is not None
    return {(one.entry, field_name(spec, one)) for one in references_of_derivation(spec.derive)}


@pytest.mark.parametrize("name", built_in_names())
def test_the_example_of_each_preset_leaves_as_documented(name: str, load: Load) -> None:
    preset = built_in(name)
    assert preset.docs
    route = load(using(name)).routes["r"]
    example = example_of(preset)
    split = urlsplit(example.url)
    policy = load(using(name))
    answer = policy.decide(Question("w", split.hostname or "", 443, example.method, split.path))
    assert isinstance(answer, Grant), answer
    assert route.credential is not None
    assert {entry.path for entry in route.credential.secrets.values()} == {f"secret/egress/{name}"}
    values = {"secret": {field: Secret(value) for field, value in example.fields.items()}}
    if route.credential.derive is not None:
        values["token"] = {one: Secret("example-token") for one in route.credential.derive.names}
        assert {name for _, name in needed(route.credential)} == set(example.fields)
    held = Credential(route.credential, values)
    request = RequestHead(
        example.method,
        split.path.encode(),
        (
            (b"Host", (split.hostname or "").encode()),
            (b"Authorization", b"Bearer callers-own"),
            (b"X-Api-Key", b"mine"),
        ),
        http2=False,
    )
    plan = plan_for(route)
    sent = build_with_credential(plan, applicable(plan, request), request, Authority(split.hostname or "", 443), held)
    fields = {key.decode().lower(): value.decode() for key, value in sent.fields}
    if route.sign:
        (signer,) = route.sign
        assert isinstance(signer, AwsSigV4Signer)
        made = outgoing(example.method, sent.target, [], b"", host=(split.hostname or "").encode())
        unsigned = RequestHead(example.method, split.path.encode(), ((b"Host", b"h"),), http2=False)
        scope = scope_of(signer, unsigned)
        sign_aws(signer, scope, payload_way(signer, scope, unsigned), made, held, 1.0e9, chunk_bytes=65536)
        fields |= {key: made.values(key.encode())[0].decode() for key in ("authorization", "x-amz-date")}
        assert f"Credential={example.fields['access_key_id']}/20010909/eu-west-1/" in fields["authorization"]
    for place, wanted in example.put.items():
        kind, _, where = place.partition(" ")
        found = sent.target.decode() if kind == "path" else fields[where.lower()]
        assert found == wanted or (not wanted and found), place
    assert "callers-own" not in str(fields)
    assert "x-api-key" not in fields or fields["x-api-key"] != "mine"


@pytest.mark.parametrize(
    ("name", "method", "path"),
    [
        ("openai", "POST", "/v1/organization/admin_api_keys"),
        ("openai", "POST", "/v1/realtime/client_secrets"),
        ("anthropic", "GET", "/v1/organizations/api_keys"),
        ("stripe", "POST", "/v1/ephemeral_keys"),
        ("stripe", "POST", "/v1/webhook_endpoints"),
        ("github", "POST", "/app/installations/7/access_tokens"),
        ("github", "POST", "/repos/o/r/actions/runners/registration-token"),
        ("github-git", "GET", "/settings/tokens"),
        ("gitlab", "POST", "/api/v4/projects/7/access_tokens"),
        ("slack", "POST", "/api/oauth.v2.access"),
        ("twilio", "GET", "/2010-04-01/Accounts/AC1.json"),
        ("twilio", "POST", "/2010-04-01/Accounts/AC1/Tokens.json"),
        ("datadog", "GET", "/api/v2/api_keys"),
        ("npm", "GET", "/-/npm/v1/tokens"),
        ("huggingface", "GET", "/api/models/a/b/xet-read-token/main"),
        ("salesforce", "DELETE", "/services/data/v67.0/sobjects/User/005/password"),
        ("salesforce", "POST", "/services/data/v67.0/composite/batch"),
        ("salesforce", "POST", "/services/oauth2/token"),
        ("vertex", "POST", "/v1/projects/p/locations/l/endpoints/7:setIamPolicy"),
        ("vertex", "POST", "/v1/projects/p/locations/l/notebookRuntimes/7:start"),
    ],
)
def test_what_mints_or_shows_credentials_is_denied(name: str, method: str, path: str, load: Load) -> None:
    policy = load(using(name))
    answer = policy.decide(Question("w", policy.routes["r"].hosts[0].text, 443, method, path))
    assert isinstance(answer, Denial)
    assert answer.code == "path_denied"


@pytest.mark.parametrize("name", built_in_names())
def test_every_deny_of_a_preset_holds(name: str, load: Load) -> None:
    policy = load(using(name))
    route = policy.routes["r"]
    for entry in route.deny:
        method = next(iter(entry.methods)) if entry.methods else "POST"
        for pattern in entry.paths or ():
            bare = pattern.text.removesuffix("/**").replace("*", "x")
            for path in (bare, f"{bare}/", f"{bare}/x/y" if pattern.text.endswith("/**") else bare):
                answer = policy.decide(Question("w", route.hosts[0].text, 443, method, path))
                assert isinstance(answer, Denial), path
                assert answer.code == "path_denied"


def test_a_name_and_allow_are_a_route(load: Load) -> None:
    route = load("routes: {r: {use: openai, allow: w}}\n").routes["r"]
    assert route.credential is not None
    secret = route.credential.secrets["secret"]
    assert (secret.path, secret.field) == ("secret/egress/openai", "api_key")
    assert route.presets is not None
    assert route.presets.names == ("openai",)
    assert set(route.presets.keys) == {"match.host", "secret.path", "secret.field", "inject", "deny[0]"}
    assert set(route.presets.keys.values()) == {"openai"}
    assert route.presets.placeholders == {"OPENAI_API_KEY": "sk-ostiary-placeholder"}


def test_what_a_route_writes_wins_and_its_denies_add(load: Load) -> None:
    policy = load(
        "credentials: {shared: {secret: {path: secret/a, field: k}}}\n"
        "routes:\n"
        "  own: {use: openai, match: {methods: POST, paths: /v1/chat/completions}, allow: w, deny: {paths: /v1/a/**},\n"
        '        secret: {path: "secret/${env}/openai"}, inject: {header: X-Key, value: "{secret}"}}\n'
        "  shared: {use: [anthropic], allow: w, credential: shared}\n",
        env="prod",
    )
    own, shared = policy.routes["own"], policy.routes["shared"]
    assert own.credential is not None
    assert own.credential.secrets["secret"].path == "secret/prod/openai"
    assert own.credential.secrets["secret"].field == "api_key"
    assert own.methods == frozenset({"POST"})
    assert [entry.rule for entry in own.deny] == ["deny[0]", "deny[1]"]
    assert own.paths is not None
    assert own.deny[0].paths is not None
    assert [one.text for one in own.deny[0].paths] == ["/v1/a/**"]
    assert len(own.inject) == 1
    assert own.presets is not None
    assert set(own.presets.keys) == {"match.host", "secret.field", "deny[1]"}
    assert shared.credential is not None
    assert shared.credential.name == "shared"


def test_a_path_of_the_route_is_its_own_whatever_mount_a_preset_had(load: Load) -> None:
    secret = (
        load(
            "presets:\n"
            "  mine: {match: {host: a.test}, inject: {bearer: '{secret}'},\n"
            "         secret: {path: a/b, mount: theirs, namespace: theirs, kv: 2, version: 3, field: k, ttl: 1s}}\n"
            "routes: {r: {use: mine, allow: w, secret: {path: secret/mine}}}\n"
        )
        .routes["r"]
        .credential
    )
    assert secret is not None
    spec = secret.secrets["secret"]
    assert (spec.path, spec.mount, spec.namespace, spec.kv, spec.version) == ("secret/mine", None, None, None, None)
    assert (spec.field, spec.ttl_s) == ("k", 1.0)


def test_the_tokens_of_presets_are_asked_for_as_their_providers_want(load: Load) -> None:
    key, pem = new_key()
    account = {"type": "service_account", "client_email": "a@corp.iam.gserviceaccount.com", "private_key": pem}
    fields = {"key_json": json.dumps(account), "private_key": pem}
    asked: dict[str, tuple[str, dict[str, object]]] = {}
    for name, audience in (
        ("vertex", "https://oauth2.googleapis.com/token"),
        ("salesforce", "https://login.salesforce.com"),
    ):
        spec = load(using(name)).routes["r"].credential
        assert spec is not None
        assert spec.derive is not None
        values = {**example_of(built_in(name)).fields, **fields}
        held = Credential(spec, {"secret": {one: Secret(value) for one, value in values.items()}})
        one = ask(spec.derive, held, SystemClock.wall_s())
        assert isinstance(one, Ask)
        form = dict(parse_qsl(one.body.decode()))
        _, claims = verified(form["assertion"], key.public_key(), "RS256")
        assert claims["aud"] == audience
        # Salesforce takes an assertion that ends within three minutes, Google within an hour.
        assert SystemClock.wall_s() < claims["exp"] <= SystemClock.wall_s() + 180
        asked[name] = (f"{one.endpoint.host}{one.target}", claims)
    assert asked["vertex"][0] == "oauth2.googleapis.com/token"
    assert asked["vertex"][1]["scope"] == "https://www.googleapis.com/auth/cloud-platform"
    host, claims = asked["salesforce"]
    assert host == "acme.my.salesforce.com/services/oauth2/token"
    assert (claims["iss"], claims["sub"]) == ("3MVG9example", "integration@acme.example")


def test_a_preset_that_derives_gives_way(load: Load) -> None:
    """To a grant of another kind and to a credential by name; a grant of its own kind changes what it names alone."""
    own = "derive: {client_credentials: {token_url: 'https://acme.my.salesforce.com/services/oauth2/token', client_id: '{secret.id}', client_secret: '{secret}'}}"
    routes = load(
        "credentials: {mine: {secret: {path: secret/a, field: k}, derive: {jwt: {algorithm: HS256, key: '{secret}'}}}}\n"
        "routes:\n"
        f"  other: {{use: {{preset: salesforce, tenant: other}}, allow: w, secret: {{field: client_secret}}, {own}}}\n"
        "  named: {use: {preset: salesforce, tenant: named}, allow: w, credential: mine}\n"
        "  sandbox: {use: {preset: salesforce, tenant: sandbox}, allow: w, derive: {jwt_bearer: {audience: 'https://test.salesforce.com'}}}\n"
    ).routes
    grants = {name: route.credential.derive for name, route in routes.items() if route.credential is not None}
    assert isinstance(grants["other"], ClientCredentials)
    assert isinstance(grants["named"], MintedJwt)
    assert isinstance(grants["sandbox"], JwtBearer)
    assert grants["sandbox"].audience == "https://test.salesforce.com"
    assert grants["sandbox"].endpoint.host == "sandbox.my.salesforce.com"
    # Which says where the token is asked for is the preset's, and what a route may change is its own to answer for.
    assert routes["sandbox"].presets is not None
    assert "inject" in routes["sandbox"].presets.keys


def test_a_preset_that_shows_a_certificate_implies_no_secret(load: Load) -> None:
    spec = (
        load(
            "presets: {mine: {match: {host: a.test}, inject: {bearer: '{token}'}, derive: {client_credentials:\n"
            "  {token_url: 'https://a.test/t', client_id: c, client_cert: {path: secret/m, cert: c, key: k}}}}}\n"
            "routes: {r: {use: mine, allow: w}}\n"
        )
        .routes["r"]
        .credential
    )
    assert spec is not None
    assert [secret.path for secret in spec.secrets.values()] == ["secret/m"]


def test_the_endpoint_of_a_preset_is_bound_by_rights(load: Load) -> None:
    use = "routes: {r: {use: {preset: vertex, region: us-central1}, allow: w}}\n"
    hosts = tuple(
        HostRight(HostPattern(one), 443) for one in ("us-central1-aiplatform.googleapis.com", "oauth2.googleapis.com")
    )
    secret = SecretRight(("secret", "egress", "vertex"))
    found = faults(load, "", use, rights={1: Rights(MAY, frozenset({"routes"}), hosts[:1], (secret,), ("w",))})
    assert any("no token of this file may be asked of oauth2.googleapis.com" in fault for fault in found), found
    granted = Rights(MAY, frozenset({"routes"}), hosts, (secret,), ("w",))
    assert load("", use, rights={1: granted}).routes["r"].presets


def test_a_preset_counts_in_the_version(load: Load) -> None:
    own = "presets: {mine: {match: {host: a.test}, inject: {bearer: '{secret}'}}}\nroutes: {r: {use: NAME, allow: w}}\n"
    assert load(own.replace("NAME", "mine")).version != load(own.replace("NAME", "openai")).version


@pytest.mark.parametrize(
    ("use", "said"),
    [
        ("opneai", "0.yaml:2:19: there is no preset 'opneai' (did you mean 'openai'?)"),
        (
            "vault",
            "0.yaml:2:19: 'vault' is no preset: where the keys live is no upstream of a workload (let the workload call the API it needs, and Ostiary read Vault)",
        ),
        ("../x", "0.yaml:2:19: there is no preset '../x' (ostiary preset list shows those there are)"),
        ("azure-openai", "0.yaml:2:19: preset azure-openai of route r needs 'tenant': the name of the resource"),
        ("{preset: azure-openai, tenant: a.evil.test/}", "0.yaml:2:50: 'a.evil.test/' cannot be the tenant of preset"),
        ("{preset: azure-openai, tenant: '{secret}'}", "0.yaml:2:50: '{secret}' cannot be the tenant of preset"),
        ("{preset: azure-openai, tennant: a}", "0.yaml:2:42: unknown key 'tennant' in preset azure-openai of route r"),
        ("{tenant: a}", "0.yaml:2:19: use of route r names no preset"),
        ("[openai, openai]", "0.yaml:2:19: route r uses preset openai twice"),
        ("[openai, stripe]", "0.yaml:2:19: the presets of route r name different hosts"),
        ("openai, match: {host: a.test}", "0.yaml:2:41: the host of route r is that of preset openai"),
        ("openai, caller_credentials: keep", "0.yaml:2:47: caller_credentials: keep excludes inject"),
        ("openai, inject: {query: key, value: '{secret.b}', bearer: x}", "0.yaml:2:35: an injector of route r has one"),
    ],
)
def test_faults_stand_where_the_route_was_written(use: str, said: str, load: Load) -> None:
    found = faults(load, f"routes: {{r: {{use: {use}, allow: w}}}}\n")
    assert any(fault.startswith(said) for fault in found), found
    assert all(fault.startswith("0.yaml:2:") for fault in found)


@pytest.mark.parametrize(
    ("preset", "said"),
    [
        ("openai: {match: {host: a.test}}", "'openai' is a built-in preset"),
        ("mine: {inject: {bearer: '{secret}'}}", "preset mine needs 'match'"),
        ("mine: {match: {paths: /a}}", "match of preset mine needs 'host'"),
        ("mine: {match: {host: a.test}, allow: w}", "unknown key 'allow' in preset mine"),
        ("mine: {match: {host: a.test}, egress: {allow: 10.0.0.0/8}}", "unknown key 'egress' in preset mine"),
        ("mine: {match: {host: a.test}, checked: yesterday}", "'yesterday' is no date"),
        (
            "mine: {match: {host: a.test}, placeholder: {LD_PRELOAD: /tmp/x.so}}",
            "'LD_PRELOAD' is no name for placehold",
        ),
        ("mine: {match: {host: a.test}, placeholder: {OSTIARY_KEY: x}}", "'OSTIARY_KEY' is no name for placeholder"),
        ("mine: {match: {host: a.test}, secret: {mount: b, field: k}}", "mount of preset mine stands without a path"),
        ("mine: {match: {host: a.test}, parameters: {secret: x}}", "a parameter cannot be called 'secret'"),
    ],
)
def test_faults_of_own_presets(preset: str, said: str, load: Load) -> None:
    found = faults(load, f"presets:\n  {preset}\nroutes: {{r: {{match: {{host: b.test}}, allow: w}}}}\n")
    assert any(said in fault and fault.startswith("0.yaml:3:") for fault in found), found


def test_an_own_preset_takes_parameters_and_leaves_braces_alone(load: Load) -> None:
    route = load(
        "presets:\n"
        "  mine: {parameters: {tenant: the tenant}, match: {host: '{tenant}.a.test'},\n"
        "         inject: {header: X-Key, value: '{{tenant}} {tenant} {secret}'}}\n"
        "routes: {r: {use: {preset: mine, tenant: '${env}'}, allow: w}}\n",
        env="prod",
    ).routes["r"]
    assert route.hosts == (HostPattern("prod.a.test"),)
    assert str(route.inject[0]).count("prod") == 1


MAY = Place("ostiary.yaml", 3, 9)


def test_rights_of_the_file_that_uses_a_preset(load: Load) -> None:
    use = "routes: {r: {use: openai, allow: w}}\n"
    define = frozenset({"routes"})
    without = Rights(MAY, define, workloads=("w",))
    found = faults(load, "", use, rights={1: without})
    assert any("1.yaml:1:19: no route of this file may name api.openai.com" in fault for fault in found), found
    assert any("1.yaml:1:19: this file may not read secret" in fault for fault in found), found
    host = HostRight(HostPattern("api.openai.com"), 443)
    secret = SecretRight(("secret", "egress", "openai"))
    granted = Rights(MAY, define, (host,), (secret,), ("w",))
    assert load("", use, rights={1: granted}).routes["r"].presets


def test_who_may_define_presets_and_how_far_they_reach(load: Load) -> None:
    """Whoever may write presets for `a.test` cannot lead the routes of others elsewhere, parameters or none."""
    preset = "presets: {mine: {parameters: {tenant: t}, match: {host: 'HOST'}, inject: {bearer: '{secret}'}}}\n"
    use = "routes: {r: {use: {preset: mine, tenant: api}, allow: w}}\n"
    good = HostRight(HostPattern("api.a.test"), 443)
    found = faults(load, use, preset.replace("HOST", "{tenant}.a.test"), rights={1: Rights(MAY, hosts=(good,))})
    assert any("this file may not write 'presets'" in fault for fault in found), found
    rights = {1: Rights(MAY, frozenset({"presets"}), (good,))}
    assert load(use, preset.replace("HOST", "{tenant}.a.test"), rights=rights).routes["r"].hosts
    found = faults(load, use, preset.replace("HOST", "{tenant}.evil.test"), rights=rights)
    assert any("may name api.evil.test" in fault and fault.startswith("1.yaml:1:") for fault in found), found
    found = faults(load, use.replace(", tenant: api", ""), preset.replace("HOST", "evil.test"), rights=rights)
    assert any("may name evil.test" in fault for fault in found), found
    # Nor can they choose where the secret of another's route is asked a token for, or what is shown there.
    derive = (
        "presets: {mine: {parameters: {tenant: t}, match: {host: '{tenant}.a.test'}, inject: {bearer: '{token}'}, secret: {path: secret/mine, field: k},\n"
        "  derive: {client_credentials: {token_url: 'https://HOST/t', client_id: c, client_secret: '{secret}'}}}}\n"
    )
    own = {1: Rights(MAY, frozenset({"presets"}), (good,), (SecretRight(("secret", "mine")),))}
    assert load(use, derive.replace("HOST", "{tenant}.a.test"), rights=own).routes["r"].credential
    found = faults(load, use, derive.replace("HOST", "{tenant}.evil.test"), rights=own)
    assert any("no token of this file may be asked of api.evil.test" in fault for fault in found), found
    shown = derive.replace("client_secret: '{secret}'", "client_cert: {path: secret/theirs, cert: c, key: k}")
    found = faults(load, use, shown.replace("HOST", "{tenant}.a.test"), rights=own)
    assert any("may not show the certificate 'secret/theirs'" in fault for fault in found), found


def test_the_schema_takes_presets_as_the_loader_does() -> None:
    schema = policy_schema()
    for name in built_in_names():
        document = yaml.safe_load(HEAD + using(name))
        jsonschema.validate(document, schema)
        body = yaml.load(built_in(name).raw, yaml.BaseLoader)  # noqa: S506 - scalars stay text, nothing is made
        jsonschema.validate({"presets": {"mine": body}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"routes": {"r": {"allow": "w"}}}, schema)


def test_a_new_preset_is_one() -> None:
    from ostiary.cli.preset import NEW

    preset = read_new("acme", NEW.format(name="acme", host="api.acme.test", variable="ACME_API_KEY"))
    assert preset.placeholder == {"ACME_API_KEY": "ostiary-placeholder"}
