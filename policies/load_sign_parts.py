"""What the readers of all signers share: templates of keys, names that are sent, fields that may be signed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from policies.document import Mapping as MappingNode
from policies.faults import Place
from policies.fields import Fields
from policies.keys import TRANSIT
from policies.load_parts import TOKEN, Context, read_place, read_template, refuse_own
from policies.sign import SentName, TransitKey
from policies.template import Template

_ENDS_HERE: Final = frozenset({
    "connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect", "proxy-authorization",
    "proxy-authenticate", "proxy-connection",
})  # fmt: skip
"""What ends at this proxy, or is written anew by it: the upstream would never see what was signed."""
_UNSENDABLE: Final = _ENDS_HERE | {"host", "content-length"}
_KEY_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_])?")
"""As Vault takes them, and nothing that could lead elsewhere in a path."""
_PARAMETER: Final = re.compile(r"[A-Za-z0-9._~-]{1,64}")


def template_of(keys: Fields, key: str, context: Context, *, secret: bool, alone: bool = False) -> Template | None:
    """A template of this signer.

    Args:
        keys: of the signer.
        key: whose value it is.
        context: where faults go.
        secret: whether it is key material, which must name exactly one secret.
        alone: whether nothing may stand around that name.
    """
    template, scalar = read_template(keys, key, context), keys.scalar(key)
    if template is None or scalar is None:
        return None
    if secret and len(template.references) != 1:
        context.faults.add(
            scalar.place,
            f"{key!r} of {keys.what} must name one secret, not {'several' if template.references else 'a literal'}",
            "store the value and write {secret}",
        )
        return None
    if alone and len(template.parts) != 1:
        context.faults.add(scalar.place, f"{key!r} of {keys.what} is a secret alone, without text around it")
        return None
    return template


def key_of(keys: Fields, context: Context, *, alone: bool = False) -> Template | TransitKey | None:
    """The key of this signer: `key`, or `transit`; one of them must be there, and not both."""
    if "transit" not in keys:
        return template_of(keys, "key", context, secret=True, alone=alone) if keys.require("key") else None
    return transit_of(keys, "key", context)


def transit_of(keys: Fields, other: str, context: Context) -> TransitKey | None:
    """The key under `transit`, which stands there in the place of `other`."""
    if other in keys:
        context.faults.add(keys.place_of("transit"), f"{keys.what} has both {other} and transit", "keep one of them")
        return None
    if "key_encoding" in keys:
        context.faults.add(keys.place_of("key_encoding"), "a key that stays in Vault has no key_encoding", "remove it")
    node = keys.node("transit")
    if node is None:
        return None
    inner = Fields(node, context.faults, f"transit of {keys.what}", known=TRANSIT)
    if not isinstance(node, MappingNode) or not inner.require("key"):
        return None
    before = len(context.faults.found)
    name = inner.text("key")
    if name is not None and not _KEY_NAME.fullmatch(name):
        context.faults.add(inner.place_of("key"), f"{name!r} is no name of a key", "letters, digits and . _ -")
    mount = read_place(inner, "mount", context.faults) or "transit"
    if "mount" in inner:
        refuse_own(mount, inner.place_of("mount"), context.faults)
    namespace = read_place(inner, "namespace", context.faults)
    version = inner.integer("version", low=1, high=2**31)
    if name is None or len(context.faults.found) > before:
        return None
    return TransitKey(name, mount, namespace, version)


def judge_one_secret(keys: Fields, place: str, templates: Sequence[Template | None], context: Context) -> None:
    """The parts of one key come from one secret."""
    entries = {one.entry for template in templates if template is not None for one in template.references}
    if len(entries) > 1:
        context.faults.add(
            keys.place_of(place),
            f"the keys of {keys.what} come from several secrets",
            "keep them as fields of one secret: then they are always of one version",
        )


def signed_names(keys: Fields, context: Context) -> tuple[str, ...]:
    """`headers`: lower-case names of fields that may be signed, each once."""
    found: list[str] = []
    for scalar in keys.texts("headers"):
        name = scalar.text.lower()
        if not TOKEN.fullmatch(name):
            context.faults.add(scalar.place, f"{scalar.text!r} is no header name", "letters, digits and dashes")
        elif name in found:
            context.faults.add(scalar.place, f"{scalar.text!r} stands twice in headers of {keys.what}")
        elif judge_signed(name, scalar.place, context):
            found.append(name)
    return tuple(found)


def sent_name(text: str, place: Place, context: Context) -> SentName | None:
    kind, colon, name = text.partition(":")
    if colon:
        if kind != "query" or not _PARAMETER.fullmatch(name):
            context.faults.add(place, f"{text!r} is no place for a signature", "write NAME for a header, query:NAME")
            return None
        return SentName("query", name)
    if not TOKEN.fullmatch(text):
        context.faults.add(place, f"{text!r} is no header name", "letters, digits and dashes")
        return None
    if text.lower() in _UNSENDABLE or text.lower().startswith("x-ostiary-"):
        context.faults.add(place, f"{text!r} cannot carry a signature", "it frames the message or ends at the proxy")
        return None
    return SentName("header", text)


def judge_signed(name: str, place: Place, context: Context) -> bool:
    if name.lower() in _ENDS_HERE or name.lower().startswith("x-ostiary-"):
        context.faults.add(place, f"{name!r} cannot be signed", "it ends at this proxy: the upstream never sees it")
        return False
    return True
