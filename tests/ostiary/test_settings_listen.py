"""`listen:` of reverse and TLS listeners: what it means, and every fault of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ostiary.settings import Settings, load_all
from policies import FaultError
from tests.harness.pki import Pki

REST = """
ca: {dir: ca}
secrets_file: s.sealed
secrets_key: {file: s.key}
audit: {sinks: [{file: audit.jsonl}]}
policies: [p.yaml]
"""
POLICY = "workloads: {w: {proofs: {any: true}}}\nroutes: {r: {match: {host: a.test}, listener: LISTENER, allow: w}}\n"


def load(folder: Path, listen: str, listener: str = "back") -> Settings:
    (folder / "p.yaml").write_text(POLICY.replace("LISTENER", listener))
    (folder / "ostiary.yaml").write_text(f"listen: [{listen}]{REST}")
    return load_all(folder / "ostiary.yaml", {})[0]


def faults(folder: Path, listen: str, listener: str = "back") -> list[str]:
    with pytest.raises(FaultError) as error:
        load(folder, listen, listener)
    return [
        str(fault).partition("ostiary.yaml:")[2] or str(fault).rpartition("p.yaml:")[2] for fault in error.value.faults
    ]


def test_what_it_means(tmp_path: Path, pki: Pki) -> None:
    good = pki.certificate("gw.test")
    (tmp_path / "tls.crt").write_bytes(good.read_bytes())
    settings = load(
        tmp_path,
        '{name: back, bind: "127.0.0.1:0", mode: reverse, workload: w, hosts: [GW.test, "gw.test:9001", "[::1]:80"], tls: {cert: tls.crt, key: tls.crt}}, {name: f, bind: "127.0.0.1:0"}',
    )
    back, forward = settings.listen
    assert (back.mode, back.hosts) == ("reverse", (("gw.test", None), ("gw.test", 9001), ("::1", 80)))
    assert back.tls is not None
    assert back.tls.cert == tmp_path / "tls.crt"
    assert (forward.mode, forward.hosts, forward.tls) == ("forward", (), None)


BACK = '{name: back, bind: "127.0.0.1:0", mode: reverse, workload: w'


@pytest.mark.parametrize(
    ("listen", "listener", "wanted"),
    [
        (BACK + "}", "bakc", "names listener 'bakc', which the settings do not have (did you mean 'back'?)"),
        (BACK.replace("mode: reverse, ", "") + "}", "back", "'back', which is a forward listener"),
        (BACK.replace("mode: reverse", "hosts: a.test") + "}", "back", "hosts is for reverse listeners on TCP"),
        (BACK.replace("127.0.0.1:0", "unix:s") + ", hosts: a.test}", "back", "hosts is for reverse listeners on TCP"),
        (BACK + ', hosts: ["*.a.test"]}', "back", "'*.a.test' is no host"),
        (BACK + ', hosts: ["a.test:99999"]}', "back", "'a.test:99999' is no host"),
        (BACK + ', hosts: ["http://a.test"]}', "back", "is no host"),
        (BACK + ", tls: {cert: no.pem, key: no.pem}}", "back", "listener 'back': no.pem cannot be read"),
        (BACK + ", tls: {cert: a.pem}}", "back", "tls of listener back needs 'key'"),
        (BACK + ", tls: {cert: a.pem, key: other.pem}}", "back", "is not the key of"),
        (BACK + ", tls: {cert: a.pem, key: a.pem, client_ca: a.pem}}", "back", "'client_ca' is not built yet: client certificates as proof come later"),
        (BACK.replace("127.0.0.1:0", "unix:s") + ", tls: {cert: a.pem, key: a.pem}}", "back", "a Unix socket needs no TLS"),
        (BACK + ", tls: a.pem}", "back", "tls of listener back must be a mapping"),
    ],
)  # fmt: skip
def test_faults(tmp_path: Path, pki: Pki, listen: str, listener: str, wanted: str) -> None:
    for name in ("a.pem", "other.pem"):
        (tmp_path / name).write_bytes(pki.certificate("gw.test").read_bytes())
    found = [fault.replace(f"{tmp_path}/", "") for fault in faults(tmp_path, listen, listener)]
    assert any(wanted in fault for fault in found), found
