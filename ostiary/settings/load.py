"""Loads ostiary.yaml: every fault of settings and policies together, each with file, line and column.

The environment overrides scalars: `OSTIARY_<SECTION>__<KEY>=value` stands for `section: {key: value}`
(`OSTIARY_LIMITS__DRAIN_TIMEOUT=30s`). Relative paths are relative to the settings file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, cast

from addons.audit import AuditConfig, FileSink, StdoutSink
from addons.user_addon import UserAddon
from ostiary.settings.addons import read_addons
from ostiary.settings.admin import read_admin
from ostiary.settings.keys import KNOWN, LATER
from ostiary.settings.listen import read_listeners
from ostiary.settings.model import DEFAULT_ENGINE, ENGINES, EgressSetting, EngineName, Limits, Settings
from ostiary.settings.rights import read_policies
from ostiary.settings.state import read_state
from ostiary.settings.together import judge_policy
from ostiary.settings.transit import judge_keys
from ostiary.settings.vault import read_vault
from ostiary.settings.workers import MAX_WORKERS, MIN_BUFFERS, check_workers
from policies import Policy, PolicyText, load_sources, load_texts
from policies.document import Entry, Node, Scalar, kind_of, read_file
from policies.document import Mapping as MappingNode
from policies.faults import Fault, FaultError, Faults, Place, nearest
from policies.fields import Fields
from policies.load_parts import Context, read_network, read_resolve
from vault.sealed import KeyCredential, KeyEnv, KeyFile, KeySource

_OVERRIDE: Final = re.compile(r"OSTIARY_([A-Z][A-Z0-9_]*?)__([A-Z][A-Z0-9_]*)")


@dataclass(slots=True)
class Texts:
    """What was read to make settings and policy."""

    settings: bytes = b""
    policy: list[PolicyText] = field(default_factory=list)

    def take(self, raw: bytes) -> None:
        self.settings = raw


def load_settings(path: Path, environ: Mapping[str, str]) -> Settings:
    """The settings of a file.

    Raises:
        FaultError: every fault.
    """
    faults = Faults()
    settings = _load(path, environ, faults)
    faults.raise_any()
    if settings is None:
        raise FaultError([Fault(Place(str(path)), "cannot be used")])
    return settings


def load_all(path: Path, environ: Mapping[str, str], *, private: bool = False) -> tuple[Settings, Policy]:
    """Settings and policy together. Addons are named by the settings, not loaded.

    Args:
        path: of ostiary.yaml.
        environ: of the process.
        private: for a private proxy of `exec`, which brings its own listener: rules about listeners do not apply.

    Raises:
        FaultError: every fault of both.
    """
    faults = Faults()
    settings, policy = _load_all(path, environ, faults, private=private)
    return _whole(path, settings, policy, faults)


def load_to_run(
    path: Path,
    environ: Mapping[str, str],
    *,
    private: bool = False,
    workers: int | None = None,
    texts: Texts | None = None,
) -> tuple[Settings, Policy, tuple[UserAddon, ...]]:
    """Settings, policy, and the users' addons made: what `run` needs and `check` tries.

    Args:
        path: of ostiary.yaml.
        environ: of the process.
        private: as of `load_all`.
        workers: as `run --workers` has it; it wins over the settings.
        texts: is given what was read.

    Raises:
        FaultError: every fault of all three.
    """
    from ostiary.user_addons import load_addons

    faults = Faults()
    settings, policy = _load_all(path, environ, faults, private=private, workers=workers, texts=texts)
    addons = load_addons(settings.addons, faults) if settings is not None else ()
    return (*_whole(path, settings, policy, faults), addons)


def load_texts_to_run(
    path: Path, environ: Mapping[str, str], texts: Texts, workers: int
) -> tuple[Settings, Policy, tuple[UserAddon, ...]]:
    """As `load_to_run`, from what another process has read: files that were edited since do not count.

    Raises:
        FaultError: every fault of all three.
    """
    from ostiary.user_addons import load_addons

    faults = Faults()
    settings = _load(path, environ, faults, workers=workers, held=texts.settings)
    faults.raise_any()
    if settings is None:
        raise FaultError([Fault(Place(str(path)), "cannot be used")])
    policy = load_texts(texts.policy, settings.policies, variables=settings.variables)
    addons = load_addons(settings.addons, faults)
    faults.raise_any()
    return settings, policy, addons


def _whole(path: Path, settings: Settings | None, policy: Policy | None, faults: Faults) -> tuple[Settings, Policy]:
    faults.raise_any()
    if settings is None or policy is None:
        raise FaultError([Fault(Place(str(path)), "cannot be used")])
    return settings, policy


def _load_all(
    path: Path,
    environ: Mapping[str, str],
    faults: Faults,
    *,
    private: bool,
    workers: int | None = None,
    texts: Texts | None = None,
) -> tuple[Settings | None, Policy | None]:
    settings = _load(path, environ, faults, workers=1 if private else workers, texts=texts)
    policy: Policy | None = None
    if settings is not None and settings.policies:
        try:
            policy = load_sources(
                settings.policies, variables=settings.variables, texts=texts.policy if texts is not None else None
            )
        except FaultError as error:
            faults.found.extend(error.faults)
    if settings is not None and policy is not None:
        judge_keys(settings.store, policy, faults)
    if settings is not None and policy is not None and not private:
        _together(settings, policy, faults)
    return settings, policy


def judge_reloaded(settings: Settings, policy: Policy, faults: Faults, *, private: bool = False) -> None:
    """What settings and a policy that is read again together can show."""
    judge_keys(settings.store, policy, faults)
    if not private:
        judge_policy(settings, policy, faults)


def _together(settings: Settings, policy: Policy, faults: Faults) -> None:
    """What only settings and policy together can show."""
    judge_policy(settings, policy, faults)
    named = {listener.workload for listener in settings.listen}
    for listener in settings.listen:
        if listener.workload is not None and listener.workload not in policy.workloads:
            near = nearest(listener.workload, policy.workloads)
            faults.add(
                listener.place,
                f"listener {listener.name!r} names workload {listener.workload!r}, which no policy defines",
                f"did you mean {near!r}?" if near else "define it under workloads:",
            )
    for workload in policy.workloads_with_any:
        if workload not in named:
            faults.add(
                Place(str(settings.file)),
                f"workload {workload!r} has the proof any: true, and no listener names it",
                f"add workload: {workload} to a listener, or give it a key_hash",
            )


def _load(
    path: Path,
    environ: Mapping[str, str],
    faults: Faults,
    *,
    workers: int | None = None,
    held: bytes | None = None,
    texts: Texts | None = None,
) -> Settings | None:
    try:
        root = read_file(path, held=held, seen=texts.take if texts is not None else None)
    except FaultError as error:
        faults.found.extend(error.faults)
        return None
    root = _overridden(root, environ, faults)
    keys = Fields(root, faults, "the settings", known=KNOWN["settings"], later=LATER["settings"])
    if not isinstance(root, MappingNode):
        return None
    context = Context(faults, {}, path.resolve().parent)
    keys.require("listen", "ca", "audit", "policies")
    vault = read_vault(keys.node("vault"), context, environ)
    variables = _variables(keys)
    secrets_file, secrets_key = _path(keys, "secrets_file", context), _secrets_key(keys, context)
    settings = Settings(
        file=path,
        listen=read_listeners(keys, context),
        ca_dir=_ca_dir(keys, context),
        audit=_audit(keys, context),
        policies=read_policies(keys, replace(context, variables=variables)),
        variables=variables,
        store=_store(keys, secrets_file, secrets_key),
        vault=vault,
        secrets_file=secrets_file,
        secrets_key=secrets_key,
        egress=_egress(keys, context),
        admin=read_admin(keys.node("admin"), context),
        limits=_limits(keys),
        addons=read_addons(keys, context),
        engine=cast("EngineName", keys.choice("engine", ENGINES, DEFAULT_ENGINE)),
        state=read_state(keys.node("state"), context, environ),
        workers=keys.integer("workers", 1, low=1, high=MAX_WORKERS) or 1,
    )
    if workers is not None:
        settings = replace(settings, workers=workers)
    check_workers(settings, Place("--workers") if workers is not None else keys.place_of("workers"), faults)
    return settings


# --- the environment ---


def _overridden(root: Node, environ: Mapping[str, str], faults: Faults) -> Node:
    """Puts `OSTIARY_SECTION__KEY` in place of scalars."""
    if not isinstance(root, MappingNode):
        return root
    for variable in sorted(environ):
        if not variable.startswith("OSTIARY_") or "__" not in variable:
            continue
        found = _OVERRIDE.fullmatch(variable)
        section, key = (found[1].lower(), found[2].lower()) if found else ("", "")
        place = Place(f"${variable}")
        if (
            section not in KNOWN
            or key not in KNOWN[section]
            or section
            in {
                "settings",
                "listen",
                "listen_tls",
                "sink",
                "auth",
                "addon",
                "token",
                "policies",
                "may",
                "may_secret",
            }
        ):
            faults.add(
                place,
                "names no setting that can be overridden",
                "OSTIARY_<SECTION>__<KEY>, such as OSTIARY_LIMITS__DRAIN_TIMEOUT=30s",
            )
            continue
        root = _put(root, section, key, Scalar(environ[variable], place, quoted=True), faults)
    return root


def _put(root: MappingNode, section: str, key: str, value: Scalar, faults: Faults) -> MappingNode:
    old = root.get(section)
    inner = old.value if old is not None else MappingNode((), value.place)
    if not isinstance(inner, MappingNode):
        faults.add(value.place, f"{section} is no mapping in the settings file")
        return root
    replaced = MappingNode(
        (*(entry for entry in inner if entry.key != key), Entry(key, value.place, value)), inner.place
    )
    return MappingNode(
        (*(entry for entry in root if entry.key != section), Entry(section, inner.place, replaced)), root.place
    )


# --- parts ---


def _path(keys: Fields, key: str, context: Context) -> Path | None:
    scalar = keys.scalar(key)
    return None if scalar is None or not scalar.text else context.folder / scalar.text


def _ca_dir(keys: Fields, context: Context) -> Path:
    node = keys.node("ca")
    if node is None:
        return Path()
    inner = Fields(node, context.faults, "ca", known=KNOWN["ca"], later=LATER["ca"])
    inner.require("dir")
    return _path(inner, "dir", context) or Path()


def _audit(keys: Fields, context: Context) -> AuditConfig:
    node = keys.node("audit")
    if node is None:
        return AuditConfig(())
    inner = Fields(node, context.faults, "audit", known=KNOWN["audit"])
    sinks: list[FileSink | StdoutSink] = []
    if inner.require("sinks"):
        for item in inner.nodes("sinks"):
            sink = Fields(item, context.faults, "an audit sink", known=KNOWN["sink"], later=LATER["sink"])
            if not isinstance(item, MappingNode):
                continue
            path = _path(sink, "file", context)
            if path is not None and "stdout" in sink:
                context.faults.add(item.place, "an audit sink has one kind", "write two items")
            elif path is not None:
                sinks.append(FileSink(path))
            elif "stdout" in sink:
                if sink.boolean("stdout"):
                    sinks.append(StdoutSink())
                else:
                    context.faults.add(
                        sink.place_of("stdout"), "stdout must be true", "remove the sink if it should not be used"
                    )
            elif not any(entry.key in LATER["sink"] for entry in item):
                sink.require("file")
    durability = inner.choice("durability", {"written", "fsync"}, "written") or "written"
    wait_s, reserve = inner.duration("wait", 2.0), inner.size("reserve", 64 * 1024 * 1024)
    return AuditConfig(
        tuple(dict.fromkeys(sinks)),
        cast("Literal['written', 'fsync']", durability),
        wait_s or 2.0,
        reserve if reserve is not None else 0,
    )


def _variables(keys: Fields) -> Mapping[str, str]:
    node = keys.node("vars")
    if node is None:
        return {}
    if not isinstance(node, MappingNode):
        keys.faults.add(node.place, f"vars must be a mapping, not {kind_of(node)}")
        return {}
    found: dict[str, str] = {}
    for entry in node:
        if isinstance(entry.value, Scalar):
            found[entry.key] = entry.value.text
        else:
            keys.faults.add(entry.value.place, f"variable {entry.key!r} must be a scalar, not {kind_of(entry.value)}")
    return found


def _secrets_key(keys: Fields, context: Context) -> KeySource | None:
    node = keys.node("secrets_key")
    if node is None:
        return None
    inner = Fields(node, context.faults, "secrets_key", known=KNOWN["secrets_key"])
    given = [key for key in KNOWN["secrets_key"] if key in inner]
    if len(given) != 1:
        context.faults.add(node.place, "secrets_key has one kind", "one of file, env, credential")
        return None
    if given[0] == "file":
        path = _path(inner, "file", context)
        return None if path is None else KeyFile(path)
    text = inner.text(given[0])
    if text is None:
        return None
    return KeyEnv(text) if given[0] == "env" else KeyCredential(text)


def _store(keys: Fields, secrets_file: Path | None, secrets_key: KeySource | None) -> Literal["vault", "sealed"]:
    default = "vault" if "vault" in keys else "sealed"
    chosen = keys.choice("store", {"vault", "sealed"}, default) or default
    if chosen == "vault" and "vault" not in keys:
        keys.faults.add(
            keys.place_of("store"), "store: vault needs a vault block", "add vault: {addresses: […], auth: {…}}"
        )
    if chosen == "sealed":
        if secrets_file is None:
            keys.faults.add(
                keys.place,
                "the settings name no place where secrets live",
                "add vault: {…}, or secrets_file: and secrets_key: for the embedded store",
            )
        elif secrets_key is None and "secrets_key" not in keys:
            keys.faults.add(
                keys.place_of("secrets_file"),
                "secrets_file needs a secrets_key",
                "add secrets_key: {file: …}; ostiary secret init makes both",
            )
    return cast("Literal['vault', 'sealed']", chosen)


def _egress(keys: Fields, context: Context) -> EgressSetting:
    node = keys.node("egress")
    if node is None:
        return EgressSetting()
    inner = Fields(node, context.faults, "egress", known=KNOWN["egress"])
    allow = tuple(
        block for scalar in inner.texts("allow") if (block := read_network(scalar, context.faults)) is not None
    )
    ca_file = _path(inner, "ca_file", context)
    if ca_file is not None and not ca_file.is_file():
        context.faults.add(
            inner.place_of("ca_file"),
            f"{ca_file} is no file that can be read",
            "paths are relative to the settings file",
        )
    return EgressSetting(allow, read_resolve(inner.node("resolve"), context.faults), ca_file)


def _limits(keys: Fields) -> Limits:
    node = keys.node("limits")
    default = Limits()
    if node is None:
        return default
    inner = Fields(node, keys.faults, "limits", known=KNOWN["limits"], later=LATER["limits"])

    def count(key: str, value: int, low: int) -> int:
        return inner.integer(key, value, low=low, high=1_000_000) or value

    def seconds(key: str, value: float) -> float:
        found = inner.duration(key, value)
        return value if found is None else found

    return Limits(
        request_line=inner.size("request_line", default.request_line) or default.request_line,
        header_bytes=inner.size("header_bytes", default.header_bytes) or default.header_bytes,
        header_count=count("header_count", default.header_count, 1),
        header_timeout=seconds("header_timeout", default.header_timeout),
        connect_timeout=seconds("connect_timeout", default.connect_timeout),
        first_byte_timeout=seconds("first_byte_timeout", default.first_byte_timeout),
        idle_timeout=seconds("idle_timeout", default.idle_timeout),
        total_timeout=_total(inner, default),
        drain_timeout=seconds("drain_timeout", default.drain_timeout),
        connections=count("connections", default.connections, 1),
        connections_per_source=count("connections_per_source", default.connections_per_source, 1),
        connections_per_workload=_per_workload(inner, default),
        buffers=_buffers(inner, default),
        buffered_body=_buffered_body(inner, default),
    )


def _buffers(keys: Fields, default: Limits) -> int:
    found = keys.size("buffers", default.buffers) or default.buffers
    if found < MIN_BUFFERS:
        keys.faults.add(
            keys.place_of("buffers"), "buffers is less than a single connection may hold", "write at least 1MiB"
        )
    return found


def _buffered_body(keys: Fields, default: Limits) -> int:
    most = keys.size("buffers", default.buffers) or default.buffers
    if keys.scalar("buffered_body") is None:
        return min(default.buffered_body, most)
    found = keys.size("buffered_body", default.buffered_body) or default.buffered_body
    if found > most:
        keys.faults.add(
            keys.place_of("buffered_body"),
            "buffered_body is more than all bodies together may hold",
            "write less than buffers, of which it is a part",
        )
    return found


def _per_workload(keys: Fields, default: Limits) -> int:
    scalar = keys.scalar("connections_per_workload")
    if scalar is None or scalar.text == "none":
        return default.connections_per_workload
    return keys.integer("connections_per_workload", 0, low=1, high=1_000_000) or default.connections_per_workload


def _total(keys: Fields, default: Limits) -> float:
    scalar = keys.scalar("total_timeout")
    if scalar is None or scalar.text == "none":
        return default.total_timeout
    found = keys.duration("total_timeout", default.total_timeout)
    return default.total_timeout if found is None else found
