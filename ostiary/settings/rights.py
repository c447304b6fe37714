"""Reads `policies:`: file names and patterns, and what the files of an entry may write (`files`, `may`).

An entry without `may` may write everything. What `may` leaves out is not granted: nothing here has a default. The
meaning of rights is `policies/rights.py`, the finding of files `policies/sources.py`.
"""

from __future__ import annotations

import re
from typing import Final

from ostiary.settings.keys import KNOWN
from policies.document import Mapping as MappingNode
from policies.document import Node, Scalar, kind_of
from policies.faults import nearest
from policies.fields import Fields
from policies.load_parts import Context, put_variables, read_host
from policies.rights import GUARDED, KINDS, SPELLINGS, HostRight, Rights, SecretRight
from policies.sources import Source

_PORT: Final = re.compile(r"(.*):([1-9][0-9]{0,4})", re.DOTALL)
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._~@:+=*-]+")
_NAME: Final = re.compile(r"[A-Za-z0-9._*-]+")


def read_policies(keys: Fields, context: Context) -> tuple[Source, ...]:
    """Every entry of `policies:`. `context` brings the variables of `vars:`, which patterns of secrets may hold."""
    found: list[Source] = []
    for node in keys.nodes("policies"):
        if isinstance(node, Scalar):
            found += _sources(node, context, None)
        elif isinstance(node, MappingNode):
            inner = Fields(node, context.faults, "an entry of policies", known=KNOWN["policies"])
            inner.require("files")
            rights = _read_may(inner, context)
            for name in inner.texts("files"):
                found += _sources(name, context, rights)
        else:
            context.faults.add(
                node.place, f"policies holds file names, not {kind_of(node)}", "write pay/*.yaml or {files: …, may: …}"
            )
    return tuple(found)


def _sources(name: Scalar, context: Context, rights: Rights | None) -> list[Source]:
    if not name.text:
        context.faults.add(name.place, "an entry of policies names no file", "write pay/*.yaml")
        return []
    return [Source(name.text, context.folder, name.place, rights)]


def _read_may(keys: Fields, context: Context) -> Rights | None:
    """`may:`, None where the key is absent."""
    entry = keys.entry("may")
    if entry is None:
        return None
    inner = Fields(entry.value, context.faults, "may", known=KNOWN["may"])
    if isinstance(entry.value, MappingNode):
        inner.require("define")
    return Rights(
        place=entry.key_place,
        define=frozenset(
            word for node in inner.nodes("define") if (word := _read_word(node, inner, context)) is not None
        ),
        hosts=tuple(right for scalar in inner.texts("hosts") if (right := _read_host(scalar, context)) is not None),
        secrets=tuple(found for node in inner.nodes("secrets") if (found := _read_secret(node, context)) is not None),
        workloads=tuple(scalar.text for scalar in inner.texts("workloads") if _is_pattern(scalar, context)),
    )


def _read_word(node: Node, keys: Fields, context: Context) -> str | None:
    if isinstance(node, MappingNode) and len(node.entries) == 1 and isinstance(node.entries[0].value, Scalar):
        # YAML reads `scrub: none` without quotes as a mapping.
        text = f"{node.entries[0].key}: {node.entries[0].value.text}"
    elif isinstance(node, Scalar):
        text = node.text
    else:
        context.faults.add(node.place, f"'define' of {keys.what} must hold scalars, not {kind_of(node)}")
        return None
    word = SPELLINGS.get(text, text)
    if word in KINDS or word in GUARDED:
        return word
    near = nearest(word, (*KINDS, *GUARDED))
    mend = f"did you mean {near!r}?" if near else f"known here: {', '.join((*KINDS, *GUARDED))}"
    context.faults.add(node.place, f"{text!r} is nothing that a policy defines", mend)
    return None


def _read_host(scalar: Scalar, context: Context) -> HostRight | None:
    """`host` for port 443, `host:port`, `[v6]:port`; a wildcard for one label."""
    found = _PORT.fullmatch(scalar.text)
    name, port = (
        (found[1], int(found[2])) if found and (":" not in found[1] or found[1].endswith("]")) else (scalar.text, 443)
    )
    host = read_host(Scalar(name, scalar.place), context.faults)
    if port > 65535:
        context.faults.add(scalar.place, f"{scalar.text!r} holds no port", "ports go up to 65535")
        return None
    return HostRight(host, port) if host is not None else None


def _read_secret(node: Node, context: Context) -> SecretRight | None:
    """A pattern, or `{namespace: …, path: …}`."""
    namespace: str | None = None
    scalar = node if isinstance(node, Scalar) else None
    if scalar is None:
        keys = Fields(node, context.faults, "a secret of may", known=KNOWN["may_secret"])
        if not isinstance(node, MappingNode) or not keys.require("namespace", "path"):
            return None
        scalar, text = keys.scalar("path"), keys.text("namespace")
        namespace = text.strip("/") if text is not None else None
        if scalar is None or namespace is None:
            return None
        if not _is_path(namespace) or "*" in namespace:
            context.faults.add(
                keys.place_of("namespace"), f"{namespace!r} is no namespace", "a namespace is spelled out"
            )
            return None
    pattern = put_variables(scalar, context)
    if pattern is None:
        return None
    segments = tuple(pattern.strip("/").split("/"))
    if not _is_path(pattern.strip("/")) or any("**" in segment and segment != "**" for segment in segments):
        context.faults.add(
            scalar.place, f"{pattern!r} is no pattern of secrets", "write secret/pay/**; * stands inside one segment"
        )
        return None
    if "*" in segments[0] or len(segments) == 1:
        context.faults.add(
            scalar.place, f"{pattern!r} does not spell the mount and something in it", "write secret/pay/**"
        )
        return None
    return SecretRight(segments, namespace)


def _is_path(text: str) -> bool:
    return all(_SEGMENT.fullmatch(segment) and segment not in {".", ".."} for segment in text.split("/"))


def _is_pattern(scalar: Scalar, context: Context) -> bool:
    if _NAME.fullmatch(scalar.text):
        return True
    context.faults.add(
        scalar.place, f"{scalar.text!r} is no pattern of workloads", "write names, with * for any text: pay-*"
    )
    return False
