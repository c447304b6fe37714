"""Other programs of this class, measured where they can be built: today a bare goproxy, which puts a header and does
nothing else. Go builds it from bench/peers/goproxy into the cache; without Go it is left out and the report says so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from bench.contenders import CREDENTIAL, ROOT, WORK, Contender, cores, free_port, running
from tests.harness.pki import Pki

GOPROXY = "goproxy"
BUILD_S = 600


def _built() -> Path | None:
    """The program; None where there is no Go or its modules cannot be had."""
    go = shutil.which("go")
    if go is None:
        return None
    target = WORK / GOPROXY
    source = ROOT / "bench" / "peers" / GOPROXY
    # The user's own environment: this is the way to a module proxy.
    done = subprocess.run(
        [go, "build", "-o", str(target), "."], cwd=source, env=dict(os.environ), check=False, timeout=BUILD_S
    )
    return target if done.returncode == 0 else None


@contextlib.contextmanager
def goproxy(pki: Pki, to: int) -> Iterator[list[Contender]]:
    """The bare goproxy as a list of one contender; an empty list where it cannot be built."""
    program = _built()
    if program is None:
        yield []
        return
    port = free_port()
    authority = WORK / "goproxy-ca.pem"
    key = pki.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    authority.write_bytes(key + pki.cert.public_bytes(serialization.Encoding.PEM))
    command = [
        str(program), "-listen", f"127.0.0.1:{port}", "-ca", str(authority), "-roots", str(pki.ca_file),
        "-credential", f"Bearer {CREDENTIAL}",
    ]  # fmt: skip
    with running(command, port, cores()[0]) as pid:
        yield [Contender(GOPROXY, port, to, forward=True, pid=pid, http2=False)]
