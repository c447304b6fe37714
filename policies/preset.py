"""One provider preset: what an API needs of a route, as data, with where that was read and what its SDK wants to see.

Built-in presets are files of `policies/presets/`, one an API; own ones stand under `presets:` of a policy. This module
reads one and knows which are built in; `load_presets.py` puts it into a route. A preset says nothing of who may call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from policies.document import Entry, Node, Scalar, Sequence, parse
from policies.document import Mapping as MappingNode
from policies.faults import Fault, FaultError, Faults, Place
from policies.fields import Fields
from policies.keys import EXAMPLE, PRESET, ROUTE
from policies.load_parts import NAME, read_host

FOLDER: Final = Path(__file__).parent / "presets"
UNTESTED: Final = "untested"
"""What `checked` says of a preset whose documentation nobody has looked at."""
DEFAULT_FIELD: Final = "api_key"

_PARAMETER: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_VARIABLE: Final = re.compile(r"(?!OSTIARY_)[A-Z][A-Z0-9_]{0,63}_(?:KEY|TOKEN|SECRET|PASSWORD|USERNAME|SID|ID)")
"""Names that can only be credentials: `exec` sets them, and LD_PRELOAD or PATH would be somebody else's program."""
_VISIBLE: Final = re.compile(r"[\x21-\x7e]{1,256}")
_DATE: Final = re.compile(r"[0-9]{4}-[01][0-9]-[0-3][0-9]")
_URL: Final = re.compile(r"https://[!-~]+")


@dataclass(frozen=True, slots=True)
class Example:
    """A request as the documentation shows it, and where the credential stands in it once it leaves.

    `put` names places (`header Authorization`, `query key`, `path`) and what stands there for the secret fields of
    `fields`; an empty text means that the place is there, whatever it holds (a signature).
    """

    method: str
    url: str
    put: Mapping[str, str]
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Preset:
    """A preset as it is written.

    `route` is its part that is merged into a route, `written` the same without the secret that is implied, and `home`
    the file of an own preset (None: built in).
    """

    name: str
    route: MappingNode
    written: MappingNode
    place: Place
    docs: str = ""
    checked: str = UNTESTED
    driven: str = ""
    """The SDK, with its version, that a test drives through this preset."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    placeholder: Mapping[str, str] = field(default_factory=dict)
    sdk: Mapping[str, str] = field(default_factory=dict)
    example: Example | None = None
    home: Path | None = None
    raw: bytes = b""


@cache
def built_in_names() -> tuple[str, ...]:
    """The names of all built-in presets, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def built_in_text(name: str) -> bytes:
    """The file of a built-in preset; only a name of `built_in_names` is one."""
    return (FOLDER / f"{name}.yaml").read_bytes()


@cache
def built_in(name: str) -> Preset:
    """A built-in preset.

    Raises:
        FaultError: the installation is broken; tests compile every preset.
    """
    raw = built_in_text(name)
    faults = Faults()
    preset = read_preset(name, parse(raw.decode(), f"preset:{name}"), faults, raw=raw)
    faults.raise_any()
    if preset is None:
        raise FaultError(())
    return preset


def read_preset(name: str, node: Node, faults: Faults, *, home: Path | None = None, raw: bytes = b"") -> Preset | None:
    """One preset, or None where it is no mapping or has faults."""
    before = len(faults.found)
    keys = Fields(node, faults, f"preset {name}", known=PRESET)
    if not isinstance(node, MappingNode) or not keys.require("match"):
        return None
    match = keys.node("match")
    if not isinstance(match, MappingNode) or match.get("host") is None:
        faults.add(keys.place_of("match"), f"match of preset {name} needs 'host'", "add host: api.example.com")
    checked = keys.text("checked", UNTESTED) or UNTESTED
    if checked != UNTESTED and not _DATE.fullmatch(checked):
        faults.add(keys.place_of("checked"), f"{checked!r} is no date", f"write 2026-11-25, or {UNTESTED}")
    docs = keys.text("docs", "") or ""
    if docs and not _URL.fullmatch(docs):
        faults.add(keys.place_of("docs"), "docs is no https URL", "name the page that tells how the API is called")
    secret = keys.node("secret")
    for key in ("mount", "namespace", "kv", "version"):
        alone = secret.get(key) if isinstance(secret, MappingNode) and secret.get("path") is None else None
        if alone is not None:
            faults.add(alone.key_place, f"{key} of preset {name} stands without a path", "write path beside it")
    parameters = _texts(keys, "parameters", _PARAMETER, "letters, digits and underscores, such as tenant")
    for taken in {"secret", "token", "preset"} & set(parameters):
        faults.add(keys.place_of("parameters"), f"a parameter cannot be called {taken!r}", "the word has a meaning")
    placeholder = _texts(keys, "placeholder", _VARIABLE, "a variable of a credential, such as OPENAI_API_KEY")
    for variable, value in placeholder.items():
        if not _VISIBLE.fullmatch(value):
            faults.add(keys.place_of("placeholder"), f"{variable} holds spaces or controls", "write visible ASCII")
    entries = tuple(entry for entry in node if entry.key in ROUTE)
    preset = Preset(
        name,
        MappingNode(_with_secret(name, entries, node.place), node.place),
        MappingNode(entries, node.place),
        node.place,
        docs,
        checked,
        keys.text("driven", "") or "",
        parameters,
        placeholder,
        _texts(keys, "sdk", re.compile(r".{1,64}"), "name the SDK"),
        _example(name, keys),
        home,
        raw,
    )
    return preset if len(faults.found) == before else None


def hosts_of(preset: Preset) -> tuple[str, ...]:
    """The hosts as they are written, parameters in braces."""
    match = preset.route.get("match")
    host = match.value.get("host") if match is not None and isinstance(match.value, MappingNode) else None
    if host is None:
        return ()
    items = host.value.items if isinstance(host.value, Sequence) else (host.value,)
    return tuple(item.text for item in items if isinstance(item, Scalar))


def read_new(name: str, text: str) -> Preset:
    """The preset of a policy text that defines that one.

    Raises:
        FaultError: it is none.
    """
    faults = Faults()
    root = parse(text, "preset")
    presets = root.get("presets") if isinstance(root, MappingNode) else None
    found = presets.value.get(name) if presets is not None and isinstance(presets.value, MappingNode) else None
    preset = read_preset(name, found.value, faults) if found is not None and NAME.fullmatch(name) else None
    for host in hosts_of(preset) if preset is not None else ():
        read_host(Scalar(host, Place("preset")), faults)
    faults.raise_any()
    if preset is None:
        raise FaultError([Fault(Place("preset"), f"{name!r} is no name for a preset")])
    return preset


def _with_secret(name: str, entries: tuple[Entry, ...], place: Place) -> tuple[Entry, ...]:
    """The secret that a preset implies: `secret/egress/NAME`, field `api_key`; the preset may name the field itself."""
    if not any(entry.key in {"inject", "sign"} for entry in entries) or any(
        entry.key == "secrets" for entry in entries
    ):
        return entries
    path = Entry("path", place, Scalar(f"secret/egress/{name}", place))
    written = next((entry for entry in entries if entry.key == "secret"), None)
    if written is None and _shows_certificate(entries):
        return entries  # it may need no other proof
    if written is None:
        field_ = Entry("field", place, Scalar(DEFAULT_FIELD, place))
        return (*entries, Entry("secret", place, MappingNode((path, field_), place)))
    if not isinstance(written.value, MappingNode) or written.value.get("path") is not None:
        return entries
    whole = Entry("secret", written.key_place, MappingNode((path, *written.value.entries), written.value.place))
    return tuple(whole if entry is written else entry for entry in entries)


def _shows_certificate(entries: tuple[Entry, ...]) -> bool:
    """Whether the token is made with a client certificate."""
    derive = next((entry.value for entry in entries if entry.key == "derive"), None)
    return isinstance(derive, MappingNode) and any(
        isinstance(grant.value, MappingNode) and grant.value.get("client_cert") is not None for grant in derive
    )


def _texts(keys: Fields, key: str, names: re.Pattern[str], mend: str) -> dict[str, str]:
    """A mapping of names to texts."""
    node = keys.node(key)
    if node is None:
        return {}
    if not isinstance(node, MappingNode):
        keys.faults.add(node.place, f"{key!r} of {keys.what} must be a mapping")
        return {}
    found: dict[str, str] = {}
    for entry in node:
        if not names.fullmatch(entry.key):
            keys.faults.add(entry.key_place, f"{entry.key!r} is no name for {key}", mend)
        elif not isinstance(entry.value, Scalar):
            keys.faults.add(entry.value.place, f"{entry.key!r} of {key} of {keys.what} must be a scalar")
        else:
            found[entry.key] = entry.value.text
    return found


def _example(name: str, keys: Fields) -> Example | None:
    node = keys.node("example")
    if node is None:
        return None
    inner = Fields(node, keys.faults, f"example of preset {name}", known=EXAMPLE)
    if not inner.require("method", "url", "put"):
        return None
    any_text = re.compile(r".{1,128}")
    put, fields = _texts(inner, "put", any_text, ""), _texts(inner, "fields", any_text, "")
    return Example(inner.text("method", "") or "", inner.text("url", "") or "", put, fields)
