"""Scripted package and image registries: as much of npm, cargo's sparse index, a Python index and an image registry as
clients ask for."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.harness.upstream import Script, Seen, Wire


def archive(files: Mapping[str, str]) -> bytes:
    """A .tar.gz that is the same each time."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            entry.mode = 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    return gzip.compress(plain.getvalue(), mtime=0)


def pages(served: Mapping[str, tuple[str, bytes]]) -> Script:
    """Answers paths with their type and body, and 404 for what is not there."""

    def script(seen: Seen, wire: Wire) -> None:
        kind, body = served.get(seen.target, ("text/plain", b""))
        status = 200 if seen.target in served else 404
        wire.answer(status, body, (("Content-Type", kind),), head_only=seen.method == "HEAD")

    return script


def npm(host: str) -> Script:
    """A registry with one package, `keyless` 1.0.0."""
    files = {
        "package/package.json": json.dumps({"name": "keyless", "version": "1.0.0", "main": "index.js"}),
        "package/index.js": "module.exports = 'from the registry';\n",
    }
    tarball = archive(files)
    integrity = f"sha512-{base64.b64encode(hashlib.sha512(tarball).digest()).decode()}"
    version = {
        "name": "keyless",
        "version": "1.0.0",
        "main": "index.js",
        "dist": {"tarball": f"https://{host}/keyless/-/keyless-1.0.0.tgz", "integrity": integrity},
    }
    document = {"name": "keyless", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    return pages(
        {
            "/keyless": ("application/json", json.dumps(document).encode()),
            "/keyless/-/keyless-1.0.0.tgz": ("application/octet-stream", tarball),
        }
    )


def cargo(host: str) -> Script:
    """A sparse index that asks for a token, with one crate, `keyless` 1.0.0."""
    crate = archive(
        {
            "keyless-1.0.0/Cargo.toml": '[package]\nname = "keyless"\nversion = "1.0.0"\nedition = "2021"\n',
            "keyless-1.0.0/src/lib.rs": "pub fn answer() -> u8 { 42 }\n",
        }
    )
    line = {
        "name": "keyless",
        "vers": "1.0.0",
        "deps": [],
        "cksum": hashlib.sha256(crate).hexdigest(),
        "features": {},
        "yanked": False,
    }
    config = {"dl": f"https://{host}/dl/{{crate}}-{{version}}.crate", "auth-required": True}
    return pages(
        {
            "/index/config.json": ("application/json", json.dumps(config).encode()),
            "/index/ke/yl/keyless": ("text/plain", json.dumps(line).encode() + b"\n"),
            "/dl/keyless-1.0.0.crate": ("application/octet-stream", crate),
        }
    )


def pip(host: str) -> Script:
    """An index with one package, `keyless` 1.0.0, as one wheel."""
    packed = io.BytesIO()
    files = {
        "keyless.py": "GREETING = 'from the index'\n",
        "keyless-1.0.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: keyless\nVersion: 1.0.0\n",
        "keyless-1.0.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "keyless-1.0.0.dist-info/RECORD": "keyless.py,,\n",
    }
    with zipfile.ZipFile(packed, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(zipfile.ZipInfo(name), text)
    name, content = "keyless-1.0.0-py3-none-any.whl", packed.getvalue()
    link = f'<a href="https://{host}/files/{name}#sha256={hashlib.sha256(content).hexdigest()}">{name}</a>'
    return pages(
        {
            "/simple/keyless/": ("text/html", f"<!DOCTYPE html><html><body>{link}</body></html>".encode()),
            f"/files/{name}": ("application/octet-stream", content),
        }
    )


@dataclass
class Images:
    """An image registry, its token endpoint and the store its blobs lie in: three hosts, one upstream.

    `seen` holds the Authorization that reached each host, in order.
    """

    registry: str
    tokens: str
    store: str
    image: str
    token: str
    blob: bytes = b"layer" * 1000
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.blob).hexdigest()}"

    @property
    def config(self) -> bytes:
        layers = {"type": "layers", "diff_ids": [self.digest]}
        return json.dumps({"architecture": "amd64", "os": "linux", "rootfs": layers}).encode()

    @property
    def manifest(self) -> bytes:
        config = {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": f"sha256:{hashlib.sha256(self.config).hexdigest()}",
            "size": len(self.config),
        }
        layer = {
            "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "digest": self.digest,
            "size": len(self.blob),
        }
        kind = "application/vnd.docker.distribution.manifest.v2+json"
        return json.dumps({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]}).encode()

    def __call__(self, seen: Seen, wire: Wire) -> None:
        host = seen.get("Host") or ""
        self.seen.append((host, seen.target, seen.get("Authorization")))
        if host == self.tokens:
            wire.answer(200, json.dumps({"token": self.token}).encode(), (("Content-Type", "application/json"),))
        elif host == self.store:
            body = self.blob if self.digest in seen.target else self.config
            wire.answer(200, body, (("Content-Type", "application/octet-stream"),))
        elif seen.get("Authorization") != f"Bearer {self.token}":
            challenge = f'Bearer realm="https://{self.tokens}/token",service="{self.registry}"'
            wire.answer(401, b"{}", (("WWW-Authenticate", challenge), ("Content-Type", "application/json")))
        elif "/blobs/" in seen.target:
            wire.answer(307, b"", (("Location", f"https://{self.store}/{seen.target.rpartition('/')[2]}?signed=1"),))
        else:
            kind = json.loads(self.manifest)["mediaType"]
            digest = f"sha256:{hashlib.sha256(self.manifest).hexdigest()}"
            headers = (("Content-Type", kind), ("Docker-Content-Digest", digest))
            wire.answer(200, self.manifest, headers, head_only=seen.method == "HEAD")
