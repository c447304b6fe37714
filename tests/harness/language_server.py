"""An editor's side of the Language Server Protocol, over a language server's standard input and output."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tests.harness.ostiary_process import clean_environment

SETTINGS = {"validate": True, "completion": True, "hover": True, "schemaStore": {"enable": False}}


class LanguageServer:
    """One server with one open document. What takes longer than `deadline_s` in all is killed, and reading from it fails."""

    def __init__(self, command: Sequence[str], file: Path, deadline_s: float = 60.0) -> None:
        self.uri = file.as_uri()
        self._folder, self._text = file.parent, file.read_text()
        self._process = subprocess.Popen(
            command, cwd=file.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean_environment()
        )
        self._timer = threading.Timer(deadline_s, self._process.kill)
        self._last = 0

    def __enter__(self) -> Self:
        self._timer.start()
        self.ask("initialize", processId=None, rootUri=self._folder.as_uri(), capabilities={})
        self._send({"method": "initialized", "params": {}})
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._process.kill()
        self._process.communicate()

    def open(self) -> list[dict[str, Any]]:
        """Opens the document and gives the diagnostics that come."""
        document = {"uri": self.uri, "languageId": "yaml", "version": 1, "text": self._text}
        self._send({"method": "textDocument/didOpen", "params": {"textDocument": document}})
        while True:
            message = self._receive()
            if message.get("method") == "textDocument/publishDiagnostics":
                return list(message["params"]["diagnostics"])

    def at(self, method: str, marker: str, offset: int = 0) -> Any:
        """Asks about the place of the first `marker` in the text, `offset` characters on."""
        index = self._text.index(marker) + offset
        line = self._text.count("\n", 0, index)
        position = {"line": line, "character": index - self._text.rfind("\n", 0, index) - 1}
        return self.ask(f"textDocument/{method}", textDocument={"uri": self.uri}, position=position)

    def ask(self, method: str, **params: Any) -> Any:
        self._last += 1
        self._send({"id": self._last, "method": method, "params": params})
        while True:
            message = self._receive()
            if message.get("id") == self._last and "method" not in message:
                assert "error" not in message, message
                return message["result"]

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self._process.stdin is not None
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        """The next message; what the server asks is answered on the way."""
        assert self._process.stdout is not None
        length = 0
        while line := self._process.stdout.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        assert length, "the language server ended, or took too long"
        message: dict[str, Any] = json.loads(self._process.stdout.read(length))
        if "method" in message and "id" in message:
            asked = message["method"] == "workspace/configuration"
            answer = [SETTINGS if item.get("section") == "yaml" else None for item in message["params"]["items"]] if asked else None  # fmt: skip
            self._send({"id": message["id"], "result": answer})
        return message
