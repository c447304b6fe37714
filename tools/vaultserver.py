"""`make test-vault`: builds HashiCorp Vault from source, once, and prints where the binary is.

The module file in tests/vaultserver names the version and all it is made of, with checksums. The binary stays in
.cache/vaultserver (360 MB); the build takes ten minutes on two cores and some gigabytes of Go's caches. Its licence (BUSL)
allows testing with it; it is never shipped.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tests" / "vaultserver"
VARIABLE = "OSTIARY_TEST_VAULT"


def main() -> int:
    """Prints the path of the binary."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        print(named)
        return 0
    made_of = hashlib.sha256((SOURCE / "go.sum").read_bytes()).hexdigest()[:12]
    target = ROOT / ".cache" / "vaultserver" / f"vault-{made_of}"
    if not target.exists():
        go = shutil.which("go")
        if go is None:
            print(
                f"HashiCorp Vault is built with Go, which is not here; or let {VARIABLE} name a binary", file=sys.stderr
            )
            return 1
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".new")
        print("building HashiCorp Vault from source, once: about ten minutes", file=sys.stderr)
        done = subprocess.run(
            [go, "build", "-ldflags=-s -w", "-o", str(unfinished), "github.com/hashicorp/vault"],
            cwd=SOURCE,
            check=False,
        )
        if done.returncode != 0:
            return done.returncode
        unfinished.rename(target)
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
