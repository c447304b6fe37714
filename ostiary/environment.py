"""The environment that brings a client to the proxy: what `exec` sets and `env` prints.

Owns the list of variables (docs/guides/clients.md tells which client reads which). Both spellings of the proxy
variables are set, because libraries disagree; every CA variable that replaces a client's roots is given a bundle of all
roots and ours, the ones that add are given ours alone.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

import certifi

from ostiary.java import TRUST_STORE, tool_options
from ostiary.java import VARIABLE as JAVA_TOOL_OPTIONS

REPLACING: Final = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "PIP_CERT",
    "npm_config_cafile",
    "CARGO_HTTP_CAINFO",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
)
ADDING: Final = ("NODE_EXTRA_CA_CERTS", "DENO_CERT")

PLACEHOLDERS: Final[Mapping[str, str]] = {
    "OPENAI_API_KEY": "sk-ostiary-placeholder",
    "ANTHROPIC_API_KEY": "sk-ant-ostiary-placeholder",
    "GEMINI_API_KEY": "ostiary-placeholder",
    "GITHUB_TOKEN": "ghp_ostiary-placeholder",
    "MISTRAL_API_KEY": "ostiary-placeholder",
    "GROQ_API_KEY": "gsk_ostiary-placeholder",
    "COHERE_API_KEY": "ostiary-placeholder",
    "DEEPSEEK_API_KEY": "sk-ostiary-placeholder",
    "OPENROUTER_API_KEY": "sk-or-ostiary-placeholder",
    "XAI_API_KEY": "xai-ostiary-placeholder",
    "HF_TOKEN": "hf_ostiary-placeholder",
    "STRIPE_API_KEY": "sk_test_ostiary_placeholder",
    "AWS_ACCESS_KEY_ID": "AKIAOSTIARYPLACEHOLD",
    "AWS_SECRET_ACCESS_KEY": "ostiary-placeholder",
}
"""For SDKs that refuse to start without a key. A variable that is already set is left alone: it may be meant for
something that does not pass the proxy."""

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class ClientEnvironment:
    """Variables to set, and what a person should know about them."""

    variables: Mapping[str, str]
    warnings: tuple[str, ...]


def proxy_url(address: str, key: str | None) -> str:
    """`http://` URL of a listener, with the caller key as password where there is one.

    Args:
        address: `host:port`, or a URL.
        key: caller key.
    """
    url = address if "://" in address else f"http://{address}"
    if key is None:
        return url
    split = urlsplit(url)
    host = split.netloc.rpartition("@")[2]
    return f"{split.scheme}://ostiary:{quote(key, safe='')}@{host}"


def write_bundle(folder: Path, ca_pem: bytes) -> Path:
    """Writes `bundle.pem`: the system's roots, certifi's and ours; replaced whole where it has changed.

    Raises:
        OSError: it cannot be written.
    """
    parts = [ca_pem.strip()]
    system: str | None = ssl.get_default_verify_paths().cafile
    if system is None:
        system = next(
            (
                path
                for path in ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
                if Path(path).exists()
            ),
            None,
        )
    bundle = folder / "bundle.pem"
    if system is not None and bundle.exists() and Path(system).exists() and bundle.samefile(system):
        # The shell has our environment already. What it calls the system's roots is this file: it would grow each time.
        if bundle.read_bytes().startswith(parts[0]):
            return bundle
        system = ssl.get_default_verify_paths().openssl_cafile
    for roots in (certifi.where(), system):
        if roots is not None:
            with contextlib.suppress(OSError):
                parts.append(Path(roots).read_bytes().strip())
    content = b"\n".join(parts) + b"\n"
    return write_public(bundle, content)


def write_public(path: Path, content: bytes) -> Path:
    """Writes a file that anybody may read; replaced whole where it has changed.

    Raises:
        OSError: it cannot be written.
    """
    if not path.exists() or path.read_bytes() != content:
        fresh = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
        fresh.write_bytes(content)
        fresh.chmod(0o644)
        fresh.replace(path)
    return path


def client_environment(
    proxy: str,
    ca_file: Path,
    bundle: Path,
    inherited: Mapping[str, str],
    routed: Iterable[str],
    presets: Mapping[str, str] | None = None,
) -> ClientEnvironment:
    """What to set for a client.

    Args:
        proxy: URL of the proxy, key included.
        ca_file: our CA certificate.
        bundle: all roots and ours; the Java trust store lies beside it.
        inherited: what the client has already.
        routed: hosts that routes name; a NO_PROXY that passes one by is told.
        presets: placeholders of the presets that routes use; they stand before ours.
    """
    variables: dict[str, str] = {}
    for name in ("HTTPS_PROXY", "HTTP_PROXY"):
        variables[name] = variables[name.lower()] = proxy
    no_proxy = inherited.get("NO_PROXY") or inherited.get("no_proxy") or ""
    entries = [entry.strip() for entry in no_proxy.split(",") if entry.strip()]
    warnings = [
        f"NO_PROXY entry {entry!r} takes {host} past the proxy: its requests go out without a credential"
        for host in routed
        for entry in entries
        if bypasses(entry, host)
    ]
    variables["NO_PROXY"] = variables["no_proxy"] = ",".join(dict.fromkeys([*entries, *LOOPBACK]))
    for name in REPLACING:
        variables[name] = str(bundle)
    for name in ADDING:
        variables[name] = str(ca_file)
    variables[JAVA_TOOL_OPTIONS] = tool_options(
        proxy, bundle.with_name(TRUST_STORE), [*entries, *LOOPBACK], inherited.get(JAVA_TOOL_OPTIONS, "")
    )
    # Node reads the proxy variables only when told to (22.21 and later).
    variables["NODE_USE_ENV_PROXY"] = "1"
    # A preset may be a policy author's: it says what an SDK wants to see, never how the client reaches the proxy.
    placeholders = {**PLACEHOLDERS, **{name: value for name, value in (presets or {}).items() if name not in variables}}
    variables.update({name: value for name, value in placeholders.items() if not inherited.get(name)})
    kept = [name for name, value in placeholders.items() if inherited.get(name) and inherited[name] != value]
    if kept:
        warnings.append(
            f"{', '.join(kept)} hold keys already; on a routed host the proxy replaces them, so they can go"
        )
    return ClientEnvironment(variables, tuple(warnings))


def bypasses(entry: str, host: str) -> bool:
    """Whether a client would take the host past the proxy because of this NO_PROXY entry, read in the widest way that
    clients do.
    """
    if entry == "*":
        return True
    name = entry.rpartition(":")[0] if entry.count(":") == 1 else entry
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False)
    except ValueError:
        pass
    suffix = name.removeprefix("*").lstrip(".").lower()
    plain = host.removeprefix("*.")
    return bool(suffix) and (plain == suffix or plain.endswith(f".{suffix}"))
