"""TLS records read without the detour of `ssl`: the same bytes, and the same answers where there are none."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import pytest

from ostiary.engines.fast.records import Records
from tests.harness.pki import Pki


class Ends:
    """Two ends in memory: the first is ours."""

    def __init__(self, pki: Pki) -> None:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(pki.certificate("localhost"))
        server.sslobject_class = Records
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.load_verify_locations(pki.ca_file)
        self.wire, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ours = server.wrap_bio(self.wire, back, server_side=True)
        self.out = ssl.MemoryBIO()
        self.theirs = client.wrap_bio(back, self.out, server_hostname="localhost")
        for _ in range(3):
            for end in (self.theirs, self.ours):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
                self.pass_on()

    def pass_on(self, size: int = -1) -> None:
        """The wire carries so many bytes of what their end has written."""
        self.wire.write(self.out.read(size))


@pytest.fixture
def ends(tmp_path: Path) -> Ends:
    return Ends(Pki.make(tmp_path))


def test_what_is_there_is_read_and_then_more_is_wanted(ends: Ends) -> None:
    assert isinstance(ends.ours, Records)
    with pytest.raises(ssl.SSLWantReadError):
        ends.ours.read()
    ends.theirs.write(b"a" * 20_000)  # more than one record
    ends.pass_on()
    found = b""
    with pytest.raises(ssl.SSLWantReadError):
        while True:
            found += ends.ours.read(7_000)  # less than one: what is left is decrypted already
    assert found == b"a" * 20_000


def test_a_record_that_comes_in_pieces(ends: Ends) -> None:
    ends.theirs.write(b"whole")
    for _ in range(4):
        ends.pass_on(5)
        with pytest.raises(ssl.SSLWantReadError):
            ends.ours.read()
    ends.pass_on()
    into = bytearray(16)
    size: object = ends.ours.read(16, into)
    assert size == 5
    assert into[:5] == b"whole"


def test_the_end_is_told(ends: Ends) -> None:
    ends.theirs.write(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        ends.theirs.unwrap()
    ends.pass_on()
    assert ends.ours.read() == b"last"
    assert ends.ours.read() == b""


def test_a_wire_that_ends_without_a_word_is_no_end(ends: Ends) -> None:
    ends.wire.write_eof()
    with pytest.raises(ssl.SSLEOFError):
        ends.ours.read()


def test_both_directions(ends: Ends) -> None:
    assert ends.ours.write(b"answer") == 6
    assert ends.theirs.read() == b"answer"
