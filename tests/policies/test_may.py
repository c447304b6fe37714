"""Files with rights of their own: each way in which one file could take from another, and that it is refused.

`WAYS` is the list of them. Every example is loaded twice: with the rights of `MAY` it has just the faults that stand
beside it, and as a file that may write everything it loads, so that it is the rights and nothing else that refuse it.
"""

from __future__ import annotations

import os
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import FaultError, Grant, Place, Policy, Question, Rights, Source, load_policy, load_sources
from policies.document import Node, read_file
from policies.keys import TABLES
from policies.load_rights import WALKED
from policies.model import HostPattern, SecretSpec
from policies.paths import may_overlap, parse_pattern
from policies.rights import GUARDED, KINDS, HostRight, SecretRight

MAY = Rights(
    place=Place("ostiary.yaml", 9, 30),
    define=frozenset({"routes", "credentials", "groups", "workloads", "tests"}),
    hosts=(HostRight(HostPattern("api.stripe.com"), 443), HostRight(HostPattern("*.pay.test"), 443)),
    secrets=(SecretRight(("secret", "pay", "**")),),
    workloads=("pay-*",),
)
LIMITED = " of may at ostiary.yaml:9:30)"

PLATFORM = """
workloads:
  pay-web: {proofs: {any: true}}
  pay-job: {proofs: {peer: {uid: 1001}}}
  ads-web: {proofs: {any: true}}
groups: {everyone: [pay-web, ads-web], payers: [pay-web, pay-job]}
credentials:
  ads-key: {secret: {path: secret/ads/key, field: k}}
  pay-key: {secret: {path: secret/pay/key, field: k}}
routes:
  ads: {match: {host: api.ads.test}, allow: {group: everyone, credential: ads-key}, inject: {bearer: "{secret}"}}
  shared: {match: {host: api.stripe.com, paths: ["/platform/**"]}, allow: pay-job, credential: pay-key, inject: {bearer: "{secret}"}}
"""
ROUTE = "routes:\n  pay:\n    match: {host: api.stripe.com, paths: [/v1/charges]}\n    allow: pay-web\n"

# How one file could take from another: what the file of the team says, and the faults that must come of it.
WAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    # --- kinds ---
    "another default": (
        "default: tunnel\n" + ROUTE,
        ("1:1: this file may not write 'default' (add 'default' to define",),
    ),
    # --- reverse listeners ---
    "an upstream of others": (
        'routes:\n  pay:\n    match: {paths: /v1/charges}\n    listener: l\n    upstream: "https://api.other.test"\n    allow: pay-web\n',
        ("5:15: no route of this file may lead to api.other.test (add 'api.other.test' to hosts",),
    ),
    "another port of an upstream": (
        'routes:\n  pay:\n    match: {paths: /v1/charges}\n    listener: l\n    upstream: "http://api.stripe.com"\n    allow: pay-web\n',
        ("5:15: no route of this file may lead to api.stripe.com:80 (add 'api.stripe.com:80' to hosts",),
    ),
    # --- keys that stay in Vault ---
    "a key of others, another secret": (
        ROUTE + "    sign: {hmac: {transit: {key: ads}}}\n",
        ("5:28: this file may not sign with key 'transit/keys/ads' (add 'transit/keys/ads' to secrets",),
    ),
    "a key of others at a mount, another secret": (
        ROUTE + '    sign: [{http_message: {key_id: a, algorithm: ed25519, transit: {key: k, mount: /ads/, namespace: n}, components: "@method"}}]\n',
        ("5:68: this file may not sign with key {namespace: n, path: 'ads/keys/k'} (add {namespace: n, path: 'ads/keys/k'} to secrets",),
    ),
    "a key of others to verify with": (
        ROUTE + "    verify: {hmac: {transit: {key: ads}}}\n",
        ("5:30: this file may not verify with key 'transit/keys/ads' (add 'transit/keys/ads' to secrets",),
    ),
    # --- token endpoints ---
    "a token of an endpoint of others": (
        ROUTE
        + '    secret: {path: secret/pay/a, field: k}\n    inject: {bearer: "{token}"}\n    derive:\n      client_credentials: {token_url: "https://evil.test/t", client_id: c, client_secret: "{secret}"}\n',
        ("8:39: no token of this file may be asked of evil.test (add 'evil.test' to hosts",),
    ),
    "a token of a known endpoint in a credential": (
        'credentials:\n  pay:\n    secret: {path: secret/pay/a, field: k}\n    derive: {google_service_account: {key_json: "{secret}", scopes: a}}\n'
        + ROUTE
        + '    credential: pay\n    inject: {bearer: "{token}"}\n',
        ("4:13: no token of this file may be asked of oauth2.googleapis.com (add 'oauth2.googleapis.com' to hosts",),
    ),
    "a certificate of others for a token": (
        ROUTE
        + '    inject: {bearer: "{token}"}\n    derive:\n      client_credentials: {token_url: "https://api.stripe.com/t", client_id: c, client_cert: {path: secret/ads/m, cert: c, key: k}}\n',
        ("7:94: this file may not show the certificate 'secret/ads/m' (add 'secret/ads/m' to secrets",),
    ),
    "a certificate that Vault would sign, for a token": (
        ROUTE
        + '    inject: {bearer: "{token}"}\n    derive:\n      client_credentials: {token_url: "https://api.stripe.com/t", client_id: c, client_cert: {pki: {role: ads, common_name: ads}}}\n',
        ("7:94: this file may not show the certificate 'pki/sign/ads' (add 'pki/sign/ads' to secrets",),
    ),
    # --- hosts ---
    "a host of others": (
        ROUTE.replace("api.stripe.com", "api.other.test"),
        ("3:19: no route of this file may name api.other.test (add 'api.other.test' to hosts",),
    ),
    "a host of others among its own": (
        ROUTE.replace("api.stripe.com", "[api.stripe.com, API.Other.test.]"),
        ("3:36: no route of this file may name api.other.test (add 'api.other.test' to hosts",),
    ),
    "another port of its host": (
        ROUTE.replace("host: api.stripe.com", "host: api.stripe.com, port: 8443"),
        ("3:19: no route of this file may name api.stripe.com:8443 (add 'api.stripe.com:8443' to hosts",),
    ),
    "plain http to its host": (
        ROUTE.replace("host: api.stripe.com", "host: api.stripe.com, port: 80"),
        ("3:19: no route of this file may name api.stripe.com:80 (add 'api.stripe.com:80' to hosts",),
    ),
    "a wildcard over its host": (
        ROUTE.replace("api.stripe.com", '"*.stripe.com"'),
        ("3:19: no route of this file may name *.stripe.com (add '*.stripe.com' to hosts",),
    ),
    "a wildcard below its wildcard": (
        ROUTE.replace("api.stripe.com", '"*.eu.pay.test"'),
        ("3:19: no route of this file may name *.eu.pay.test (add '*.eu.pay.test' to hosts",),
    ),
    "two labels below its wildcard": (
        ROUTE.replace("api.stripe.com", "a.b.pay.test"),
        ("3:19: no route of this file may name a.b.pay.test (add 'a.b.pay.test' to hosts",),
    ),
    "the name above its wildcard": (
        ROUTE.replace("api.stripe.com", "pay.test"),
        ("3:19: no route of this file may name pay.test (add 'pay.test' to hosts",),
    ),
    "a name that ends like its wildcard": (
        ROUTE.replace("api.stripe.com", "evilpay.test"),
        ("3:19: no route of this file may name evilpay.test (add 'evilpay.test' to hosts",),
    ),
    "an address": (
        ROUTE.replace("api.stripe.com", "10.1.2.3"),
        ("3:19: no route of this file may name 10.1.2.3 (add '10.1.2.3' to hosts",),
    ),
    # --- requests of others ---
    "a more specific path where another route serves the workload": (
        ROUTE.replace("/v1/charges", "/platform/admin").replace("pay-web", "[pay-web, pay-job]"),
        (
            "2:3: route 'pay' could take requests of workload 'pay-job' from route 'shared' at platform/base.yaml:12:3, of a file with other rights (let paths, methods or workloads of the two differ; this file is limited by may at ostiary.yaml:9:30)",
        ),
    ),
    "all paths where another route serves the workload": (
        "routes:\n  pay: {match: {host: api.stripe.com}, allow: {group: payers}}\n",
        ("2:3: route 'pay' could take requests of workload 'pay-job' from route 'shared'",),
    ),
    # --- workloads ---
    "a workload of others": (
        ROUTE.replace("pay-web", "ads-web"),
        ("4:12: this file may not name workload 'ads-web' (add 'ads-web' to workloads",),
    ),
    "a workload of others in a grant": (
        ROUTE.replace("pay-web", "[pay-web, {workload: [pay-web, ads-web]}]"),
        ("4:43: this file may not name workload 'ads-web' (add 'ads-web' to workloads",),
    ),
    "a group that holds a workload of others": (
        ROUTE.replace("pay-web", "everyone"),
        ("4:12: group 'everyone' holds workload 'ads-web', which this file may not name",),
    ),
    "such a group in a grant": (
        ROUTE.replace("pay-web", "{group: [payers, everyone], methods: GET}"),
        ("4:29: group 'everyone' holds workload 'ads-web', which this file may not name",),
    ),
    "a workload of others in deny": (
        ROUTE + "    deny: [ads-web, {workload: ads-web, methods: GET}, {group: everyone, methods: PUT}]\n",
        (
            "5:12: this file may not name workload 'ads-web'",
            "5:32: this file may not name workload 'ads-web'",
            "5:64: group 'everyone' holds workload 'ads-web'",
        ),
    ),
    "a test that speaks as a workload of others": (
        ROUTE + 'tests: [{as: ads-web, request: "GET https://api.stripe.com/", expect: route_denied}]\n',
        ("5:14: this file may not name workload 'ads-web' (add 'ads-web' to workloads",),
    ),
    "a workload with a name of others": (
        "workloads: {admin: {proofs: {any: true}}}\n" + ROUTE,
        ("1:13: this file may not name workload 'admin' (add 'admin' to workloads",),
    ),
    "a workload that claims a uid": (
        "workloads: {pay-new: {proofs: [{any: true}, {peer: {uid: 1002}}]}}\n" + ROUTE,
        (
            "1:46: this file may not write 'peer': a claimed uid can be the one by which another workload is known (add 'peer' to define",
        ),
    ),
    "a group with a name that may be a workload of others": (
        "groups: {reports: [pay-web]}\n" + ROUTE,
        ("1:10: this file may not name group 'reports' (add 'reports' to workloads",),
    ),
    "a group of workloads of others": (
        "groups: {pay-all: [pay-web, ads-web]}\n" + ROUTE.replace("pay-web", "payers"),
        ("1:29: this file may not name workload 'ads-web' (add 'ads-web' to workloads",),
    ),
    # --- secrets ---
    "a secret of others": (
        ROUTE + '    secret: {path: secret/ads/key, field: k}\n    inject: {bearer: "{secret}"}\n',
        ("5:20: this file may not read secret 'secret/ads/key' (add 'secret/ads/key' to secrets",),
    ),
    "one of several secrets": (
        ROUTE
        + '    secrets: {a: {path: secret/pay/a, field: k}, b: {path: secret/ads/b}}\n    inject: {basic: {username: "{a}", password: "{b.k}"}}\n',
        ("5:60: this file may not read secret 'secret/ads/b'",),
    ),
    "a secret above its folder": (
        ROUTE + '    secret: {path: secret/pay, field: k}\n    inject: {bearer: "{secret}"}\n',
        ("5:20: this file may not read secret 'secret/pay'",),
    ),
    "a folder whose name begins like its own": (
        ROUTE + '    secret: {path: secret/payroll/key, field: k}\n    inject: {bearer: "{secret}"}\n',
        ("5:20: this file may not read secret 'secret/payroll/key'",),
    ),
    "its path below another mount": (
        ROUTE + '    secret: {mount: other, path: secret/pay/key, field: k}\n    inject: {bearer: "{secret}"}\n',
        ("5:34: this file may not read secret 'other/secret/pay/key'",),
    ),
    "its path with slashes around and another mount": (
        ROUTE + '    secret: {mount: /other/, path: /pay/key/, field: k}\n    inject: {bearer: "{secret}"}\n',
        ("5:36: this file may not read secret 'other/pay/key'",),
    ),
    "the inside of the mount as a path": (
        ROUTE + '    secret: {path: secret/data/ads/key, kv: 1, field: k}\n    inject: {bearer: "{secret}"}\n',
        ("5:20: this file may not read secret 'secret/data/ads/key'",),
    ),
    "a namespace": (
        ROUTE + '    secret: {path: secret/pay/key, namespace: ads, field: k}\n    inject: {bearer: "{secret}"}\n',
        (
            "5:47: this file may not read secret {namespace: ads, path: 'secret/pay/key'} (add {namespace: ads, path: 'secret/pay/key'} to secrets",
        ),
    ),
    "a namespace in front of the mount": (
        ROUTE + '    secret: {path: ads/secret/pay/key, field: k}\n    inject: {bearer: "{secret}"}\n',
        ("5:20: this file may not read secret 'ads/secret/pay/key'",),
    ),
    "a variable that leads elsewhere": (
        ROUTE + '    secret: {path: "secret/${team}/key", field: k}\n    inject: {bearer: "{secret}"}\n',
        ("5:20: this file may not read secret 'secret/ads/key'",),
    ),
    "a credential with a secret of others": (
        "credentials: {mine: {secret: {path: secret/ads/key, field: k}}}\n"
        + ROUTE
        + '    credential: mine\n    inject: {bearer: "{secret}"}\n',
        ("1:37: this file may not read secret 'secret/ads/key'",),
    ),
    "a credential of others by name": (
        ROUTE + '    credential: ads-key\n    inject: {bearer: "{secret}"}\n',
        (
            "5:17: credential 'ads-key' is defined at platform/base.yaml:8:3 with secrets that this file may not read (use a credential of this file, or add 'secret/ads/key' to secrets",
        ),
    ),
    "a credential of others in a grant": (
        ROUTE.replace("pay-web", "{workload: pay-web, credential: ads-key}") + '    inject: {bearer: "{secret}"}\n',
        ("4:44: credential 'ads-key' is defined at platform/base.yaml:8:3 with secrets that this file may not read",),
    ),
    "a secret that is declared to be none": (
        ROUTE + '    secret: {path: secret/pay/key, field: k, public: true}\n    inject: {bearer: "{secret}"}\n',
        ("5:46: this file may not write 'public': an answer that is not scrubbed shows its credential to the caller",),
    ),
    # --- guarded keys ---
    "addresses inside": (
        ROUTE + '    egress: {allow: ["10.0.0.0/8"]}\n',
        (
            "5:5: this file may not write 'egress': a route's egress opens addresses inside the network and fixes where a host is dialled (add 'egress' to define",
        ),
    ),
    "a dial target": (
        ROUTE + '    egress: {resolve: {"api.stripe.com:443": "192.0.2.1:443"}}\n',
        ("5:5: this file may not write 'egress'",),
    ),
    "roots of its own": (
        ROUTE + "    tls: {ca_file: base.pem}\n",
        ("5:11: this file may not write 'ca_file': other roots let another server stand for the upstream (add 'tls.ca_file' to define",),
    ),
    "its credential in clear text": (
        ROUTE
        + '    secret: {path: secret/pay/key, field: k}\n    inject: {bearer: "{secret}"}\n    allow_cleartext: true\n',
        (
            "7:5: this file may not write 'allow_cleartext': a credential over plain http can be read on the way (add 'allow_cleartext' to define",
        ),
    ),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("platform", "pay", "ads"):
        (tmp_path / name).mkdir()
    (tmp_path / "platform" / "base.yaml").write_text(PLATFORM)
    (tmp_path / "pay" / "base.pem").write_text("x")
    return tmp_path


def load(folder: Path, pay: str | None = None, rights: Rights | None = MAY, *more: Source) -> Policy:
    """The policy of the platform and of one team."""
    if pay is not None:
        (folder / "pay" / "pay.yaml").write_text(pay)
    return load_sources(
        [
            Source("platform/*.yaml", folder, Place("ostiary.yaml", 8, 13)),
            Source("pay/*.yaml", folder, Place("ostiary.yaml", 9, 13), rights),
            *more,
        ],
        variables={"team": "ads"},
    )


def faults(folder: Path, pay: str | None = None, rights: Rights | None = MAY, *more: Source) -> list[str]:
    with pytest.raises(FaultError) as error:
        load(folder, pay, rights, *more)
    return [str(fault) for fault in error.value.faults]


@pytest.mark.parametrize("way", WAYS)
def test_no_file_takes_from_another(folder: Path, way: str) -> None:
    text, wanted = WAYS[way]
    load(folder, text, None)
    found = faults(folder, text)
    assert len(found) == len(wanted), found
    for fault, beginning in zip(found, wanted, strict=True):
        assert fault.startswith(f"pay/pay.yaml:{beginning}"), fault
        assert "ostiary.yaml:9:30)" in fault, "a fault tells what limits the file"
        assert fault.endswith(LIMITED) or "is limited by may at" in fault


@pytest.mark.parametrize("kind", sorted(set(KINDS) & set(TABLES["file"])))
def test_each_kind_must_be_granted(folder: Path, kind: str) -> None:
    texts = {
        "default": "default: deny",
        "workloads": "workloads: {pay-new: {proofs: {any: true}}}",
        "groups": "groups: {pay-all: [pay-web]}",
        "credentials": "credentials: {mine: {secret: {path: secret/pay/x, field: k}}}",
        "presets": "presets: {mine: {match: {host: api.stripe.com}}}",
        "routes": "routes: {pay: {match: {host: api.stripe.com, paths: /v1}, allow: pay-web}}",
        "tests": 'tests: [{as: pay-web, request: "GET https://api.stripe.com/", expect: route_denied}]',
    }
    found = faults(folder, texts[kind], replace(MAY, define=frozenset(KINDS) - {kind}))
    assert f"pay/pay.yaml:1:1: this file may not write {kind!r} (add {kind!r} to define{LIMITED}" in found
    if kind != "credentials":  # an unused one is a fault of its own
        load(folder, texts[kind], replace(MAY, define=frozenset({kind})))


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("egress", ROUTE + '    egress: {allow: ["10.0.0.0/8"]}\n'),
        ("tls.ca_file", ROUTE + "    tls: {ca_file: base.pem}\n"),
        ("allow_cleartext", WAYS["its credential in clear text"][0]),
        ("scrub: none", WAYS["a secret that is declared to be none"][0]),
        ("peer", WAYS["a workload that claims a uid"][0]),
    ],
)
def test_a_guarded_key_can_be_granted(folder: Path, word: str, text: str) -> None:
    assert word in GUARDED
    load(folder, text, replace(MAY, define=MAY.define | {word}))
    assert len(faults(folder, text, replace(MAY, define=MAY.define | set(GUARDED) - {word}))) == 1


def test_an_answer_that_is_not_scrubbed_is_guarded_before_there_is_scrubbing(folder: Path) -> None:
    wanted = "may not write 'scrub': an answer that is not scrubbed"
    assert any(wanted in fault for fault in faults(folder, ROUTE + "    reply: {scrub: none}\n"))
    assert not any(wanted in fault for fault in faults(folder, ROUTE + "    reply: {scrub: block}\nx: y\n"))


def test_what_is_granted_works(folder: Path) -> None:
    policy = load(
        folder,
        "version: 1\nworkloads: {pay-new: {proofs: {any: true}}}\ngroups: {pay-both: [pay-new, pay-web]}\n"
        "credentials: {mine: {secret: {mount: secret, path: pay/a/b/key, field: k}}}\nroutes:\n"
        '  pay: {match: {host: [api.stripe.com, eu.pay.test], paths: ["/v1/**"]}, allow: [{group: pay-both, credential: mine}], deny: [{paths: /v1/x}], inject: {bearer: "{secret}"}, timeouts: {total: 1h}, mode: observe, http2: prefer, caller_credentials: reject, allow_cleartext: false}\n'
        '  wild: {match: {host: "*.pay.test", paths: [/w]}, allow: [payers]}\n'
        '  by-name: {match: {host: us.pay.test}, allow: pay-web, credential: pay-key, inject: {bearer: "{secret}"}}\n'
        'tests: [{as: pay-new, request: "GET https://api.stripe.com/v1/a", expect: {route: pay}}]\n',
    )
    answer = policy.decide(Question("pay-new", "api.stripe.com", 443, "GET", "/v1/a"))
    assert isinstance(answer, Grant)
    assert answer.route.name == "pay"


def test_rights_grant_nothing_by_being_there(folder: Path) -> None:
    found = faults(folder, "default: deny\n" + ROUTE, Rights(MAY.place))
    assert [fault.partition(": ")[2].partition(" (")[0] for fault in found] == [
        "this file may not write 'default'",
        "this file may not write 'routes'",
        "no route of this file may name api.stripe.com",
        "this file may not name workload 'pay-web'",
    ]


def test_faults_of_all_files_are_told_at_once(folder: Path) -> None:
    (folder / "platform" / "more.yaml").write_text("routs: {}\n")
    found = faults(
        folder, ROUTE.replace("api.stripe.com", "a.test").replace("pay-web", "ads-web") + "    nonsense: 1\n"
    )
    assert [fault.split(": ")[0] for fault in found] == [
        "pay/pay.yaml:3:19",
        "pay/pay.yaml:4:12",
        "pay/pay.yaml:5:5",
        "platform/more.yaml:1:1",
    ]


# --- names ---


def test_a_name_of_others_cannot_be_defined_anew(folder: Path) -> None:
    for text in (
        "workloads: {pay-web: {proofs: {any: true}}}\n",
        "credentials: {ads-key: {secret: {path: secret/pay/x, field: k}}}\n",
        "routes: {ads: {match: {host: api.stripe.com, paths: [/v1]}, allow: pay-web}}\n",
    ):
        assert any("is already defined at" in fault for fault in faults(folder, text)), text
    found = faults(folder, "groups: {payers: [pay-web]}\n", replace(MAY, workloads=("pay-*", "payers")))
    assert any("group 'payers' is already defined at" in fault for fault in found)


def test_a_group_cannot_shadow_a_workload(folder: Path) -> None:
    assert any(
        "names both a group and a workload" in fault for fault in faults(folder, "groups: {pay-job: [pay-web]}\n")
    )


def test_the_proof_of_another_cannot_be_claimed(folder: Path) -> None:
    """A uid that is known of two workloads proves neither: who claims it puts the other out of service."""
    free = replace(MAY, define=MAY.define | {"peer"}, workloads=("pay-new",), secrets=())
    found = faults(folder, "workloads: {pay-new: {proofs: {peer: {uid: 1001}}}}\n", free)
    assert found == [
        "pay/pay.yaml:1:13: workload 'pay-new' has the uid of workload 'pay-job' at platform/base.yaml:4:3, of a file with other rights (use key_hash; this file is limited by may at ostiary.yaml:9:30)"
    ]
    key = "sha256:" + "ab" * 32
    (folder / "platform" / "base.yaml").write_text(PLATFORM.replace("peer: {uid: 1001}", f'key_hash: "{key}"'))
    found = faults(folder, f'workloads: {{pay-new: {{proofs: {{key_hash: "{key}"}}}}}}\n')
    assert any("has the same key_hash as workload" in fault for fault in found)


# --- two teams ---


def test_two_limited_entries_have_other_rights(folder: Path) -> None:
    """They may have the same host, each for workloads of its own, and neither the credential nor the requests of the
    other.
    """
    ads = Rights(
        Place("ostiary.yaml", 10, 30),
        MAY.define,
        MAY.hosts,
        (SecretRight(("secret", "ads", "*")),),
        ("ads-*", "pay-web"),
    )
    source = Source("ads/*.yaml", folder, Place("ostiary.yaml", 10, 13), ads)
    (folder / "ads" / "a.yaml").write_text(
        "routes: {ads-stripe: {match: {host: api.stripe.com, paths: [/v1/*]}, allow: ads-web}}\n"
    )
    load(folder, ROUTE, MAY, source)
    (folder / "ads" / "a.yaml").write_text(
        "routes: {ads-stripe: {match: {host: api.stripe.com, paths: [/v1/*]}, allow: [ads-web, pay-web]}}\n"
    )
    found = faults(folder, ROUTE, MAY, source)
    assert len(found) == 1
    assert found[0].startswith(
        "pay/pay.yaml:2:3: route 'pay' could take requests of workload 'pay-web' from route 'ads-stripe'"
    )
    (folder / "ads" / "a.yaml").write_text(
        "credentials: {ads-own: {secret: {path: secret/ads/own, field: k}}}\n"
        'routes: {ads-stripe: {match: {host: api.stripe.com}, allow: ads-web, credential: ads-own, inject: {bearer: "{secret}"}}}\n'
    )
    found = faults(folder, ROUTE + '    credential: ads-own\n    inject: {bearer: "{secret}"}\n', MAY, source)
    assert len(found) == 1
    assert found[0].startswith("pay/pay.yaml:5:17: credential 'ads-own' is defined at ads/a.yaml:1:15")


def test_two_files_of_one_entry_are_one_team(folder: Path) -> None:
    (folder / "pay" / "more.yaml").write_text(
        "credentials: {theirs: {secret: {path: secret/pay/x, field: k}}}\n"
        'routes: {pay2: {match: {host: api.stripe.com, paths: ["/v1/**"]}, allow: pay-web, credential: theirs, inject: {bearer: "{secret}"}}}\n'
    )
    load(folder, ROUTE + '    credential: theirs\n    inject: {bearer: "{secret}"}\n')


def test_a_route_of_one_host_before_the_wildcard_of_others(folder: Path) -> None:
    """An exact host goes before a wildcard, so it would take its requests."""
    base = PLATFORM + '  wild: {match: {host: "*.pay.test", methods: [GET]}, allow: everyone}\n'
    (folder / "platform" / "base.yaml").write_text(base)
    text = ROUTE.replace("host: api.stripe.com", "host: eu.pay.test")
    assert any("could take requests of workload 'pay-web' from route 'wild'" in fault for fault in faults(folder, text))
    load(folder, text.replace("paths:", "methods: [POST], paths:"))


def test_a_key_that_nobody_has_judged_is_not_granted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policies.load_rights.WALKED", {**WALKED, "route": WALKED["route"] - {"timeouts"}})
    assert faults(folder, ROUTE + "    timeouts: {total: 1h}\n") == [
        "pay/pay.yaml:5:5: 'timeouts' cannot be granted to a file with rights of its own yet (write it in a file that is not limited; this one is by may at ostiary.yaml:9:30)"
    ]


def test_every_key_of_the_language_has_been_judged() -> None:
    """Whoever adds a key decides here whether a limited file may write it. These tables hold nothing that reaches beyond
    their route, or are guarded as a whole.
    """
    free = {
        "inject",
        "basic",
        "timeouts",
        "expect",
        "peer",
        "egress",
        "sign",
        "hmac",
        "names",
        "aws_sigv4",
        "http_message",
        "transit",
        "edgegrid",
        "acs3",
        "tc3",
        "dpop",
        "example",
        "verify",
        "verify_hmac",
        "verify_message",
        "webhook",
        "webhook_untimed",
        "twilio",
        "sns",
    }
    assert set(TABLES) == set(WALKED) | free
    for table, judged in WALKED.items():
        assert set(TABLES[table]) <= judged, table


def test_what_the_walk_does_not_see_is_seen_in_the_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second look: with the walk taken away, the loaded policy is still held to the rights."""
    monkeypatch.setattr("policies.load._limited", lambda *_: None)
    seen = 0
    for way, (text, _) in WAYS.items():
        if way.startswith(("a host", "another port", "plain http", "a wildcard", "an address", "addresses", "roots", "a dial")) or (
            "secret" in way and "declared" not in way
        ) or way in {"a workload of others", "such a group in a grant", "a workload of others in deny", "its credential in clear text", "a namespace"}:  # fmt: skip
            assert any("its file may not" in fault for fault in faults(folder, text)), way
            seen += 1
    assert seen >= 18


# --- files ---


def test_a_new_file_in_the_folder_is_held_to_the_same_rights(folder: Path) -> None:
    sources = [
        Source("platform/*.yaml", folder, Place("ostiary.yaml", 8, 13)),
        Source("pay/**/*.yaml", folder, Place("ostiary.yaml", 9, 13), MAY),
    ]
    (folder / "pay" / "pay.yaml").write_text(ROUTE)
    load_sources(sources)
    (folder / "pay" / "deeper").mkdir()
    (folder / "pay" / "deeper" / "new.yaml").write_text("default: observe\n")
    with pytest.raises(FaultError, match=r"pay/deeper/new.yaml:1:1: this file may not write 'default'"):
        load_sources(sources)


def test_a_file_of_two_entries(folder: Path) -> None:
    (folder / "pay" / "pay.yaml").write_text(ROUTE)
    for pattern in ("pay/pay.yaml", "p*/*.yaml", "**/*.yaml"):
        found = faults(folder, ROUTE, MAY, Source(pattern, folder, Place("ostiary.yaml", 10, 13)))
        assert any(
            fault.startswith("ostiary.yaml:10:13: pay/pay.yaml is a file of two entries with different rights: this one and 'pay/*.yaml' at ostiary.yaml:9:13")
            for fault in found
        ), found  # fmt: skip
    stricter = replace(MAY, place=Place("ostiary.yaml", 10, 30), hosts=())
    found = faults(folder, ROUTE, MAY, Source("pay/p*.yaml", folder, Place("ostiary.yaml", 10, 13), stricter))
    assert any("is a file of two entries with different rights" in fault for fault in found)


def test_a_file_of_two_entries_with_the_same_rights_counts_once(folder: Path) -> None:
    load(folder, ROUTE, MAY, Source("pay/pay.*", folder, Place("ostiary.yaml", 9, 20), MAY))
    load(folder, None, MAY, Source("platform/base.yaml", folder, Place("ostiary.yaml", 10, 13)))


@pytest.mark.parametrize("kind", ["symlink", "hard link"])
def test_a_link_to_a_file_of_others(folder: Path, kind: str) -> None:
    """By either name it would be a file of two rights."""
    (folder / "pay" / "pay.yaml").write_text(ROUTE)
    here, there = folder / "pay" / "link.yaml", folder / "platform" / "base.yaml"
    here.symlink_to(there) if kind == "symlink" else os.link(there, here)
    found = faults(folder)
    wanted = (
        f"pay/link.yaml:1:1: leads out of {folder}/pay, and its entry at ostiary.yaml:9:13 has rights of its own"
        if kind == "symlink"
        else "ostiary.yaml:9:13: pay/link.yaml is a file of two entries with different rights, there as platform/base.yaml: this one and 'platform/*.yaml'"
    )
    assert any(fault.startswith(wanted) for fault in found), found


def test_a_link_out_of_the_folder(folder: Path) -> None:
    """Its text would stand in faults, for whoever reads the log."""
    (folder / "outside.yaml").write_text("password: hunter2\n")
    (folder / "pay" / "pay.yaml").write_text(ROUTE)
    (folder / "pay" / "link.yaml").symlink_to(folder / "outside.yaml")
    found = faults(folder)
    assert len(found) == 1
    assert "leads out of" in found[0]
    assert "password" not in found[0]


def test_links_inside_the_folder_are_how_a_config_map_is_mounted(folder: Path) -> None:
    (folder / "pay" / "..2026").mkdir()
    (folder / "pay" / "..2026" / "pay.yaml").write_text(ROUTE)
    (folder / "pay" / "..data").symlink_to("..2026")
    (folder / "pay" / "pay.yaml").symlink_to("..data/pay.yaml")
    assert "pay" in load(folder).routes


def test_the_folder_itself_may_be_a_link_of_the_settings_author(folder: Path) -> None:
    (folder / "pay").rename(folder / "elsewhere")
    (folder / "pay").symlink_to("elsewhere")
    load(folder, ROUTE)


def test_a_wildcard_of_others_reaches_into_the_folder(folder: Path) -> None:
    """Another ending would be all it takes to write everything."""
    (folder / "pay" / "own.yml").write_text("default: observe\n")
    found = faults(folder, ROUTE, MAY, Source("*/*.yml", folder, Place("ostiary.yaml", 10, 13)))
    assert found == [
        "ostiary.yaml:10:13: '*/*.yml' reaches pay/own.yml, in a folder whose files 'pay/*.yaml' at ostiary.yaml:9:13 limits (name the folders of this entry, or move the file)"
    ]


def test_what_is_no_file(folder: Path) -> None:
    """A pipe would hold the reload until somebody writes."""
    os.mkfifo(folder / "pay" / "pipe.yaml")
    (folder / "pay" / "folder.yaml").mkdir()
    (folder / "pay" / "gone.yaml").symlink_to("nowhere")
    (folder / "pay" / "loop.yaml").symlink_to("loop.yaml")
    found = [fault.partition(" (")[0] for fault in faults(folder, ROUTE)]
    assert found.pop(2).startswith("pay/loop.yaml:1:1: cannot be read: ")
    assert found == [
        "pay/folder.yaml:1:1: is no regular file",
        "pay/gone.yaml:1:1: cannot be read: No such file or directory",
        "pay/pipe.yaml:1:1: is no regular file",
    ]


@pytest.mark.parametrize("then", ["gone", "another"])
def test_a_file_that_changes_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """It is looked at once: the version is that of what was read, not of what stands there since."""
    file = folder / "one.yaml"
    text = "workloads: {w: {proofs: {any: true}}}\n"
    file.write_text(text)
    before = load_policy([file]).version

    def read_and_change(path: Path, **named: Any) -> Node:
        read = read_file(path, **named)
        if then == "gone":
            path.unlink()
        else:
            path.write_text("routes: [")
        return read

    monkeypatch.setattr("policies.load.read_file", read_and_change)
    assert load_policy([file]).version == before


@pytest.mark.parametrize("name", [b"a\x1b[2J.yaml", b"a\n.yaml", b"a\xff.yaml"])
def test_a_file_name_is_no_way_to_write_into_logs(folder: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(folder / "pay"), name)
    with open(path, "w") as handle:
        handle.write("default: tunnel\n")
    found = faults(folder, ROUTE)
    assert len(found) == 1
    assert "is no name for a file of policies (rename it)" in found[0]
    assert found[0].isascii()
    assert found[0].isprintable()


def test_an_entry_without_files(folder: Path) -> None:
    assert faults(folder) == [
        "ostiary.yaml:9:13: no file matches 'pay/*.yaml' (file names are relative to the settings file)"
    ]


def test_more_files_than_anybody_writes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policies.sources.MAX_FILES", 1)
    assert any("policies name 2 files, more than 1" in fault for fault in faults(folder, ROUTE))


# --- patterns ---

SEGMENT = st.text("ab*", min_size=1, max_size=3).filter(lambda text: "**" not in text)
PATTERN = st.lists(st.one_of(SEGMENT, st.just("**")), min_size=1, max_size=5)
PATH = st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=6)


def spelled(pattern: list[str], path: list[str]) -> bool:
    """What the reference says, as plainly as it can be written."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        least = 1 if len(pattern) == 1 else 0
        return any(spelled(pattern[1:], path[taken:]) for taken in range(least, len(path) + 1))
    return bool(path) and text_fits(pattern[0], path[0]) and spelled(pattern[1:], path[1:])


def text_fits(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(text_fits(pattern[1:], text[taken:]) for taken in range(len(text) + 1))
    return text[:1] == pattern[0] and text_fits(pattern[1:], text[1:])


@given(PATTERN, PATH)
def test_secret_patterns_cover_what_they_spell(pattern: list[str], path: list[str]) -> None:
    assert SecretRight(tuple(pattern)).covers("/".join(path), None) == spelled(pattern, path)


@given(PATTERN, PATH, st.integers(1, 5))
def test_where_the_mount_ends_changes_nothing(pattern: list[str], path: list[str], cut: int) -> None:
    rights = replace(MAY, secrets=(SecretRight(tuple(pattern)),))
    whole = SecretSpec("/".join(path))
    if len(path) > cut:
        split = SecretSpec("/".join(path[cut:]), mount="/".join(path[:cut]))
        assert rights.secret(whole) == rights.secret(split)
    assert not rights.secret(replace(whole, namespace="a"))


@given(PATTERN, PATH)
def test_a_namespace_is_covered_by_its_own_name_alone(pattern: list[str], path: list[str]) -> None:
    right = SecretRight(tuple(pattern), "team-a")
    assert not right.covers("/".join(path), None)
    assert not right.covers("/".join(path), "team-b")
    assert right.covers("/".join(path), "team-a") == spelled(pattern, path)


LABEL = st.text(string.ascii_lowercase[:2], min_size=1, max_size=2)
NAME = st.lists(LABEL, min_size=2, max_size=4).map(".".join)
HOST = st.tuples(st.booleans(), NAME).map(lambda pair: HostPattern(f"*.{pair[1]}" if pair[0] else pair[1]))


@given(HOST, HOST, NAME, st.sampled_from([443, 80]), st.sampled_from([443, 80]))
def test_a_right_to_hosts_covers_no_name_that_it_does_not_match(
    right: HostPattern, route: HostPattern, name: str, granted: int, port: int
) -> None:
    """If it covers the route, then every name the route serves is a name of the right."""

    def serves(pattern: HostPattern) -> bool:
        return name.partition(".")[2] == pattern.text[2:] if pattern.wildcard else name == pattern.text

    covers = HostRight(right, granted).covers(route, port)
    assert not covers or (granted == port and (not serves(route) or serves(right)))
    assert covers or granted != port or right != route


TEXTS = st.lists(st.one_of(SEGMENT, st.just("**"), st.just("")), min_size=1, max_size=4)


@given(TEXTS, TEXTS, st.lists(st.text("ab", max_size=2), min_size=1, max_size=5))
def test_patterns_that_match_one_path_overlap(one: list[str], other: list[str], path: list[str]) -> None:
    """Never a no too many: with it a route could take requests from another."""
    try:
        left, right = parse_pattern("/" + "/".join(one)), parse_pattern("/" + "/".join(other))
    except ValueError:
        return
    text = "/" + "/".join(path)
    if left.matches(text) and right.matches(text):
        assert may_overlap(left, right)
        assert may_overlap(right, left)


@pytest.mark.parametrize(
    ("one", "other", "answer"),
    [
        ("/v1/**", "/v1", True),
        ("/v1/**", "/v2/**", False),
        ("/v1/*", "/v1/a/b", False),
        ("/**/admin", "/v1/**", True),
        ("/a*/x", "/b*/x", False),
        ("/*.json", "/a*", True),
        ("/*", "/", False),
        ("/**/a", "/**/b", False),
        ("/**", "/anything/at/all", True),
    ],
)
def test_overlap(one: str, other: str, answer: bool) -> None:
    assert may_overlap(parse_pattern(one), parse_pattern(other)) is answer
    assert may_overlap(parse_pattern(other), parse_pattern(one)) is answer


def test_requests_of_a_listener_that_another_file_serves(folder: Path) -> None:
    """The hosts differ, and the listener is one: the more specific route of the other file would be chosen."""
    platform = PLATFORM + '  local: {match: {host: api.ads.test, paths: ["/v1/**"]}, listener: l, allow: pay-web}\n'
    (folder / "platform.yaml").write_text(platform)
    (folder / "pay.yaml").write_text(ROUTE + "    listener: LISTENER\n".replace("LISTENER", "l"))
    files = [folder / "platform.yaml", folder / "pay.yaml"]
    with pytest.raises(FaultError) as error:
        load_policy(files, rights={files[1]: MAY})
    (fault,) = error.value.faults
    assert "route 'pay' could take requests of workload 'pay-web' from route 'local'" in str(fault)
    (folder / "pay.yaml").write_text(ROUTE + "    listener: other\n")
    assert load_policy(files, rights={files[1]: MAY}).routes["pay"].listeners == ("other",)
