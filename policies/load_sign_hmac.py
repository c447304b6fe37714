"""Reads `hmac:` of a signer: the profile of lines, or a template."""

from __future__ import annotations

from typing import cast

from policies.document import Mapping as MappingNode
from policies.document import Node
from policies.fields import Fields
from policies.keys import HMAC, NAMES_SENT
from policies.load_parts import TOKEN, Context
from policies.load_sign_parts import judge_signed, key_of, sent_name, signed_names, template_of
from policies.sign import REQUEST_PARTS, Digest, Encoding, HmacSigner, KeyEncoding, SentName, TimestampForm, TransitKey
from policies.template import Template


def read_hmac(route: str, node: Node, context: Context) -> HmacSigner | None:
    keys = Fields(node, context.faults, f"hmac of route {route}", known=HMAC)
    if not isinstance(node, MappingNode):
        return None
    return read_form(keys, context, key_of(keys, context), nonce=False)


def read_form(keys: Fields, context: Context, key: Template | TransitKey | None, *, nonce: bool) -> HmacSigner | None:
    """How a signature is made, of one that is sent or one that must have been.

    Args:
        keys: of `hmac:`.
        context: where faults go.
        key: already read.
        nonce: whether there is a nonce where nothing says so.
    """
    template = _text_template(keys, context)
    if "template" in keys:
        for own in ("headers", "host"):
            if own in keys:
                context.faults.add(keys.place_of(own), f"{own!r} belongs to the profile; a template names its lines")
    algorithm = keys.choice("algorithm", {"sha1", "sha256", "sha384", "sha512"}, "sha256") or "sha256"
    if algorithm == "sha1" and isinstance(key, TransitKey):
        context.faults.add(keys.place_of("algorithm"), "Vault makes no HMAC with sha1", "sha256, sha384 or sha512")
    prefix = keys.scalar("prefix")
    text = f"{algorithm}=" if prefix is None and template is None else "" if prefix is None else prefix.text
    if any(not 0x20 <= ord(char) < 0x7F for char in text):
        context.faults.add(keys.place_of("prefix"), "prefix holds something other than visible ASCII and spaces")
    signature, timestamp, nonce_name = _names(keys, template, context, wants_nonce=keys.boolean("nonce", default=nonce))
    encoding = cast("Encoding", keys.choice("encoding", {"hex", "base64", "base64url"}, "hex") or "hex")
    headers = signed_names(keys, context)
    form = keys.choice("timestamp", {"seconds", "milliseconds", "rfc3339"}, "seconds") or "seconds"
    key_encoding = keys.choice("key_encoding", {"utf8", "hex", "base64"}, "utf8") or "utf8"
    host = keys.boolean("host")
    if key is None or signature is None:
        return None
    return HmacSigner(
        key=key,
        signature=signature,
        timestamp=timestamp,
        nonce=nonce_name,
        key_encoding=cast("KeyEncoding", key_encoding),
        algorithm=cast("Digest", algorithm),
        encoding=encoding,
        prefix=text,
        timestamp_form=cast("TimestampForm", form),
        headers=headers,
        host=host,
        template=template,
    )


def _text_template(keys: Fields, context: Context) -> Template | None:
    """`template:`: parts of the request, and secrets."""
    template = template_of(keys, "template", context, secret=False)
    if template is None:
        return None
    for reference in template.references:
        if reference.entry == "header":
            if reference.field is None or not TOKEN.fullmatch(reference.field):
                context.faults.add(keys.place_of("template"), "{header} needs the name of a field", "{header.x-name}")
            else:
                judge_signed(reference.field, keys.place_of("template"), context)
        elif reference.entry in REQUEST_PARTS and reference.field is not None:
            context.faults.add(
                keys.place_of("template"),
                f"{{{reference.entry}}} is a part of the request and has no field {reference.field!r}",
                "a secret cannot have this name here",
            )
    if not any(reference.entry in REQUEST_PARTS for reference in template.references):
        context.faults.add(
            keys.place_of("template"),
            "the template takes nothing from the request: its signature would fit any",
            "name {method}, {target}, {timestamp} or {body}",
        )
    return template


def _names(
    keys: Fields, template: Template | None, context: Context, *, wants_nonce: bool
) -> tuple[SentName | None, SentName | None, SentName | None]:
    """What signature, timestamp and nonce are called."""
    node = keys.node("names")
    inner = Fields(node, context.faults, f"names of {keys.what}", known=NAMES_SENT) if node is not None else None

    def named(key: str, default: str) -> SentName | None:
        scalar = inner.scalar(key) if inner is not None else None
        if scalar is None:
            return SentName("header", default)
        return sent_name(scalar.text, scalar.place, context)

    signature = named("signature", "X-Signature")
    timestamp, nonce = named("timestamp", "X-Timestamp"), named("nonce", "X-Nonce")
    if template is not None and not _signs(template, "timestamp", timestamp):
        if inner is not None and "timestamp" in inner:
            context.faults.add(
                inner.place_of("timestamp"), "the template does not sign the timestamp", "add {timestamp}"
            )
        timestamp = None
    if template is not None and wants_nonce != _signs(template, "nonce", nonce if wants_nonce else None):
        context.faults.add(
            keys.place_of("template"),
            "the template and nonce: do not agree: a nonce that is sent must be signed",
            "write nonce: true and {nonce}, or neither",
        )
    if not wants_nonce:
        if inner is not None and "nonce" in inner:
            context.faults.add(inner.place_of("nonce"), "a name for a nonce that is not sent", "add nonce: true")
        nonce = None
    sent = [(one.place, one.name.lower()) for one in (signature, timestamp, nonce) if one is not None]
    if len(set(sent)) < len(sent):
        context.faults.add(keys.place_of("names"), f"names of {keys.what} are not different from one another")
    return signature, timestamp, nonce


def _signs(template: Template, part: str, name: SentName | None) -> bool:
    """Whether a template covers a value: by its own name, or as a part of the query in which it is sent."""
    used = {reference.entry for reference in template.references}
    return part in used or (name is not None and name.place == "query" and bool(used & {"query", "target"}))
