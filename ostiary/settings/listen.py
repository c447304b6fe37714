"""Reads `listen:`: where callers come in, how, and with which certificate."""

from __future__ import annotations

import re
from typing import Final, cast

from ostiary.settings.bind import read_bind, read_socket_mode
from ostiary.settings.keys import KNOWN, LATER
from ostiary.settings.model import Bound, ListenMode, ListenSetting, TlsSetting
from policies import Policy
from policies.document import Mapping as MappingNode
from policies.document import Scalar
from policies.faults import Faults, Place, nearest
from policies.fields import Fields
from policies.load_parts import NAME, Context, read_host

_HOST: Final = re.compile(r"(?P<host>\[[^\]]+\]|[^\[\]:]+)(?::(?P<port>[0-9]{1,5}))?")


def read_listeners(keys: Fields, context: Context) -> tuple[ListenSetting, ...]:
    """Every listener that could be read."""
    found: list[ListenSetting] = []
    names: dict[str, Place] = {}
    binds: dict[str, Place] = {}
    for node in keys.nodes("listen"):
        inner = Fields(node, context.faults, "a listener", known=KNOWN["listen"], later=LATER["listen"])
        if not isinstance(node, MappingNode):
            continue
        mode = cast("ListenMode", inner.choice("mode", {"forward", "reverse"}, "forward") or "forward")
        if not inner.require("name", "bind"):
            continue
        name, bind = inner.text("name"), inner.scalar("bind")
        bound = read_bind(bind, context) if bind is not None else None
        if name is None or bound is None or bind is None:
            continue
        if not NAME.fullmatch(name):
            context.faults.add(
                inner.place_of("name"),
                f"{name!r} is no name for a listener",
                "use letters, digits, dots, dashes and underscores",
            )
        if name in names:
            context.faults.add(
                inner.place_of("name"), f"listener {name!r} is already defined at {names[name]}", "rename one of them"
            )
        if bound.port != 0 or bound.path is not None:
            if str(bound) in binds:
                context.faults.add(
                    bind.place, f"{bound} is already listened on at {binds[str(bound)]}", "choose another address"
                )
            binds[str(bound)] = bind.place
        names[name] = inner.place_of("name")
        found.append(
            ListenSetting(
                name,
                bound,
                inner.text("workload"),
                node.place,
                read_socket_mode(inner),
                mode,
                _hosts(inner, mode, bound),
                _tls(name, inner, bound, context),
            )
        )
    return tuple(found)


def _hosts(keys: Fields, mode: ListenMode, bound: Bound) -> tuple[tuple[str, int | None], ...]:
    """Names under which a reverse listener is called beside its address: `name`, or `name:port`."""
    if "hosts" not in keys:
        return ()
    if mode != "reverse" or bound.path is not None:
        keys.faults.add(
            keys.place_of("hosts"),
            "hosts is for reverse listeners on TCP: no other looks at Host",
            "remove it, or add mode: reverse",
        )
        return ()
    found: list[tuple[str, int | None]] = []
    for scalar in keys.texts("hosts"):
        written = _HOST.fullmatch(scalar.text)
        port = int(written["port"]) if written is not None and written["port"] else None
        host = read_host(Scalar(written["host"], scalar.place), keys.faults) if written is not None else None
        if written is None or (host is not None and host.wildcard) or port == 0 or (port or 0) > 65535:
            keys.faults.add(scalar.place, f"{scalar.text!r} is no host", "write name or name:port, without a wildcard")
        elif host is not None:
            found.append((host.text, port))
    return tuple(found)


def _tls(name: str, keys: Fields, bound: Bound, context: Context) -> TlsSetting | None:
    node = keys.node("tls")
    if node is None:
        return None
    inner = Fields(
        node, context.faults, f"tls of listener {name}", known=KNOWN["listen_tls"], later=LATER["listen_tls"]
    )
    if not isinstance(node, MappingNode) or not inner.require("cert", "key"):
        return None
    if bound.path is not None:
        context.faults.add(node.place, "a Unix socket needs no TLS: nothing leaves the machine", "remove tls")
        return None
    cert, key = inner.scalar("cert"), inner.scalar("key")
    if cert is None or key is None:
        return None
    found = TlsSetting(context.folder / cert.text, context.folder / key.text)
    _judge(name, found, cert, key, context.faults)
    return found


def _judge(name: str, found: TlsSetting, cert: Scalar, key: Scalar, faults: Faults) -> None:
    from ostiary.certificate import CertificateFault, read_certificate

    try:
        read_certificate(found.cert, found.key)
    except CertificateFault as fault:
        place = (cert if fault.about == "cert" else key).place
        faults.add(place, f"listener {name!r}: {fault.message}", fault.mend)


def judge_routes(listeners: tuple[ListenSetting, ...], policy: Policy, faults: Faults) -> None:
    """Every listener that a route names is there, and is a reverse listener."""
    modes = {one.name: one.mode for one in listeners}
    for route in policy.routes.values():
        for name in route.listeners:
            if name not in modes:
                near = nearest(name, [one for one, mode in modes.items() if mode == "reverse"])
                faults.add(
                    route.place,
                    f"route {route.name!r} names listener {name!r}, which the settings do not have",
                    f"did you mean {near!r}?" if near else "add it to listen with mode: reverse",
                )
            elif modes[name] != "reverse":
                faults.add(
                    route.place,
                    f"route {route.name!r} names listener {name!r}, which is a forward listener: it serves every route as it is",
                    "remove listener from the route, or give the listener mode: reverse",
                )
