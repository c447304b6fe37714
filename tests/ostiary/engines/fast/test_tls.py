"""TLS of the fast lane: contexts that are renewed, upstreams that are always verified (U7)."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509

from addons.client_certificate import ClientCertificate, pinned, read, spki_sha256
from ostiary.ca import LeafStore, load_or_create
from ostiary.engines.fast.pins import NotPinned, PinnedRecords, verified_chain, verified_natively
from ostiary.engines.fast.tls import (
    CACHED_CONTEXTS,
    CONTEXT_LIFE_S,
    CallerContexts,
    UpstreamContexts,
)
from ostiary.engines.mitm.dialling import TlsTerms
from tests.harness.pki import Pki
from vault.secret import Secret


class Clock:
    def __init__(self) -> None:
        self.wall = dt.datetime.now(dt.UTC)
        self.monotonic_s = 100.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def contexts(tmp_path: Path, clock: Clock) -> CallerContexts:
    authority = load_or_create(tmp_path / "ca", clock.wall)
    return CallerContexts(LeafStore(authority, lambda: clock.wall), lambda: clock.monotonic_s)


def client_context(cafile: Path | None = None, alpn: tuple[str, ...] = ("http/1.1",)) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if cafile is not None:
        context.check_hostname = True
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cafile)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def shake(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str | None, session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """A handshake in memory; both ends of it."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=name, session=session)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    left = [one, other]
    for _ in range(20):
        for end in tuple(left):
            try:
                end.do_handshake()
                left.remove(end)
            except ssl.SSLWantReadError:
                pass
        if not left:
            break
    assert not left
    other.write(b"x")  # tickets of TLS 1.3 come with the first data
    assert one.read(1) == b"x"
    return one, other


# --- towards callers ---


def test_one_context_a_host(contexts: CallerContexts) -> None:
    assert contexts.of("a.test") is contexts.of("a.test")
    assert contexts.of("a.test") is not contexts.of("b.test")


def test_a_context_is_renewed_each_hour(contexts: CallerContexts, clock: Clock) -> None:
    first = contexts.of("a.test")
    clock.monotonic_s += CONTEXT_LIFE_S - 1
    assert contexts.of("a.test") is first
    clock.monotonic_s += 2
    assert contexts.of("a.test") is not first


def test_a_context_is_renewed_with_its_leaf(contexts: CallerContexts, clock: Clock, tmp_path: Path) -> None:
    clock.wall -= dt.timedelta(days=6)
    first = contexts.of("a.test")
    clock.wall += dt.timedelta(days=6)
    second = contexts.of("a.test")
    assert second is not first
    ca = tmp_path / "ca" / "ca.pem"
    seen = [shake(one, client_context(ca), "a.test")[0].getpeercert() for one in (first, second)]
    assert seen[0] is not None
    assert seen[1] is not None
    assert seen[0]["serialNumber"] != seen[1]["serialNumber"]


def test_contexts_are_bounded(contexts: CallerContexts) -> None:
    for number in range(CACHED_CONTEXTS + 5):
        contexts.of(f"h{number}.test")
    assert len(contexts._contexts) == CACHED_CONTEXTS
    assert (f"h{CACHED_CONTEXTS + 4}.test", False) in contexts._contexts
    assert ("h0.test", False) not in contexts._contexts


def test_the_leaf_is_for_its_host_and_strictly_valid(contexts: CallerContexts, tmp_path: Path) -> None:
    ca = tmp_path / "ca" / "ca.pem"
    shake(contexts.of("a.test"), client_context(ca), "a.test")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(contexts.of("a.test"), client_context(ca), "b.test")
    shake(contexts.of("127.0.0.1"), client_context(ca), "127.0.0.1")


@pytest.mark.parametrize("name", ["a.test", "other.test", None])
def test_the_name_in_the_client_hello_is_told_once(contexts: CallerContexts, name: str | None) -> None:
    _, server = shake(contexts.of("a.test"), client_context(), name)
    assert contexts.server_name(server) == name
    assert contexts.server_name(server) is None


def test_names_die_with_their_sessions(contexts: CallerContexts) -> None:
    for _ in range(5):
        shake(contexts.of("a.test"), client_context(), "a.test")
    assert len(contexts._names) == 0


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (("http/1.1",), "http/1.1"),
        (("h2", "http/1.1"), "http/1.1"),
        (("h2",), "h2"),
        ((), None),
        (("spdy/3", "http/1.1"), "http/1.1"),
    ],
)
def test_http1_is_preferred(contexts: CallerContexts, offered: tuple[str, ...], chosen: str | None) -> None:
    _, server = shake(contexts.of("a.test"), client_context(alpn=offered), "a.test")
    assert server.selected_alpn_protocol() == chosen


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_versions_are_refused(contexts: CallerContexts, version: ssl.TLSVersion) -> None:
    client = client_context()
    client.set_ciphers("ALL:@SECLEVEL=0")
    client.minimum_version = client.maximum_version = version
    with pytest.raises(ssl.SSLError):
        shake(contexts.of("a.test"), client, "a.test")


def test_weak_ciphers_are_refused(contexts: CallerContexts) -> None:
    client = client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers("ECDHE-ECDSA-AES128-SHA:AES128-SHA")
    with pytest.raises(ssl.SSLError):
        shake(contexts.of("a.test"), client, "a.test")


def test_a_session_is_resumed_by_its_own_context_alone(contexts: CallerContexts, clock: Clock) -> None:
    client = client_context()
    first, _ = shake(contexts.of("a.test"), client, "a.test")
    assert not first.session_reused
    again, server = shake(contexts.of("a.test"), client, "a.test", first.session)
    assert again.session_reused
    assert contexts.server_name(server) == "a.test"
    elsewhere, _ = shake(contexts.of("b.test"), client, "b.test", first.session)
    assert not elsewhere.session_reused
    clock.monotonic_s += CONTEXT_LIFE_S + 1
    later, _ = shake(contexts.of("a.test"), client, "a.test", again.session)
    assert not later.session_reused


# --- towards upstreams ---


def refusal_of(context: ssl.SSLContext, server: ssl.SSLContext, name: str) -> str | None:
    """Why TLS with this server is refused; None where it is accepted."""
    left, right = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(right, server_side=True).close()
        except OSError:
            right.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        context.wrap_socket(left, server_hostname=name).close()
    except ssl.SSLError as error:
        return str(getattr(error, "verify_message", "") or error.reason)
    finally:
        left.close()
        thread.join(5)
    return None


@pytest.fixture
def roots(pki: Pki) -> ssl.SSLContext:
    return UpstreamContexts(pki.ca_file).of(None)


def test_u7_a_good_upstream(roots: ssl.SSLContext, pki: Pki) -> None:
    assert refusal_of(roots, pki.context("api.test", "127.0.0.1", "::1"), "api.test") is None
    assert refusal_of(roots, pki.context("api.test", "127.0.0.1"), "127.0.0.1") is None
    assert refusal_of(roots, pki.context("api.test", "::1"), "::1") is None
    assert refusal_of(roots, pki.context("*.api.test"), "a.api.test") is None


@pytest.mark.parametrize(
    ("names", "asked"),
    [
        (("other.test",), "api.test"),
        (("api.test",), "127.0.0.1"),
        (("127.0.0.2",), "127.0.0.1"),
        (("*.api.test",), "api.test"),
        (("*.api.test",), "a.b.api.test"),
        (("*.test",), "127.0.0.1"),
    ],
)
def test_u7_a_certificate_for_another_name(roots: ssl.SSLContext, pki: Pki, names: tuple[str, ...], asked: str) -> None:
    reason = refusal_of(roots, pki.context(*names), asked)
    assert reason is not None
    assert "mismatch" in reason or "not valid for" in reason


def test_u7_expired_self_signed_and_of_another_ca(roots: ssl.SSLContext, pki: Pki, tmp_path: Path) -> None:
    other = Pki.make(tmp_path / "other")
    assert "expired" in (refusal_of(roots, pki.context("api.test", expired=True), "api.test") or "")
    assert "self-signed" in (refusal_of(roots, pki.context("api.test", self_signed=True), "api.test") or "")
    assert "issuer" in (refusal_of(roots, other.context("api.test"), "api.test") or "")


def test_roots_of_a_route_count_for_that_route_alone(pki: Pki, tmp_path: Path) -> None:
    other = Pki.make(tmp_path / "other")
    contexts = UpstreamContexts(pki.ca_file)
    assert contexts.of(None) is contexts.of(None)
    assert refusal_of(contexts.of(other.ca_file), other.context("api.test"), "api.test") is None
    assert refusal_of(contexts.of(None), other.context("api.test"), "api.test") is not None


def test_a_context_is_its_certificate_s(pki: Pki, tmp_path: Path) -> None:
    """Another version, another certificate or other roots: another context."""
    contexts = UpstreamContexts(pki.ca_file)
    one, two = (read(Secret(cert), Secret(key), "cert") for cert, key in map(pki.client, ("one", "two")))
    assert isinstance(one, ClientCertificate)
    assert isinstance(two, ClientCertificate)
    first = contexts.of(None, TlsTerms("a@1"), one)
    assert contexts.of(None, TlsTerms("a@1"), one) is first
    assert len({id(context) for context in (
        first, contexts.of(None), contexts.of(None, TlsTerms("a@2"), two), contexts.of(None, TlsTerms("a@1", roots="x"), one),
    )}) == 4  # fmt: skip
    assert contexts.of(None, TlsTerms(pins=frozenset({b"pin"}))) is not contexts.of(None)
    asking = pki.asking("api.test")
    assert refusal_of(first, asking, "api.test") is None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_pins_are_looked_for_in_the_verified_chain(pki: Pki, version: ssl.TLSVersion) -> None:
    contexts = UpstreamContexts(pki.ca_file)
    right, wrong = (TlsTerms(pins=frozenset({pin})) for pin in (spki_sha256(pki.cert), b"x" * 32))
    server = pki.context("api.test")
    server.maximum_version = version
    session, _ = shake(server, contexts.of(None, right), "api.test")
    assert isinstance(session, PinnedRecords)
    assert session.proven
    # As Python 3.12 is asked for the same.
    assert verified_natively(session) == verified_chain(session)
    assert pinned([x509.load_der_x509_certificate(der) for der in verified_chain(session)], right.pins)
    with pytest.raises(NotPinned):
        shake(server, contexts.of(None, wrong), "api.test")


def test_roots_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        UpstreamContexts(tmp_path / "missing.pem").of(None)
    contexts = UpstreamContexts(None)
    with pytest.raises(OSError):
        contexts.of(tmp_path / "missing.pem")
    garbage = tmp_path / "garbage.pem"
    garbage.write_bytes(b"garbage")
    with pytest.raises(ssl.SSLError):
        contexts.of(garbage)
    assert contexts.of(None).verify_mode is ssl.CERT_REQUIRED


def test_upstream_contexts_verify_and_offer_http1_alone(roots: ssl.SSLContext, pki: Pki) -> None:
    assert roots.check_hostname
    assert roots.verify_mode is ssl.CERT_REQUIRED
    assert roots.minimum_version is ssl.TLSVersion.TLSv1_2
    assert not roots.hostname_checks_common_name
    with pytest.raises(ValueError, match="check_hostname"):
        roots.verify_mode = ssl.CERT_NONE
    server = pki.context("api.test", alpn=("h2", "http/1.1"))
    _, other = shake(server, roots, "api.test")
    assert other.selected_alpn_protocol() == "http/1.1"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_upstreams_are_refused(roots: ssl.SSLContext, pki: Pki) -> None:
    server = pki.context("api.test")
    server.set_ciphers("ALL:@SECLEVEL=0")
    server.minimum_version = server.maximum_version = ssl.TLSVersion.TLSv1_1
    assert refusal_of(roots, server, "api.test") is not None
    server = pki.context("api.test")
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    server.set_ciphers("ECDHE-ECDSA-AES128-SHA")
    assert refusal_of(roots, server, "api.test") is not None
