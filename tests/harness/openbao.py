"""A real OpenBao on a free loopback port, with what tests do to it."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.harness.ostiary_process import clean_environment
from tests.harness.ports import free_port
from tests.harness.vault_binary import vault_binary

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class OpenBao:
    """One server in development mode, or `sealable` with storage in memory and one unseal key.

    Args:
        folder: of its files.
        sealable: starts sealed, and can be sealed.
        tls: a PEM file with key and certificate for 127.0.0.1; `tls_address` is then a second listener, which asks for
            client certificates.
    """

    def __init__(self, folder: Path, *, sealable: bool = False, tls: Path | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._tls = tls
        self._tls_port = free_port() if tls is not None else 0
        self.tls_address = f"https://127.0.0.1:{self._tls_port}"
        self.token = "root-" + secrets.token_hex(12)
        self._key = ""
        self._sealable = sealable
        self.process = self._spawn()
        self._await()
        if sealable:
            made = self.api("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1}, token="")
            self.token, self._key = made["root_token"], made["keys"][0]
            self.unseal()
            self.api("POST", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})

    def _spawn(self) -> subprocess.Popen[bytes]:
        binary = vault_binary()
        if self._sealable:
            config = {
                "storage": {"inmem": {}},
                "listener": {"tcp": {"address": f"127.0.0.1:{self.port}", "tls_disable": True}},
                "disable_mlock": True,
                "unsafe_allow_api_audit_creation": True,
            }
            path = self.folder / "bao.json"
            path.write_text(json.dumps(config))
            arguments = [binary, "server", f"-config={path}"]
        else:
            arguments = [
                binary,
                "server",
                "-dev",
                f"-dev-root-token-id={self.token}",
                f"-dev-listen-address=127.0.0.1:{self.port}",
            ]
            if self._tls is not None:
                listener = {
                    "address": f"127.0.0.1:{self._tls_port}",
                    "tls_cert_file": str(self._tls),
                    "tls_key_file": str(self._tls),
                }
                path = self.folder / "tls.json"
                path.write_text(json.dumps({"listener": {"tcp": listener}}))
                arguments.append(f"-config={path}")
        log = (self.folder / "bao.log").open("ab")
        return subprocess.Popen(arguments, stdout=log, stderr=log, env=clean_environment(HOME=str(self.folder)))

    def _await(self) -> None:
        for _ in range(400):
            with contextlib.suppress(OSError):
                _OPENER.open(f"{self.address}/v1/sys/health?uninitcode=200&sealedcode=200", timeout=1).close()
                return
            time.sleep(0.05)
        raise AssertionError((self.folder / "bao.log").read_text()[-2000:])

    def api(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        token: str | None = None,
        namespace: str | None = None,
    ) -> Any:
        """One call with the root token, or another; parsed JSON, None where there is none."""
        headers = {"Content-Type": "application/json"}
        if namespace is not None:
            headers["X-Vault-Namespace"] = namespace
        if token != "":
            headers["X-Vault-Token"] = token or self.token
        data = json.dumps(body).encode() if body is not None else None
        with _OPENER.open(
            urllib.request.Request(f"{self.address}/v1/{path}", data, headers, method=method), timeout=10
        ) as answer:
            raw = answer.read()
        return json.loads(raw) if raw else None

    def enable(self, method: str, mount: str | None = None) -> None:
        """An auth method, if it is not there yet."""
        with contextlib.suppress(urllib.error.HTTPError):
            self.api("POST", f"sys/auth/{mount or method}", {"type": method})

    def wrapped(self, path: str, *, namespace: str | None = None, **body: Any) -> str:
        """A wrapping token around what a POST to a path answers."""
        headers = {"X-Vault-Token": self.token, "X-Vault-Wrap-TTL": "60s"}
        if namespace is not None:
            headers["X-Vault-Namespace"] = namespace
        request = urllib.request.Request(f"{self.address}/v1/{path}", json.dumps(body).encode(), headers, method="POST")
        with _OPENER.open(request, timeout=10) as answer:
            return str(json.loads(answer.read())["wrap_info"]["token"])

    def put(self, path: str, mount: str = "secret", **fields: Any) -> int:
        """Writes a new version; its number."""
        return int(self.api("POST", f"{mount}/data/{path}", {"data": fields})["data"]["version"])

    def delete(self, path: str) -> None:
        self.api("DELETE", f"secret/data/{path}")

    def destroy(self, path: str, *versions: int) -> None:
        self.api("PUT", f"secret/destroy/{path}", {"versions": list(versions)})

    def policy(self, name: str, text: str) -> None:
        self.api("PUT", f"sys/policies/acl/{name}", {"policy": text})

    def new_token(self, *policies: str, **options: Any) -> str:
        return str(
            self.api("POST", "auth/token/create", {"policies": list(policies), "no_default_policy": True, **options})[
                "auth"
            ]["client_token"]
        )

    def approle(self, name: str, *policies: str, **options: Any) -> tuple[str, str]:
        """Role id and secret id of a new role."""
        with contextlib.suppress(urllib.error.HTTPError):
            self.api("POST", "sys/auth/approle", {"type": "approle"})
        self.api("POST", f"auth/approle/role/{name}", {"token_policies": list(policies), **options})
        role = self.api("GET", f"auth/approle/role/{name}/role-id")["data"]["role_id"]
        secret = self.api("POST", f"auth/approle/role/{name}/secret-id", {})["data"]["secret_id"]
        return role, secret

    def keep_audit(self) -> Path:
        """Makes a sealable server write its own audit from now on; where."""
        path = self.folder / "bao-audit.jsonl"
        self.api("PUT", "sys/audit/file", {"type": "file", "options": {"file_path": str(path)}})
        return path

    def seal(self) -> None:
        self.api("PUT", "sys/seal", {})

    def unseal(self) -> None:
        self.api("PUT", "sys/unseal", {"key": self._key}, token="")
        for _ in range(100):
            with contextlib.suppress(OSError):
                _OPENER.open(f"{self.address}/v1/sys/health", timeout=1).close()
                return
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)


@contextlib.contextmanager
def openbao_server(folder: Path, *, sealable: bool = False, tls: Path | None = None) -> Iterator[OpenBao]:
    server = OpenBao(folder, sealable=sealable, tls=tls)
    try:
        yield server
    finally:
        server.stop()
