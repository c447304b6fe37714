"""Holds files with rights of their own to them: every key that `may` does not grant is a fault at its place.

The tree of each file is walked as it was written, so that all faults of all files are told at once. What one file takes
from another shows only in what the whole loads to: `load_boundaries.py` asks that, and asks these questions once more.
`WALKED` names the keys whose rights have been thought about; in a limited file any other is a fault, so that a key that
a later version learns is not granted by having been forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from policies.document import Entry, Node, Scalar, Sequence
from policies.document import Mapping as MappingNode
from policies.faults import Faults, Place
from policies.fields import Fields
from policies.keys import MATCH, TABLES
from policies.load_derive import TABLE_OF, endpoint_of
from policies.load_parts import Context, read_host, read_secret
from policies.load_reverse import read_upstream
from policies.load_tls import read_client_cert
from policies.model import HostPattern, SecretSpec
from policies.rights import GUARDED, KINDS, Rights, whole_path
from policies.sign import TransitKey

type Owned = tuple[Entry, Path]
"""A definition and the file it stands in."""

_CLIENT: Final = frozenset({
    "token_url", "client_id", "client_secret", "auth", "key", "key_id", "algorithm", "assertion_audience", "scopes",
    "client_cert",
})  # fmt: skip
_STS: Final = frozenset({"role_arn", "region", "session_name", "duration"})
WALKED: Final[Mapping[str, frozenset[str]]] = {
    "file": frozenset({"version", *KINDS}),
    "workload": frozenset({"proofs", "labels"}),
    "proof": frozenset({"key_hash", "any", "peer"}),
    "credential": frozenset({"secret", "secrets", "derive"}),
    "secret": frozenset({"path", "field", "engine", "mount", "namespace", "kv", "version", "ttl", "max_stale", "watch", "public"}),
    "route": frozenset({
        "match", "allow", "deny", "secret", "secrets", "credential", "derive", "inject", "sign", "caller_credentials", "mode",
        "http2", "allow_cleartext", "egress", "tls", "timeouts", "listener", "upstream", "reply", "use",
        "verify",
    }),
    "preset": frozenset({
        "docs", "checked", "driven", "parameters", "placeholder", "sdk", "example", "match", "deny", "secret", "secrets", "derive", "inject",
        "sign", "caller_credentials", "http2", "timeouts", "reply",
    }),
    "match": frozenset({"host", "port", "methods", "paths"}),
    "grant": frozenset({"workload", "group", "credential", "methods", "paths", "reason"}),
    "deny": frozenset({"workload", "group", "methods", "paths"}),
    "derive": frozenset({
        "client_credentials", "refresh_token", "jwt_bearer", "token_exchange", "google_service_account", "github_app", "jwt",
        "aws_assume_role", "aws_web_identity", "azure",
    }),
    "client_credentials": _CLIENT | {"audience", "per"},
    "refresh_token": _CLIENT | {"refresh_token"},
    "jwt_bearer": frozenset({
        "token_url", "issuer", "subject", "audience", "algorithm", "key", "key_id", "scopes",
    }),
    "token_exchange": _CLIENT | {
        "subject_token", "subject_token_type", "actor_token", "actor_token_type", "requested_token_type", "audience",
        "resource", "per",
    },
    "google_service_account": frozenset({"key_json", "scopes", "audience", "subject", "token_url"}),
    "github_app": frozenset({"app_id", "installation_id", "private_key", "permissions", "repositories", "api_url"}),
    "minted_jwt": frozenset({"algorithm", "key", "issuer", "subject", "audience", "ttl", "claims", "key_id"}),
    "aws_assume_role": _STS | {"access_key_id", "secret_access_key", "session_token", "external_id"},
    "aws_web_identity": _STS | {"token"},
    "azure": frozenset({"tenant", "client_id", "client_secret", "certificate", "scope", "host"}),
    "tls": frozenset({"ca_file", "client_cert", "pin_spki"}),
    "client_cert": frozenset({
        "path", "cert", "key", "pki", "mount", "namespace", "kv", "version", "ttl", "max_stale", "watch",
    }),
    "pki": frozenset({"mount", "role", "common_name", "uri_sans", "ttl", "namespace"}),
    "reply": frozenset({"scrub"}),
    "test": frozenset({"as", "request", "headers", "listener", "expect"}),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """The rights of all files of one load, and where faults against them go."""

    rights: Mapping[Path, Rights | None]
    context: Context

    def of(self, path: Path) -> Rights | None:
        return self.rights.get(path)

    @property
    def any(self) -> bool:
        return any(rights is not None for rights in self.rights.values())

    # --- as written ---

    def kinds(self, root: Node, path: Path) -> None:
        """The top-level keys of a file."""
        rights = self.of(path)
        if rights is None or not isinstance(root, MappingNode):
            return
        self._walked("file", root, rights)
        for entry in root:
            if entry.key in KINDS and entry.key not in rights.define:
                self._define(entry.key_place, entry.key, entry.key, rights)

    def workload(self, entry: Entry, path: Path) -> None:
        """A workload that a file defines: its name, and proofs that could be those of another."""
        rights = self.of(path)
        if rights is None:
            return
        self._name(Scalar(entry.key, entry.key_place), "workload", rights)
        self._walked("workload", entry.value, rights)
        for proof in _items(_at(entry.value, "proofs")):
            self._walked("proof", proof, rights)
            self._guarded(proof, "peer", "peer", rights)

    def group(self, entry: Entry, path: Path) -> None:
        """A group that a file defines: its name and its members."""
        rights = self.of(path)
        if rights is None:
            return
        self._name(Scalar(entry.key, entry.key_place), "group", rights)
        for member in _scalars(entry.value):
            self._name(member, "workload", rights)

    def credential(self, entry: Entry, path: Path) -> None:
        """A credential that a file defines: its secrets."""
        rights = self.of(path)
        if rights is not None:
            self._walked("credential", entry.value, rights)
            self._secrets(entry.value, path, rights)
            self._derive(_at(entry.value, "derive"), rights)

    def route(
        self, entry: Entry, path: Path, groups: Mapping[str, frozenset[str]], credentials: Mapping[str, Owned]
    ) -> None:
        """A route: hosts, who, secrets, credentials of others, guarded keys."""
        rights = self.of(path)
        if rights is None:
            return
        self._walked("route", entry.value, rights)
        self._hosts(_at(entry.value, "match"), rights)
        self._upstream(_at(entry.value, "upstream"), rights)
        for key, table in (("allow", "grant"), ("deny", "deny")):
            for item in _items(_at(entry.value, key)):
                self._who(item, table, groups, rights)
                self._shared(_at(item, "credential"), credentials, rights)
        self._shared(_at(entry.value, "credential"), credentials, rights)
        self._secrets(entry.value, path, rights)
        self._transit(entry.value, rights)
        self._derive(_at(entry.value, "derive"), rights)
        self._guarded(entry.value, "egress", "egress", rights)
        self._guarded(entry.value, "allow_cleartext", "allow_cleartext", rights)
        self._walked("tls", _at(entry.value, "tls"), rights)
        self._guarded(_at(entry.value, "tls"), "ca_file", "tls.ca_file", rights)
        self._client_cert(_at(_at(entry.value, "tls"), "client_cert"), rights)
        self._walked("reply", _at(entry.value, "reply"), rights)
        self._guarded(_at(entry.value, "reply"), "scrub", "scrub: none", rights)

    def preset(self, entry: Entry, path: Path) -> None:
        """What a preset of this file says, alone or with the parameters of a route: hosts, secrets, guarded keys."""
        rights = self.of(path)
        if rights is not None:
            self._walked("preset", entry.value, rights)
            self.route(entry, path, {}, {})

    def test(self, node: Node, path: Path) -> None:
        """An example: the workload it speaks as."""
        rights = self.of(path)
        if rights is None:
            return
        self._walked("test", node, rights)
        for scalar in _scalars(_at(node, "as")):
            self._name(scalar, "workload", rights)

    def _hosts(self, match: Node | None, rights: Rights) -> None:
        self._walked("match", match, rights)
        if match is None:
            return
        scratch = Faults()
        keys = Fields(match, scratch, "match", known=MATCH)
        port = keys.integer("port", 443) or 443
        for scalar in keys.texts("host"):
            host = read_host(scalar, scratch)
            if host is not None and not rights.host(host, port):
                named = host.text if port == 443 else f"{host.text}:{port}"
                self._add(scalar.place, f"no route of this file may name {named}", f"add {named!r} to hosts", rights)

    def _upstream(self, written: Node | None, rights: Rights) -> None:
        found = read_upstream(written, Faults()) if isinstance(written, Scalar) else None
        if written is not None and found is not None and not rights.host(HostPattern(found.host), found.port):
            named = found.host if found.port == 443 else f"{found.host}:{found.port}"
            self._add(written.place, f"no route of this file may lead to {named}", f"add {named!r} to hosts", rights)

    def _derive(self, written: Node | None, rights: Rights) -> None:
        """Where a token is asked for: a secret is sent there."""
        self._walked("derive", written, rights)
        for entry in written if isinstance(written, MappingNode) else ():
            if entry.key in TABLE_OF:
                self._walked(TABLE_OF[entry.key], entry.value, rights)
                self._client_cert(_at(entry.value, "client_cert"), rights)
                self._shown(entry, rights)
        found = endpoint_of(written, Context(Faults(), self.context.variables, self.context.folder))
        if found is None:
            return
        endpoint, node = found
        if not rights.host(HostPattern(endpoint.host), endpoint.port):
            named = endpoint.host if endpoint.port == 443 else f"{endpoint.host}:{endpoint.port}"
            self._add(node.place, f"no token of this file may be asked of {named}", f"add {named!r} to hosts", rights)

    def _shown(self, grant: Entry, rights: Rights) -> None:
        """The certificate that a token endpoint is shown: also a preset may name one, for routes of others."""
        written = _at(grant.value, "client_cert")
        if written is None:
            return
        scratch = Context(Faults(), self.context.variables, self.context.folder)
        keys = Fields(grant.value, scratch.faults, "derive", known=TABLES[TABLE_OF[grant.key]])
        _, spec = read_client_cert("derive", keys, scratch)
        if spec is not None and not rights.secret(spec):
            message = f"this file may not show the certificate {shown_secret(spec)}"
            self._add(written.place, message, f"add {shown_secret(spec)} to secrets", rights)

    def _client_cert(self, written: Node | None, rights: Rights) -> None:
        # Which secret it may read, and which role it may ask, the loaded route tells (`load_boundaries.py`).
        self._walked("client_cert", written, rights)
        self._walked("pki", _at(written, "pki"), rights)

    def _who(self, item: Node, table: str, groups: Mapping[str, frozenset[str]], rights: Rights) -> None:
        self._walked(table, item, rights)
        if isinstance(item, Scalar):
            if item.text in groups:
                self._members(item, groups, rights)
            else:
                self._name(item, "workload", rights)
            return
        for scalar in _scalars(_at(item, "workload")):
            self._name(scalar, "workload", rights)
        for scalar in _scalars(_at(item, "group")):
            self._members(scalar, groups, rights)

    def _members(self, scalar: Scalar, groups: Mapping[str, frozenset[str]], rights: Rights) -> None:
        beyond = sorted(name for name in groups.get(scalar.text, ()) if not rights.workload(name))
        if beyond:
            self._add(
                scalar.place,
                f"group {scalar.text!r} holds workload {beyond[0]!r}, which this file may not name",
                f"name workloads of this file alone, or add {beyond[0]!r} to workloads",
                rights,
            )

    def _name(self, scalar: Scalar, kind: str, rights: Rights) -> None:
        if not rights.workload(scalar.text):
            self._add(
                scalar.place,
                f"this file may not name {kind} {scalar.text!r}",
                f"add {scalar.text!r} to workloads",
                rights,
            )

    def _shared(self, node: Node | None, credentials: Mapping[str, Owned], rights: Rights) -> None:
        """A credential by name: one of the same entry, or one whose secrets this file could read itself."""
        if not isinstance(node, Scalar) or node.text not in credentials:
            return
        entry, home = credentials[node.text]
        if self.of(home) is rights:
            return
        for spec, _ in self._specs(entry.value, home):
            if not rights.secret(spec):
                self._add(
                    node.place,
                    f"credential {node.text!r} is defined at {entry.key_place} with secrets that this file may not read",
                    f"use a credential of this file, or add {shown_secret(spec)} to secrets",
                    rights,
                )
                return

    def _secrets(self, node: Node, path: Path, rights: Rights) -> None:
        for spec, written in self._specs(node, path):
            self._walked("secret", written, rights)
            if not rights.secret(spec):
                key = (
                    "namespace"
                    if spec.namespace is not None and rights.secret(replace(spec, namespace=None))
                    else "path"
                )
                found = _at(written, key)
                self._add(
                    found.place if found is not None else written.place,
                    f"this file may not read secret {shown_secret(spec)}",
                    f"add {shown_secret(spec)} to secrets",
                    rights,
                )
            self._guarded(written, "public", "scrub: none", rights)

    def _transit(self, node: Node, rights: Rights) -> None:
        """Keys that stay in Vault: `secrets` names them as MOUNT/keys/NAME."""
        users = [(word, user) for word in ("sign", "verify") for user in _items(_at(node, word))]
        for word, user in users:
            for kind in user if isinstance(user, MappingNode) else ():
                written = _at(kind.value, "transit")
                texts = {
                    key: one.text
                    for key in ("key", "mount", "namespace")
                    if isinstance(one := _at(written, key), Scalar)
                }
                if written is None or "key" not in texts:
                    continue
                mount, namespace = texts.get("mount", "transit").strip("/"), texts.get("namespace", "").strip("/")
                spec = spec_of_key(TransitKey(texts["key"], mount, namespace or None))
                if not rights.secret(spec):
                    self._add(
                        written.place,
                        f"this file may not {word} with key {shown_secret(spec)}",
                        f"add {shown_secret(spec)} to secrets",
                        rights,
                    )

    def _specs(self, node: Node, path: Path) -> Iterator[tuple[SecretSpec, Node]]:
        """The secrets under `secret:` and `secrets:`; what cannot be read is a fault that its reader tells."""
        scratch = Context(Faults(), self.context.variables, path.parent)
        several = _at(node, "secrets")
        for found in (
            _at(node, "secret"),
            *(entry.value for entry in (several if isinstance(several, MappingNode) else ())),
        ):
            spec = read_secret(found, "secret", scratch) if found is not None else None
            if found is not None and spec is not None:
                yield spec, found

    # --- what it says ---

    def _walked(self, table: str, node: Node | None, rights: Rights) -> None:
        """Keys that nobody has thought about are not granted; what no table knows is the loader's fault to tell."""
        for entry in node if isinstance(node, MappingNode) else ():
            if entry.key not in WALKED[table] and entry.key in TABLES[table]:
                self.context.faults.add(
                    entry.key_place,
                    f"{entry.key!r} cannot be granted to a file with rights of its own yet",
                    f"write it in a file that is not limited; this one is by may at {rights.place}",
                )

    def _guarded(self, node: Node | None, key: str, word: str, rights: Rights) -> None:
        found = node.get(key) if isinstance(node, MappingNode) else None
        if found is None or word in rights.define:
            return
        text = found.value.text if isinstance(found.value, Scalar) else None
        if text != "false" and not (word == "scrub: none" and key == "scrub" and text != "none"):
            self._define(found.key_place, key, word, rights, GUARDED[word])

    def _define(self, place: Place, key: str, word: str, rights: Rights, why: str = "") -> None:
        message = f"this file may not write {key!r}" + (f": {why}" if why else "")
        self._add(place, message, f"add {word!r} to define", rights)

    def _add(self, place: Place, message: str, mend: str, rights: Rights) -> None:
        self.context.faults.add(place, message, f"{mend} of may at {rights.place}")


def spec_of_key(key: TransitKey) -> SecretSpec:
    """A key that stays in Vault, as `secrets` of `may` names it."""
    return SecretSpec(f"{key.mount}/keys/{key.key}", namespace=key.namespace)


def shown_secret(spec: SecretSpec) -> str:
    """A secret the way `secrets` of `may` would name it."""
    path = repr(whole_path(spec))
    return f"{{namespace: {spec.namespace}, path: {path}}}" if spec.namespace is not None else path


def _at(node: Node | None, key: str) -> Node | None:
    found = node.get(key) if isinstance(node, MappingNode) else None
    return found.value if found is not None else None


def _items(node: Node | None) -> tuple[Node, ...]:
    if node is None:
        return ()
    return node.items if isinstance(node, Sequence) else (node,)


def _scalars(node: Node | None) -> tuple[Scalar, ...]:
    return tuple(item for item in _items(node) if isinstance(item, Scalar))
