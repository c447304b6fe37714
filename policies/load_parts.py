"""Small values that several keys share: names, hosts, methods, paths, header names, durations with bounds, secret
specifications.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, cast

from policies.document import Mapping as MappingNode
from policies.document import Node, Scalar, kind_of
from policies.faults import Faults, Place
from policies.fields import Fields
from policies.keys import SECRET
from policies.model import KV, LENDING, HostPattern, SecretSpec
from policies.paths import PathPattern, parse_pattern
from policies.template import Template, TemplateError, parse_template

NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""RFC 9110 section 5.6.2."""
_METHOD: Final = re.compile(r"[A-Z][A-Z-]{0,31}")
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_VARIABLE: Final = re.compile(r"\$\{([^{}]*)\}")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._~@:+=-]+")
_SEGMENTS_HOLD: Final = "segments hold letters, digits and . _ ~ @ : + = -"
_VAULTS_OWN: Final = frozenset({"auth", "cubbyhole", "identity", "sys"})
"""Mounts of Vault itself, which hold no secrets of users: `auth/token/lookup-self` would be the token Ostiary logs in
with. The Vault client refuses them again when it reads."""
_ENGINES_ELSEWHERE: Final[Mapping[str, str]] = {
    "transit": "a key that stays in Vault is named where it signs: transit: in the place of key: (docs/reference/signing.md)",
    "pki": "a certificate that Vault issues is named where it is shown: tls: {client_cert: {pki: …}}",
}
_MAX_TTL_S: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Context:
    """What every reader needs: where faults go, what variables stand for, where relative files lie."""

    faults: Faults
    variables: Mapping[str, str]
    folder: Path

    def beside(self, file: Path) -> Context:
        return replace(self, folder=file.parent)


def read_hosts(keys: Fields) -> tuple[HostPattern, ...]:
    """`host:` of a match: exact names, addresses, and `*.` for one label."""
    found: list[HostPattern] = []
    for scalar in keys.texts("host"):
        host = read_host(scalar, keys.faults)
        if host is not None and host not in found:
            found.append(host)
    return tuple(found)


def read_host(scalar: Scalar, faults: Faults) -> HostPattern | None:
    text = scalar.text
    wildcard = text.startswith("*.")
    name = text[2:] if wildcard else text
    if "://" in text or "/" in text:
        faults.add(scalar.place, f"{text!r} is a URL, not a host", "write the host alone; paths go under paths")
        return None
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        pass
    else:
        return HostPattern(str(address))
    if ":" in name:
        faults.add(scalar.place, f"{text!r} holds a port", "write the port under port")
        return None
    try:
        ascii_name = name.encode("idna").decode("ascii") if not name.isascii() else name
    except UnicodeError:
        faults.add(scalar.place, f"{text!r} is not a valid internationalised name")
        return None
    lowered = ascii_name.lower().removesuffix(".")
    labels = lowered.split(".")
    if "*" in lowered:
        faults.add(scalar.place, f"{text!r}: a wildcard stands for exactly one label, in front", "write *.example.com")
        return None
    if (
        not all(_LABEL.fullmatch(label) for label in labels)
        or labels[-1].isdigit()
        or re.fullmatch(r"0x[0-9a-f]*", labels[-1])
    ):
        faults.add(scalar.place, f"{text!r} is no host name")
        return None
    if wildcard and len(labels) < 2:
        faults.add(scalar.place, f"{text!r} would cover a whole top-level domain", "write *.example.com")
        return None
    return HostPattern(f"*.{lowered}" if wildcard else lowered)


def read_methods(keys: Fields) -> frozenset[str] | None:
    """`methods:`, None where the key is absent."""
    if "methods" not in keys:
        return None
    found: set[str] = set()
    for scalar in keys.texts("methods"):
        if scalar.text in {"TRACE", "TRACK", "CONNECT"}:
            keys.faults.add(scalar.place, f"{scalar.text} is never forwarded", "remove it")
        elif not _METHOD.fullmatch(scalar.text):
            mend = (
                f"write {scalar.text.upper()}"
                if _METHOD.fullmatch(scalar.text.upper())
                else "methods are upper-case words"
            )
            keys.faults.add(scalar.place, f"{scalar.text!r} is no method", mend)
        else:
            found.add(scalar.text)
    return frozenset(found)


def read_paths(keys: Fields) -> tuple[PathPattern, ...] | None:
    """`paths:`, None where the key is absent."""
    if "paths" not in keys:
        return None
    found: list[PathPattern] = []
    for scalar in keys.texts("paths"):
        try:
            found.append(parse_pattern(scalar.text))
        except ValueError as error:
            keys.faults.add(scalar.place, f"{scalar.text!r}: {error}", "see docs/reference/policy.md, Paths")
    return tuple(dict.fromkeys(found))


def read_secret(node: Node, what: str, context: Context) -> SecretSpec | None:
    """One `secret:` mapping."""
    faults = context.faults
    keys = Fields(node, faults, what, known=SECRET)
    if not isinstance(node, MappingNode) or not keys.require("path"):
        return None
    before = len(faults.found)
    path = read_secret_path(keys, context)
    mount = read_place(keys, "mount", faults)
    if mount is not None:
        refuse_own(mount, keys.place_of("mount"), faults)
    namespace = read_place(keys, "namespace", faults)
    field = keys.text("field")
    ttl_s = keys.duration("ttl", 15.0)
    max_stale_s = keys.duration("max_stale", 600.0)
    for key, value in (("ttl", ttl_s), ("max_stale", max_stale_s)):
        if value is not None and value > _MAX_TTL_S:
            faults.add(
                keys.place_of(key),
                f"{key!r} of {what} is longer than a day",
                "revocation and rotation would not reach it; write 24h or less",
            )
    kv = keys.choice("kv", {"1", "2"})
    version = keys.integer("version", low=1, high=2**31)
    if version is not None and kv == "1":
        faults.add(keys.place_of("version"), "KV version 1 keeps no versions to pin", "remove version or write kv: 2")
    watch_s = _read_watch(keys, what, ttl_s, kv)
    engine = _read_engine(keys, what)
    if path is None or len(faults.found) > before:
        return None
    return SecretSpec(
        path=path,
        field=field,
        mount=mount,
        namespace=namespace,
        kv=cast("Literal[1, 2] | None", int(kv) if kv else None),
        version=version,
        ttl_s=ttl_s if ttl_s is not None else 15.0,
        max_stale_s=max_stale_s if max_stale_s is not None else 600.0,
        watch_s=watch_s,
        public=keys.boolean("public"),
        engine=engine,
    )


def _read_engine(keys: Fields, what: str) -> str:
    """`engine:`. What is lent has no version, and its lease alone says how long it serves."""
    scalar = keys.scalar("engine")
    if scalar is None or scalar.text == KV:
        return KV
    if scalar.text not in LENDING:
        elsewhere = _ENGINES_ELSEWHERE.get(scalar.text)
        mend = elsewhere or f"write {KV}, or an engine that lends: {', '.join(LENDING)}"
        keys.faults.add(scalar.place, f"{scalar.text!r} is no engine of a secret", mend)
        return KV
    for key in ("kv", "version", "ttl", "max_stale", "watch"):
        if key in keys:
            keys.faults.add(
                keys.place_of(key),
                f"{what} is lent by an engine, so {key!r} means nothing",
                "remove it: a lease says itself how long it serves, and has no version",
            )
    return scalar.text


def _read_watch(keys: Fields, what: str, ttl_s: float | None, kv: str | None) -> float:
    watch_s = keys.duration("watch")
    if watch_s is None:
        return 0.0
    place = keys.place_of("watch")
    if not 0 < watch_s < (ttl_s if ttl_s is not None else 15.0):
        keys.faults.add(
            place, f"'watch' of {what} must be more than 0 and less than its ttl", "the value itself is read once a ttl"
        )
    if kv == "1":
        keys.faults.add(place, "KV version 1 tells no version without the value", "remove watch or write kv: 2")
    return watch_s


def read_secret_path(keys: Fields, context: Context) -> str | None:
    """`path:` with its variables put in."""
    scalar = keys.scalar("path")
    if scalar is None:
        return None
    text = put_variables(scalar, context)
    if text is None:
        return None
    path = text.strip("/")
    if not _is_plain(path):
        context.faults.add(scalar.place, f"{path!r} is no secret path", _SEGMENTS_HOLD)
        return None
    if "mount" not in keys and refuse_own(path, scalar.place, context.faults):
        return None
    if "/" not in path and "mount" not in keys:
        context.faults.add(
            scalar.place, f"{path!r} names a mount and nothing in it", "write mount/path, such as secret/egress/stripe"
        )
        return None
    return path


def put_variables(scalar: Scalar, context: Context) -> str | None:
    """The text with `${name}` put in; None, and a fault, where a name is not defined."""
    missing = [name for name in _VARIABLE.findall(scalar.text) if name not in context.variables]
    if missing:
        known = ", ".join(sorted(context.variables)) or "none"
        context.faults.add(
            scalar.place,
            f"variable {missing[0]!r} is not defined",
            f"define it under vars: in ostiary.yaml; known: {known}",
        )
        return None
    return _VARIABLE.sub(lambda found: context.variables[found[1]], scalar.text)


def _is_plain(path: str) -> bool:
    """Whether nothing on the way to Vault could read the path as another: no dot segment, no escape, nothing empty."""
    return all(_SEGMENT.fullmatch(segment) and segment not in {".", ".."} for segment in path.split("/"))


def read_place(keys: Fields, key: str, faults: Faults) -> str | None:
    """`mount:` or `namespace:`, without outer slashes."""
    text = keys.text(key)
    if text is None:
        return None
    place = text.strip("/")
    if not _is_plain(place):
        faults.add(keys.place_of(key), f"{text!r} is no {key}", _SEGMENTS_HOLD)
        return None
    return place


def refuse_own(path: str, place: Place, faults: Faults) -> bool:
    """Adds a fault, and says so, where a path begins with a mount that holds what is Vault's own."""
    mount = path.partition("/")[0]
    if mount.casefold() not in _VAULTS_OWN:
        return False
    faults.add(
        place,
        f"{mount}/ is Vault's own and holds no secrets: what is there would hand out the token that Ostiary logs in with",
        "name a key-value mount, such as secret/egress/stripe",
    )
    return True


def read_network(scalar: Scalar, faults: Faults) -> str | None:
    """A CIDR block or one address, as canonical CIDR."""
    try:
        return str(ipaddress.ip_network(scalar.text, strict=True))
    except ValueError:
        pass
    try:
        loose = ipaddress.ip_network(scalar.text, strict=False)
    except ValueError:
        faults.add(scalar.place, f"{scalar.text!r} is no address block", "write 10.1.0.0/16 or fd00::/8")
    else:
        faults.add(scalar.place, f"{scalar.text!r} has bits set behind its prefix", f"write {loose}")
    return None


def read_resolve(node: Node | None, faults: Faults) -> dict[str, tuple[str, int]]:
    """`resolve:`: fixed dial targets, `host:port` to `address:port`."""
    found: dict[str, tuple[str, int]] = {}
    if node is None:
        return found
    if not isinstance(node, MappingNode):
        faults.add(node.place, f"resolve must be a mapping of host:port to address:port, not {kind_of(node)}")
        return found
    for entry in node:
        host, colon, port = entry.key.rpartition(":")
        pattern = read_host(Scalar(host, entry.key_place), faults) if colon else None
        if not colon or not port.isdigit() or not 0 < int(port) < 65536:
            faults.add(entry.key_place, f"{entry.key!r} is not of the form host:port", "write api.example.com:443")
            continue
        if not isinstance(entry.value, Scalar):
            faults.add(
                entry.value.place, f"the target of {entry.key!r} must be address:port, not {kind_of(entry.value)}"
            )
            continue
        target = _read_target(entry.value, faults)
        if pattern is not None and target is not None:
            found[f"{pattern.text}:{int(port)}"] = target
    return found


def _read_target(scalar: Scalar, faults: Faults) -> tuple[str, int] | None:
    address, _, port = scalar.text.rpartition(":")
    try:
        host = str(ipaddress.ip_address(address.strip("[]")))
    except ValueError:
        host = ""
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        faults.add(
            scalar.place,
            f"{scalar.text!r} is not of the form address:port",
            "write an address, such as 10.1.2.3:443 or [fd00::1]:443",
        )
        return None
    return host, int(port)


def read_file_key(keys: Fields, key: str, context: Context) -> Path | None:
    """A file named in a policy, relative to it; it must be readable now."""
    scalar = keys.scalar(key)
    if scalar is None:
        return None
    path = (context.folder / scalar.text).resolve()
    try:
        with path.open("rb") as handle:
            handle.read(1)
    except OSError as error:
        context.faults.add(
            scalar.place,
            f"{scalar.text!r} cannot be read: {error.strerror}",
            "files are relative to the policy that names them",
        )
        return None
    return path


def read_template(keys: Fields, key: str, context: Context) -> Template | None:
    """The template under a key; None where there is none, or a fault was told."""
    scalar = keys.scalar(key)
    if scalar is None:
        return None
    try:
        template = parse_template(scalar.text)
    except TemplateError as error:
        context.faults.add(scalar.place, f"{key!r} of {keys.what}: {error}")
        return None
    return template
