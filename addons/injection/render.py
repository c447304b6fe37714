"""How secret values become header and query text, and what is refused instead of sent.

A value with a control character splits headers; an empty one sends a request that looks authenticated and is not. Both
are `secret_malformed` (FAULTS V9, G42).
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final
from urllib.parse import quote

from addons.credentials import Credential
from addons.refusal import Code, Refusal
from policies.template import FieldRef, Template

_VISIBLE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
"""Visible ASCII with inner spaces: what RFC 9110 section 5.5 lets through every hop unchanged."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def _malformed(reference: FieldRef, what: str) -> Refusal:
    name = f"{reference.entry}.{reference.field}" if reference.field else reference.entry
    return Refusal(Code.SECRET_MALFORMED, f"The secret behind {{{name}}} {what}.")


def _text(credential: Credential, reference: FieldRef) -> str:
    try:
        text = credential.value(reference).reveal()
    except UnicodeDecodeError:
        raise _malformed(reference, "is not text") from None
    if not text:
        raise _malformed(reference, "is empty")
    return text


def header_value(template: Template, credential: Credential, scheme: bytes = b"") -> bytes:
    """Renders a header value. One that holds a single secret is rendered once for each version of it.

    Args:
        template: of the value.
        credential: opened for this request.
        scheme: what stands in front.

    Raises:
        Refusal: `secret_malformed`; a secret is not visible ASCII with inner spaces.
    """
    single = template.single
    if single is None:
        return scheme + _header_value(template, credential)
    return credential.value(single).derive(
        ("header", scheme, template.before, template.behind), lambda _: scheme + _header_value(template, credential)
    )


def _header_value(template: Template, credential: Credential) -> bytes:
    rendered: list[str] = []
    for part in template.parts:
        if isinstance(part, str):
            rendered.append(part)
            continue
        text = _text(credential, part)
        if not _VISIBLE.fullmatch(text):
            raise _malformed(part, "does not fit into a header: visible ASCII with inner spaces is allowed")
        rendered.append(text)
    return "".join(rendered).encode("ascii")


def plain_value(template: Template, credential: Credential) -> str:
    """Renders text for a place that escapes for itself (query, Basic): anything but control characters.

    Raises:
        Refusal: `secret_malformed`.
    """
    rendered: list[str] = []
    for part in template.parts:
        if isinstance(part, str):
            rendered.append(part)
            continue
        text = _text(credential, part)
        if _CONTROL.search(text):
            raise _malformed(part, "holds a control character")
        rendered.append(text)
    return "".join(rendered)


def basic_value(username: str, password: str) -> bytes:
    """`Basic …` (RFC 7617 section 2): UTF-8, no colon in the user name.

    Raises:
        Refusal: `secret_malformed`.
    """
    if ":" in username:
        raise Refusal(Code.SECRET_MALFORMED, "The user name of the Basic credential holds a colon.")
    return b"Basic " + base64.b64encode(f"{username}:{password}".encode())


def query_pair(name: str, value: str) -> bytes:
    """One escaped `name=value` pair: everything but RFC 3986 unreserved characters is percent-encoded."""
    return f"{quote(name, safe='')}={quote(value, safe='')}".encode()


def _basic_parts(value: bytes) -> tuple[str, str] | None:
    scheme, _, rest = value.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        user, colon, password = base64.b64decode(rest.strip(b" "), validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (user, password) if colon else None


def holds_placeholder(value: bytes, placeholder: str) -> bool:
    """Whether the placeholder is the whole value, the whole value after `Bearer `, or the user name or password inside
    Basic. Never a part of a text.
    """
    wanted = placeholder.encode()
    if value == wanted:
        return True
    scheme, _, rest = value.partition(b" ")
    if scheme.lower() == b"bearer" and rest.strip(b" ") == wanted:
        return True
    basic = _basic_parts(value)
    return basic is not None and placeholder in basic


def unpacked(value: bytes) -> bytes:
    """A field's value with Basic taken apart."""
    basic = _basic_parts(value)
    return ":".join(basic).encode() if basic is not None else value


def swapped_text(text: str, placeholder: str, template: Template, credential: Credential) -> str:
    """As `swapped`, for a place that escapes for itself (query, JSON).

    Raises:
        Refusal: `secret_malformed`.
    """
    if text == placeholder:
        return plain_value(template, credential)
    basic = _basic_parts(text.encode())
    if basic is not None:
        secret = plain_value(template, credential)
        user, password = (secret if part == placeholder else part for part in basic)
        return basic_value(user, password).decode("ascii")
    return f"{text.partition(' ')[0]} {plain_value(template, credential)}"


def swapped(value: bytes, placeholder: str, template: Template, credential: Credential) -> bytes:
    """The field value with the placeholder replaced; only for values of which `holds_placeholder` is true.

    Raises:
        Refusal: `secret_malformed`.
    """
    if value == placeholder.encode():
        return header_value(template, credential)
    basic = _basic_parts(value)
    if basic is not None:
        secret = plain_value(template, credential)
        user, password = (secret if part == placeholder else part for part in basic)
        return basic_value(user, password)
    return value.partition(b" ")[0] + b" " + header_value(template, credential)
