"""Checks of the environment that a client would have here, and of the proxy that it leads to."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import ssl
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from cryptography.hazmat.primitives import serialization

from ostiary.ca import CERT_FILE
from ostiary.certificate import read_certificate
from ostiary.doctor.finding import Finding, Setup
from ostiary.environment import ADDING, REPLACING, bypasses
from ostiary.settings.model import ListenSetting, TlsSetting

PROBED = "doctor.ostiary.invalid:443"
"""No policy routes it, and nobody can: RFC 2606 section 2 keeps the name from ever being one."""
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")
_EVAL = 'eval "$(ostiary env)"'


def _proxy(setup: Setup) -> SplitResult | None:
    text = setup.environ.get("HTTPS_PROXY") or setup.environ.get("https_proxy")
    if not text:
        return None
    return urlsplit(text if "://" in text else f"http://{text}")


def _address(split: SplitResult) -> tuple[str, int] | None:
    try:
        return (split.hostname, split.port or (443 if split.scheme == "https" else 80)) if split.hostname else None
    except ValueError:
        return None


def _forward(setup: Setup) -> list[ListenSetting]:
    """Forward listeners with a fixed TCP address."""
    settings, _ = setup.loaded
    return [one for one in settings.listen if one.mode == "forward" and one.bind.path is None and one.bind.port]


def _listeners(setup: Setup) -> list[tuple[str, int]]:
    return [(one.bind.host, one.bind.port) for one in _forward(setup)]


def _tls(setup: Setup, port: int) -> TlsSetting | None:
    """The certificate of our listener on this port, if it has one."""
    return next((one.tls for one in _forward(setup) if one.bind.port == port), None)


async def variables(setup: Setup) -> list[Finding]:
    """HTTPS_PROXY is set, in both spellings alike, and leads to a listener of ours."""
    upper, lower = setup.environ.get("HTTPS_PROXY"), setup.environ.get("https_proxy")
    split = _proxy(setup)
    if split is None:
        found = "HTTPS_PROXY is not set: a client started here goes past the proxy"
        return [Finding("env.proxy", "warn", found, f"in a client's shell: {_EVAL}")]
    # Neither value is shown: a proxy URL holds the caller key.
    if upper and lower and upper != lower:
        found = "HTTPS_PROXY and https_proxy differ: clients disagree about which they read"
        return [Finding("env.proxy", "fail", found, f"set both alike: {_EVAL}")]
    address = _address(split)
    if address is None or split.scheme not in {"http", "https"}:
        return [Finding("env.proxy", "fail", "HTTPS_PROXY is no proxy URL", f"set it anew: {_EVAL}")]
    listeners = _listeners(setup)
    speaks = "https" if _tls(setup, address[1]) is not None else "http"
    if split.scheme != speaks and address[1] in {port for _, port in listeners}:
        shown = {"http": "plain HTTP", "https": "TLS"}[speaks]
        found = f"HTTPS_PROXY is an {split.scheme}:// URL, and that listener speaks {shown}"
        return [Finding("env.proxy", "fail", found, f"write {speaks}:// before {address[0]}:{address[1]}")]
    if listeners and address[1] not in {port for _, port in listeners}:
        ours = ", ".join(f"{host}:{port}" for host, port in listeners)
        found = f"HTTPS_PROXY leads to {address[0]}:{address[1]}, where no listener of these settings is"
        return [Finding("env.proxy", "fail", found, f"the listeners are {ours}: {_EVAL}")]
    if not (upper and lower):
        name = "https_proxy" if upper else "HTTPS_PROXY"
        found = f"{name} is not set: some clients read only that spelling"
        return [Finding("env.proxy", "warn", found, f"set both: {_EVAL}")]
    return [Finding("env.proxy", "ok", f"HTTPS_PROXY leads to {address[0]}:{address[1]}")]


async def no_proxy(setup: Setup) -> list[Finding]:
    """No NO_PROXY entry takes a routed host past the proxy."""
    _, policy = setup.loaded
    bad: list[Finding] = []
    hosts = dict.fromkeys(host.text for route in policy.routes.values() for host in route.hosts)
    for name in ("NO_PROXY", "no_proxy"):
        for entry in (part.strip() for part in setup.environ.get(name, "").split(",")):
            hit = [host for host in hosts if entry and bypasses(entry, host)]
            if hit:
                found = f"{name} entry {entry!r} takes {', '.join(hit[:5])} past the proxy, without a credential"
                bad.append(Finding("env.no_proxy", "fail", found, f"take {entry} out of {name}"))
    return bad or [Finding("env.no_proxy", "ok", "no entry takes a routed host past the proxy")]


async def trusted(setup: Setup) -> list[Finding]:
    """Every CA variable that is set names a file that holds our CA."""
    settings, _ = setup.loaded
    # Compared as written: public bundles hold certificates that a strict parser refuses.
    ours = "".join(_PEM.findall((settings.ca_dir / CERT_FILE).read_text("latin-1"))[0].split())
    given = {name: setup.environ[name] for name in (*REPLACING, *ADDING) if setup.environ.get(name)}
    if _proxy(setup) is None:
        return [Finding("env.ca_trusted", "skip", "this is no client's environment: HTTPS_PROXY is not set")]
    if not given:
        found = "none of the CA variables is set: clients will not trust the proxy's certificates"
        return [Finding("env.ca_trusted", "fail", found, f"{_EVAL} sets {', '.join(REPLACING[:3])} and others")]
    bad: list[Finding] = []
    for path in dict.fromkeys(given.values()):
        names = [name for name, value in given.items() if value == path]
        named = f"{', '.join(names)} {'names' if len(names) == 1 else 'name'}"
        try:
            text = await asyncio.to_thread(Path(path).read_text, "latin-1")
        except OSError:
            text = ""
        held = {"".join(block.split()) for block in _PEM.findall(text)}
        if not held:
            bad.append(Finding("env.ca_trusted", "fail", f"{named} {path}, no file of certificates", _EVAL))
            continue
        if ours not in held:
            found = f"{named} {path}, which does not hold the CA {settings.ca_dir / CERT_FILE}"
            bad.append(Finding("env.ca_trusted", "fail", found, f"{_EVAL} writes a bundle that holds it, and names it"))
    missing = [name for name in REPLACING if name not in given]
    if not bad and missing:
        found = f"the CA is in {', '.join(given)}; {', '.join(missing)} are not set"
        return [Finding("env.ca_trusted", "warn", found, f"for every client: {_EVAL}")]
    return bad or [Finding("env.ca_trusted", "ok", f"{len(given)} CA variables hold the CA")]


class OtherCertificate(Exception):
    """What answers shows a certificate that is not the listener's: it is given no key."""


def _secured(setup: Setup, port: int) -> tuple[ssl.SSLContext | None, bytes | None]:
    """How the proxy at this port is spoken to. One of ours is known by the very certificate in its settings, whoever has
    signed it; any other is verified as a client of this environment would.
    """
    ours, split = _tls(setup, port), _proxy(setup)
    if ours is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        leaf = read_certificate(ours.cert, ours.key).leaf
        return context, leaf.public_bytes(serialization.Encoding.DER)
    if split is not None and split.scheme == "https":
        return ssl.create_default_context(cafile=setup.environ.get("SSL_CERT_FILE") or None), None
    return None, None


async def _connect(setup: Setup, address: tuple[str, int], key: str | None) -> tuple[int, str] | None:
    """Status and refusal code of a CONNECT that no policy can allow; None where the answer is not Ostiary's.

    Raises:
        OSError, TimeoutError: there is no answer.
        OtherCertificate: the listener shows another certificate than its settings name.
    """
    async with asyncio.timeout(setup.deadline_s):
        context, leaf = await asyncio.to_thread(_secured, setup, address[1])
        reader, writer = await asyncio.open_connection(*address, ssl=context)
        try:
            shown = writer.get_extra_info("ssl_object")
            if leaf is not None and shown.getpeercert(binary_form=True) != leaf:
                raise OtherCertificate
            proof = b""
            if key is not None:
                basic = base64.b64encode(b"ostiary:" + key.encode())
                proof = b"Proxy-Authorization: Basic " + basic + b"\r\n"
            named = PROBED.encode()
            writer.write(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (named, named, proof))
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return None
        finally:
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()
    lines = head.split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    status = lines[0].split(" ")[1:2]
    if "x-ostiary-error" not in fields or not status or not status[0].isdigit():
        return None
    return int(status[0]), fields["x-ostiary-error"]


def _dialled(setup: Setup) -> tuple[str, int] | None:
    split = _proxy(setup)
    address = _address(split) if split is not None else None
    if address is None:
        address = next(iter(_listeners(setup)), None)
    wild = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - dialled, not bound
    return (wild.get(address[0], address[0]), address[1]) if address is not None else None


async def reachable(setup: Setup) -> list[Finding]:
    """Something answers at the proxy's address, and it is Ostiary."""
    address = _dialled(setup)
    if address is None:
        return [Finding("proxy.reachable", "skip", "no listener has a fixed TCP address, and HTTPS_PROXY is not set")]
    shown = f"{address[0]}:{address[1]}"
    try:
        answer = await _connect(setup, address, None)
    except ConnectionRefusedError:
        mend = "start it: ostiary run"
        return [Finding("proxy.reachable", "fail", f"nothing listens on {shown}", mend)]
    except OtherCertificate:
        found = f"{shown} shows another certificate than the one of its settings"
        mend = "is it this proxy? if so, reload it (SIGHUP): it has kept an older one, and its log says why"
        return [Finding("proxy.reachable", "fail", found, mend)]
    except OSError as error:  # TimeoutError is one
        found = f"{shown} does not answer as a proxy ({type(error).__name__})"
        return [Finding("proxy.reachable", "fail", found, f"is the port of {shown} taken, or a firewall between?")]
    if answer is None:
        found = f"port {address[1]} is taken: what answers on {shown} is not Ostiary"
        return [Finding("proxy.reachable", "fail", found, f"end what listens on {shown}, or change listen.bind")]
    return [Finding("proxy.reachable", "ok", f"Ostiary answers on {shown}")]


async def caller(setup: Setup) -> list[Finding]:
    """The proxy accepts the caller key of this environment."""
    address, split = _dialled(setup), _proxy(setup)
    if address is None:
        return [Finding("proxy.caller", "skip", "there is no address to ask")]
    key = unquote(split.password) if split is not None and split.password else setup.environ.get("OSTIARY_KEY")
    answer = await _connect(setup, address, key)
    code = answer[1] if answer is not None else "no answer"
    if code == "proof_required":
        mend = f"export OSTIARY_KEY (ostiary key mint makes one), then {_EVAL}"
        return [Finding("proxy.caller", "fail", "the proxy asks who calls (407), and there is no caller key", mend)]
    if code == "proof_invalid":
        found = "the proxy does not know the caller key of this environment (407)"
        mend = "put its hash under key_hash in the policy and reload, or take the right key"
        return [Finding("proxy.caller", "fail", found, mend)]
    if code != "route_denied":
        return [Finding("proxy.caller", "fail", f"the proxy answered {code}", "see docs/reference/errors.md")]
    return [Finding("proxy.caller", "ok", "the proxy knows the caller")]
