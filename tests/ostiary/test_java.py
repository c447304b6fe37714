"""The Java trust store and JAVA_TOOL_OPTIONS."""

from __future__ import annotations

import datetime as dt
import shutil
import subprocess
from pathlib import Path

import pytest

from ostiary.ca import load_or_create
from ostiary.environment import write_bundle
from ostiary.java import tool_options, write_trust_store


@pytest.mark.skipif(shutil.which("keytool") is None, reason="no JDK on this machine (keytool)")
def test_java_reads_every_root_without_a_password(tmp_path: Path) -> None:
    authority = load_or_create(tmp_path / "ca", dt.datetime.now(dt.UTC))
    bundle = write_bundle(tmp_path, authority.pem)
    store = write_trust_store(bundle)
    listed = subprocess.run(
        ["keytool", "-list", "-keystore", str(store), "-storepass", ""],
        capture_output=True, text=True, timeout=60, check=True, stdin=subprocess.DEVNULL,
    ).stdout  # fmt: skip
    entries = listed.count("trustedCertEntry")
    distinct = {part.split("-----END")[0] for part in bundle.read_text().split("-----BEGIN CERTIFICATE-----")[1:]}
    assert entries == len(distinct)


def test_the_store_is_written_again_when_the_bundle_changed(tmp_path: Path) -> None:
    first = load_or_create(tmp_path / "a", dt.datetime.now(dt.UTC))
    store = write_trust_store(write_bundle(tmp_path, first.pem))
    before = store.read_bytes()
    assert write_trust_store(tmp_path / "bundle.pem").stat().st_ino == store.stat().st_ino
    second = load_or_create(tmp_path / "b", dt.datetime.now(dt.UTC))
    assert write_trust_store(write_bundle(tmp_path, second.pem)).read_bytes() != before


def test_options_name_the_proxy_and_never_the_key() -> None:
    options = tool_options(
        "http://ostiary:ost_key@[::1]:8080", Path("/x y/trust.p12"), [".corp.test", "10.0.0.0/8", "::1"], ""
    )
    assert "-Dhttps.proxyHost=::1 -Dhttps.proxyPort=8080 -Dhttp.proxyHost=::1" in options
    assert "-Dhttp.nonProxyHosts=corp.test|*.corp.test|[::1]" in options
    assert '"-Djavax.net.ssl.trustStore=/x y/trust.p12"' in options
    assert "ost_key" not in options


def test_what_was_there_is_kept_and_ours_stands_once() -> None:
    once = tool_options("http://p:1", Path("/trust.p12"), [], "-Xmx64m -Dhttps.proxyHost=old")
    assert once.startswith("-Xmx64m -D")
    assert "old" not in once
    for store in (Path("/trust.p12"), Path("/a b/trust.p12")):
        once = tool_options("http://p:1", store, [], "'-Da=b c'")
        assert tool_options("http://p:1", store, [], once) == once
