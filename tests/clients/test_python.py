"""Clients written in Python, unchanged where their row says nothing else: both ways, which variable names their roots, and when they
show the caller key."""

from __future__ import annotations

import base64
import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from tests.harness.ostiary_process import ENGINES
from tests.harness.registries import pip
from tests.harness.relay import AT_ONCE, relaying
from tests.harness.report import client as stated
from tests.harness.report import measuring
from tests.harness.two_ways import PLACEHOLDER, PROGRAMS, WAYS, Served, with_roots
from tests.harness.upstream import Script
from tests.harness.vendors import Objects, anthropic, gemini, github, openai, openai_files, stripe, vault, websocket

BASIC = '{basic: {username: reader, password: "{secret}"}}'


@dataclass(frozen=True, slots=True)
class Client:
    """One row: what runs, against what, and what it needs."""

    program: tuple[str, ...]
    """A file of `programs/python`, or arguments for the interpreter."""
    printed: str
    script: Callable[[], Script | None] = lambda: None
    host: str = "api.example.com"
    header: str = "Authorization"
    value: str = "Bearer {}"
    inject: str = '{bearer: "{secret}"}'
    roots: tuple[str, ...] = ("SSL_CERT_FILE",)
    """Each of these alone suffices; none of them: the program names the roots itself."""
    setting: str = "-"
    distribution: str = ""
    calls: str = ""


def in_header(name: str, client: Client) -> Client:
    """The same with its key in another header."""
    return replace(client, header=name, value="{}", inject=f'{{header: {name}, value: "{{secret}}"}}')


def code(text: str) -> tuple[str, ...]:
    return ("-c", text)


CLIENTS: dict[str, Client] = {
    "urllib": Client(
        code("import urllib.request as u; print(u.urlopen('https://api.example.com/v1').read().decode())"), "hello"
    ),
    "requests": Client(
        code("import requests; print(requests.get('https://api.example.com/v1').text)"),
        "hello",
        roots=("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        distribution="requests",
    ),
    "httpx": Client(("fetch.py",), "200 hello", distribution="httpx"),
    "aiohttp": Client(("aio.py",), "200 hello", setting="`trust_env=True`", distribution="aiohttp"),
    "openai": Client(
        ("chat.py",), "hello hello", lambda: openai, "api.openai.com", distribution="openai", calls="chat, stream"
    ),
    "openai files": Client(
        ("files.py",), "file-1", lambda: openai_files, "api.openai.com", distribution="openai", calls="upload"
    ),
    "anthropic": in_header("x-api-key", Client(
        ("messages.py",), "hello hello", lambda: anthropic, "api.anthropic.com",
        distribution="anthropic", calls="messages, stream",
    )),
    "google-genai": in_header("x-goog-api-key", Client(
        ("generate.py",), "hello hello", lambda: gemini, "generativelanguage.googleapis.com",
        distribution="google-genai", calls="generate, stream",
    )),
    "stripe": Client(
        ("customers.py",), "customer customer", lambda: stripe, "api.stripe.com",
        roots=(), setting="`stripe.ca_bundle_path`", distribution="stripe", calls="create, list",
    ),
    "boto3": in_header("x-api-key", Client(
        ("objects.py",), "hello", Objects, "objects.example.com",
        roots=("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"), distribution="boto3", calls="put, get; key in a header",
    )),
    "PyGithub": Client(
        ("login.py",), "ada", lambda: github, "api.github.com", roots=("REQUESTS_CA_BUNDLE",), distribution="PyGithub"
    ),
    "hvac": in_header("X-Vault-Token", Client(
        ("kv.py",), "hello", lambda: vault, "vault.example.com",
        roots=("REQUESTS_CA_BUNDLE",), distribution="hvac",
    )),
    "websockets": Client(("live.py",), "ping", lambda: websocket, distribution="websockets"),
    "pip": Client(
        ("-m", "pip", "install", "--no-deps", "--no-cache-dir", "--retries=0", "--target=out", "--index-url=https://pypi.example.com/simple", "keyless"),
        "Successfully installed keyless-1.0.0", lambda: pip("pypi.example.com"), "pypi.example.com", value="Basic {}", inject=BASIC,
        roots=("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), distribution="pip", calls="install, private index",
    ),
}  # fmt: skip


@cache
def version(python: Path, distribution: str) -> str:
    """Of a package beside this interpreter, or of the interpreter."""
    (site,) = python.parents[1].glob("lib/python3*/site-packages")
    if not distribution:
        return site.parent.name.removeprefix("python")
    return next(iter(importlib.metadata.distributions(name=distribution, path=[str(site)]))).version


def shown(client: str) -> str:
    """The name that docs/guides/clients.md has."""
    calls = CLIENTS[client].calls
    return client.partition(" ")[0] + (f" ({calls})" if calls else "")


def started(served: Callable[..., Served], row: Client, python: Path) -> tuple[Served, list[str]]:
    """The proxy and the upstream for a row, and its command."""
    one = served(row.script(), row.host, inject=row.inject)
    file = row.program[0].endswith(".py")
    return one, [str(python), *((str(PROGRAMS / "python" / row.program[0]),) if file else row.program)]


def expected(row: Client, one: Served) -> str:
    """The header that the upstream must see."""
    if row.value.startswith("Basic"):
        return f"Basic {base64.b64encode(f'reader:{one.secret}'.encode()).decode()}"
    return row.value


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("client", list(CLIENTS))
def test_g46_both_ways(
    served: Callable[..., Served], client_python: Path, tmp_path: Path, client: str, way: str
) -> None:
    row = CLIENTS[client]
    one, command = started(served, row, client_python)
    name = shown(client)
    facts = {"language": "Python", "version": version(client_python, row.distribution), "set": row.setting}
    with relaying(one.proxy.address("sidecar")) as relay, measuring(name, way, **facts):
        done = one.run(way, *command, cwd=tmp_path, listener=relay.address, API_KEY=PLACEHOLDER)
        one.assert_injected(done, header=row.header, value=expected(row, one))
        assert done.stdout.split()[-len(row.printed.split()) :] == row.printed.split()
        if way == "environment":
            assert relay.connects[:1] == AT_ONCE
            stated(name, key="at once")
    if client == "pip":
        assert (tmp_path / "out" / "keyless.py").exists()


# Roots are the client's own affair: one engine tells.
@pytest.mark.parametrize("engine", ENGINES[-1:], indirect=True)
@pytest.mark.parametrize("client", [name for name, row in CLIENTS.items() if row.roots and name != "openai files"])
def test_where_the_roots_are_read(
    served: Callable[..., Served], client_python: Path, tmp_path: Path, client: str
) -> None:
    """Without any variable that names roots the proxy's certificate is refused; with one of those named here it is accepted."""
    row = CLIENTS[client]
    one, command = started(served, row, client_python)
    name = shown(client)
    with measuring(name, "roots", " or ".join(f"`{root}`" for root in row.roots)):
        # One attempt: none of them would end better.
        bare = one.run("environment", *with_roots(), *command, cwd=tmp_path, API_KEY=PLACEHOLDER, AWS_MAX_ATTEMPTS="1")
        assert bare.code != 0
        assert re.search(r"certificate|\bssl", bare.stdout + bare.stderr, re.IGNORECASE)
        assert not one.api.requests
        for root in row.roots:
            done = one.run("environment", *with_roots(root), *command, cwd=tmp_path, API_KEY=PLACEHOLDER)
            one.assert_injected(done, header=row.header, value=expected(row, one))
            one.api.requests.clear()
        if client == "openai":
            stated(shown("openai files"), roots=" or ".join(f"`{root}`" for root in row.roots))


@pytest.mark.parametrize(
    ("client", "setting", "told", "cannot"),
    [
        ("aiohttp", "trust_env=True", "ClientConnectorDNSError", "without `trust_env=True` it goes past the proxy"),
        (
            "stripe",
            'stripe.ca_bundle_path = os.environ["SSL_CERT_FILE"]',
            "CERTIFICATE_VERIFY_FAILED",
            "without `ca_bundle_path`: it brings its own roots and reads no variable",
        ),
    ],
)
def test_what_must_be_set(
    served: Callable[..., Served],
    client_python: Path,
    tmp_path: Path,
    client: str,
    setting: str,
    told: str,
    cannot: str,
) -> None:
    """The program without its one setting reaches nobody."""
    row = CLIENTS[client]
    one, _ = started(served, row, client_python)
    text = (PROGRAMS / "python" / row.program[0]).read_text()
    assert setting in text
    (tmp_path / "bare.py").write_text(text.replace(setting, ""))
    done = one.run("environment", str(client_python), str(tmp_path / "bare.py"), cwd=tmp_path, API_KEY=PLACEHOLDER)
    assert done.code != 0
    assert told in done.stderr
    assert not one.api.requests
    stated(shown(client), cannot=cannot, **({} if row.roots else {"roots": "what the program says"}))
