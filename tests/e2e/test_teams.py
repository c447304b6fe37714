"""Files of several teams in the real process: a reload that oversteps changes nothing."""

from __future__ import annotations

from collections.abc import Callable

from tests.harness.canaries import canary
from tests.harness.client import Raw
from tests.harness.ostiary_process import Ostiary, command
from tests.harness.upstream import Upstream

PLATFORM = """
workloads: {pay-web: {proofs: [{any: true}]}, ads-web: {proofs: [{any: true}]}}
routes: {ads: {match: {host: other.test}, allow: ads-web}}
"""
PAY = """
routes:
  pay:
    match: {host: api.test}
    allow: pay-web
    secret: {path: secret/pay/key, field: k, ttl: 0}
    inject: {bearer: "{secret}"}
"""
ENTRY = 'policies: [policy.yaml, {files: "pay/*.yaml", may: {define: [routes], hosts: [api.test], secrets: ["secret/pay/**"], workloads: ["pay-*"]}}]'


def team(ostiary: Callable[..., Ostiary], api: Upstream, **secrets: str) -> Ostiary:
    proxy = ostiary(
        PLATFORM,
        start=False,
        listen='[{name: sidecar, bind: "127.0.0.1:0", workload: pay-web}, {name: ads, bind: "127.0.0.1:0", workload: ads-web}]',
        upstreams={"api.test:443": api.port, "other.test:443": api.port},
        secrets={f"secret/{name}/key": {"k": value} for name, value in secrets.items()},
    )
    path = proxy.folder / "ostiary.yaml"
    path.write_text(path.read_text().replace("policies: [policy.yaml]", ENTRY))
    (proxy.folder / "pay").mkdir()
    (proxy.folder / "pay" / "pay.yaml").write_text(PAY)
    return proxy


def ask(proxy: Ostiary, host: str = "api.test", path: str = "/") -> int:
    with Raw(proxy.address("sidecar")) as raw:
        answer = raw.connect(f"{host}:443")
        if answer.status != 200:
            return answer.status
        raw.tls(proxy.ca, host)
        return raw.request(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").status


def test_a_reload_that_oversteps_changes_nothing(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    own, theirs = canary(), canary()
    api = upstream(names=("api.test", "other.test"))
    proxy = team(ostiary, api, pay=own, ads=theirs).run()
    assert ask(proxy) == 200
    # A file of the team is changed, and one is dropped into its folder.
    (proxy.folder / "pay" / "pay.yaml").write_text(PAY.replace("secret/pay/key", "secret/ads/key"))
    (proxy.folder / "pay" / "new.yaml").write_text("routes: {more: {match: {host: other.test}, allow: pay-web}}\n")
    proxy.reload()
    rejected = proxy.wait_audit("policy.rejected")
    assert rejected[0]["reason"].startswith("pay/new.yaml:1:31: no route of this file may name other.test (add")
    assert "pay/pay.yaml:6:20: this file may not read secret 'secret/ads/key' (add" in proxy.stderr.decode()
    assert ask(proxy) == 200
    assert ask(proxy, "other.test") == 403
    assert [seen.get("authorization") for seen in api.requests] == [f"Bearer {own}"] * 2
    # What it may write counts from the next reload on, in a new file too.
    (proxy.folder / "pay" / "pay.yaml").write_text(PAY.replace("{host: api.test}", "{host: api.test, paths: [/v1]}"))
    (proxy.folder / "pay" / "new.yaml").write_text(
        "routes: {more: {match: {host: api.test, paths: [/v2]}, allow: pay-web}}\n"
    )
    proxy.reload()
    assert len(proxy.audit("policy.loaded")) == 2
    assert ask(proxy, path="/v2") == 200
    assert api.requests[-1].get("authorization") is None
    assert ask(proxy, path="/v3") == 403


def test_check_tells_the_faults_of_every_team(
    ostiary: Callable[..., Ostiary], upstream: Callable[..., Upstream]
) -> None:
    proxy = team(ostiary, upstream())
    done = command("check", cwd=proxy.folder)
    assert done.returncode == 0, done.stderr
    (proxy.folder / "pay" / "pay.yaml").write_text(PAY.replace("pay-web", "ads-web"))
    (proxy.folder / "policy.yaml").write_text(PLATFORM.replace("allow: ads-web", "allow: ads-wob"))
    done = command("check", cwd=proxy.folder)
    assert done.returncode == 78
    assert [line.partition(" (")[0] for line in done.stderr.decode().splitlines()] == [
        "pay/pay.yaml:5:12: this file may not name workload 'ads-web'",
        "policy.yaml:3:50: workload 'ads-wob' is not defined",
        "2 faults",
    ]
