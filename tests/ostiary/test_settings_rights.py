"""`policies:` of ostiary.yaml: entries with rights of their own, and every fault of `may`."""

from __future__ import annotations

from pathlib import Path

import pytest

from ostiary.settings import load_all, load_settings
from policies import FaultError, Rights
from policies.model import HostPattern
from policies.rights import HostRight, SecretRight

BASE = """listen: [{name: sidecar, bind: "127.0.0.1:0", workload: w}]
ca: {dir: ca}
secrets_file: s.sealed
secrets_key: {file: s.key}
audit: {sinks: [{file: audit.jsonl}]}
vars: {env: prod}
"""
POLICY = "workloads: {w: {proofs: {any: true}}}\nroutes: {r: {match: {host: a.test}, allow: w}}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(POLICY)
    (tmp_path / "pay").mkdir()
    (tmp_path / "pay" / "a.yaml").write_text("routes: {p: {match: {host: p.test}, allow: w}}\n")
    return tmp_path


def rights(folder: Path, may: str) -> Rights | None:
    (folder / "ostiary.yaml").write_text(f"{BASE}policies: [base.yaml, {{files: pay/*.yaml, may: {may}}}]\n")
    settings = load_settings(Path("ostiary.yaml"), {})
    assert settings.policies[0].rights is None
    return settings.policies[1].rights


def faults(folder: Path, policies: str) -> list[str]:
    (folder / "ostiary.yaml").write_text(f"{BASE}policies: {policies}\n")
    with pytest.raises(FaultError) as error:
        load_all(Path("ostiary.yaml"), {})
    return [str(fault) for fault in error.value.faults]


def test_everything_that_may_says(folder: Path) -> None:
    found = rights(
        folder,
        "{define: [routes, credentials, scrub: none, tls.ca_file], hosts: [API.stripe.com., '*.pay.test:8443', '[::1]:80', 10.0.0.1], "
        "secrets: ['secret/${env}/pay/**', {namespace: /team-a/, path: kv/*}], workloads: [pay-*, w]}",
    )
    assert found is not None
    assert str(found.place) == "ostiary.yaml:7:43"
    assert found.define == {"routes", "credentials", "scrub: none", "tls.ca_file"}
    assert found.hosts == (
        HostRight(HostPattern("api.stripe.com"), 443),
        HostRight(HostPattern("*.pay.test"), 8443),
        HostRight(HostPattern("::1"), 80),
        HostRight(HostPattern("10.0.0.1"), 443),
    )
    assert found.secrets == (SecretRight(("secret", "prod", "pay", "**")), SecretRight(("kv", "*"), "team-a"))
    assert found.workloads == ("pay-*", "w")


def test_what_is_left_out_is_not_granted(folder: Path) -> None:
    found = rights(folder, "{define: scrub_none}")
    assert found is not None
    assert found == Rights(found.place, frozenset({"scrub: none"}))


def test_files_without_may_write_everything(folder: Path) -> None:
    (folder / "ostiary.yaml").write_text(f"{BASE}policies: {{files: [base.yaml, pay/*.yaml]}}\n")
    settings, policy = load_all(Path("ostiary.yaml"), {})
    assert [source.rights for source in settings.policies] == [None, None]
    assert set(policy.routes) == {"r", "p"}


def test_every_fault_of_may_is_told(folder: Path) -> None:
    found = faults(
        folder,
        """
  - [base.yaml]
  - {may: {define: routes}}
  - {files: base.yaml, may: {}, mey: {}}
  - {files: base.yaml, may: all}
  - files: [base.yaml, pay/*.yaml]
    may:
      define: [route, {a: b, c: d}, "everything"]
      hosts: ["https://a.test", "a.test:99999", "*"]
      secrets: ["**", "secret", "sec*/x", "secret/../x", "secret/a**", "secret/${nope}/x", {path: a/b}, {namespace: "a*", path: a/b}]
      workloads: ["pay-?", "!x"]
      host: a
""",
    )
    wanted = [
        "ostiary.yaml:8:5: policies holds file names, not a list (write pay/*.yaml or {files: …, may: …})",
        "ostiary.yaml:9:5: an entry of policies needs 'files' (add files: …)",
        "ostiary.yaml:10:29: may needs 'define' (add define: …)",
        "ostiary.yaml:10:33: unknown key 'mey' in an entry of policies (did you mean 'may'?)",
        "ostiary.yaml:11:29: may must be a mapping, not a scalar",
        "ostiary.yaml:14:16: 'route' is nothing that a policy defines (did you mean 'routes'?)",
        "ostiary.yaml:14:23: 'define' of may must hold scalars, not a mapping",
        "ostiary.yaml:14:37: 'everything' is nothing that a policy defines (known here: default, workloads,",
        "ostiary.yaml:15:15: 'https://a.test' is a URL, not a host",
        "ostiary.yaml:15:33: 'a.test:99999' holds no port (ports go up to 65535)",
        "ostiary.yaml:15:49: '*': a wildcard stands for exactly one label, in front",
        "ostiary.yaml:16:17: '**' does not spell the mount and something in it (write secret/pay/**)",
        "ostiary.yaml:16:23: 'secret' does not spell the mount",
        "ostiary.yaml:16:33: 'sec*/x' does not spell the mount",
        "ostiary.yaml:16:43: 'secret/../x' is no pattern of secrets",
        "ostiary.yaml:16:58: 'secret/a**' is no pattern of secrets (write secret/pay/**; * stands inside one segment)",
        "ostiary.yaml:16:72: variable 'nope' is not defined",
        "ostiary.yaml:16:92: a secret of may needs 'namespace'",
        "ostiary.yaml:16:117: 'a*' is no namespace (a namespace is spelled out)",
        "ostiary.yaml:17:19: 'pay-?' is no pattern of workloads (write names, with * for any text: pay-*)",
        "ostiary.yaml:17:28: '!x' is no pattern of workloads",
        "ostiary.yaml:18:7: unknown key 'host' in may (did you mean 'hosts'?)",
    ]
    for beginning in wanted:
        assert any(fault.startswith(beginning) for fault in found), (beginning, found)


def test_a_violation_is_told_with_what_limits_it(folder: Path) -> None:
    assert faults(
        folder,
        "[base.yaml, {files: pay/*.yaml, may: {define: [routes], hosts: [q.test], workloads: [pay-*]}}]",
    ) == [
        "pay/a.yaml:1:28: no route of this file may name p.test (add 'p.test' to hosts of may at ostiary.yaml:7:43)",
        "pay/a.yaml:1:44: this file may not name workload 'w' (add 'w' to workloads of may at ostiary.yaml:7:43)",
    ]


def test_the_environment_cannot_widen_rights(folder: Path) -> None:
    (folder / "ostiary.yaml").write_text(BASE + "policies: [base.yaml]\n")
    for variable in ("OSTIARY_POLICIES__FILES", "OSTIARY_MAY__DEFINE", "OSTIARY_MAY__HOSTS"):
        with pytest.raises(FaultError, match="names no setting that can be overridden"):
            load_settings(Path("ostiary.yaml"), {variable: "x"})
