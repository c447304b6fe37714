"""The authority of a request: the one host and port that CONNECT, SNI and Host must agree on.

Owns reading an authority from untrusted text (RFC 3986 section 3.2, RFC 9110 section 7.2) and comparing what the caller
said in three places. Nothing is resolved here. Spellings that other software reads as an address (`0x7f.1`,
`2130706433`, `127.1`) are refused instead of understood.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from addons.exchange import Authority, Tunnel
from addons.head import RequestHead
from addons.refusal import Code, Refusal

# RFC 1123 section 2.1 host names as A-labels; underscores because real API hosts have them.
_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
# The last label of a name that inet_aton would take for a number: RFC 6943 section 3.1.1 tells why this must never be
# guessed.
_NUMERIC_END: Final = re.compile(r"(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?")
_AUTHORITY: Final = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:@/?#\s%\\]+))(?::(?P<port>[0-9]{1,5}))?")


def _bad(what: str) -> Refusal:
    return Refusal(Code.BAD_REQUEST, what, close=True)


def read_host(text: str) -> str:
    """Canonical host: lower-case, no trailing dot, IP literals in their shortest form, international names as A-labels.

    Raises:
        Refusal: `bad_request`; the text is no host.
    """
    if not text.isascii():
        try:
            text = text.encode("idna").decode("ascii")
        except UnicodeError:
            raise _bad("The host is not a valid internationalised name.") from None
    if ":" in text:
        if "%" in text:
            raise _bad("An address with a zone is no host.")
        try:
            return ipaddress.IPv6Address(text).compressed
        except ValueError:
            raise _bad("The host is not a valid IPv6 address.") from None
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        pass
    if len(text) > 254 or not _NAME.fullmatch(text):
        raise _bad("The host is not a valid name.")
    host = text.lower().removesuffix(".")
    if _NUMERIC_END.fullmatch(host.rpartition(".")[2]):
        raise _bad("The host looks like an address in an ambiguous spelling; write a.b.c.d.")
    return host


def read_authority(text: str, *, default_port: int | None) -> Authority:
    """Reads `host[:port]`.

    Args:
        text: as the caller sent it.
        default_port: used where none is written; None makes the port mandatory, as in CONNECT (RFC 9110 section 9.3.6).

    Raises:
        Refusal: `bad_request`.
    """
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        raise _bad("The authority is not of the form host:port.")
    host = read_host(found["v6"] or found["host"])
    if found["port"] is None:
        if default_port is None:
            raise _bad("The authority must name a port.")
        return Authority(host, default_port)
    port = int(found["port"])
    if not 0 < port < 65536:
        raise _bad("The port lies outside 1 to 65535.")
    return Authority(host, port)


def connect_authority(target: bytes, head: RequestHead) -> Authority:
    """The authority of a CONNECT; a Host field, where sent, must name the same one (G05).

    Raises:
        Refusal: `bad_request` or `authority_mismatch`.
    """
    authority = read_authority(target.decode("ascii", "replace"), default_port=None)
    hosts = head.values(b"host")
    if len(hosts) > 1:
        raise _bad("A request must have one Host field.")
    for host in hosts:
        if read_authority(host.decode("ascii", "replace"), default_port=authority.port) != authority:
            raise Refusal(Code.AUTHORITY_MISMATCH, "The Host field names another authority than CONNECT.", close=True)
    return authority


def plain_authority(scheme: bytes, written: str, head: RequestHead) -> Authority:
    """The authority of an absolute-form request; a Host field must name the same one (RFC 9112 section 3.2.2).

    Args:
        scheme: of the request target.
        written: `host:port` of the request target.
        head: the request.

    Raises:
        Refusal: `bad_request` or `authority_mismatch`.
    """
    if scheme.lower() != b"http":
        raise _bad("https:// is reached by CONNECT (set HTTPS_PROXY); only http:// is asked for in one request.")
    named = read_authority(written, default_port=80)
    hosts = head.values(b"host")
    if len(hosts) > 1:
        raise _bad("A request must have one Host field.")
    for host in hosts:
        if read_authority(host.decode("ascii", "replace"), default_port=80) != named:
            raise Refusal(
                Code.AUTHORITY_MISMATCH, "The Host field names another authority than the target.", close=True
            )
    return Authority(named.host, named.port, cleartext=True)


def bind(tunnel: Tunnel, head: RequestHead, *, pseudo_authority: str | None) -> Authority:
    """Checks that a request inside a tunnel names the tunnel's own authority in every place where it names one.

    Args:
        tunnel: the accepted CONNECT, SNI included.
        head: the inner request.
        pseudo_authority: `:authority` of an HTTP/2 request, None for HTTP/1.

    Returns:
        The tunnel's authority, the only one later stages may use.

    Raises:
        Refusal: `authority_mismatch` or `bad_request`.
    """
    bound = tunnel.authority
    if tunnel.sni is not None and tunnel.sni.lower().removesuffix(".") != bound.host:
        raise Refusal(Code.AUTHORITY_MISMATCH, "The TLS server name is not the host of CONNECT.", close=True)
    hosts = head.values(b"host")
    if len(hosts) > 1:
        raise _bad("A request must have one Host field.")
    if hosts and not pseudo_authority and hosts[0] == bound.host_header:
        return bound  # as nearly every client writes it
    named = [host.decode("ascii", "replace") for host in hosts]
    if pseudo_authority:
        named.append(pseudo_authority)
    if not named:
        raise _bad("The request names no host.")
    for text in named:
        if read_authority(text, default_port=443) != bound:
            raise Refusal(Code.AUTHORITY_MISMATCH, "The request names another authority than its tunnel.")
    return bound
