"""Takes from Project Wycheproof what Ostiary's signers and verifiers can be held against.

`python -m tools.wycheproof CHECKOUT` writes `tests/addons/verifying/vectors/wycheproof.json` from a checkout of
C2SP/wycheproof: of each file the groups named here, of each group its key, of each test its number, text, signature and
verdict, as they are written there. Prints the SHA-256 of each source and of what was written.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, Final

OUT: Final = Path(__file__).parents[1] / "tests" / "addons" / "verifying" / "vectors" / "wycheproof.json"
FILES: Final[dict[str, dict[str, str]]] = {
    "hmac_sha1_test.json": {},
    "hmac_sha256_test.json": {},
    "hmac_sha384_test.json": {},
    "hmac_sha512_test.json": {},
    "ed25519_test.json": {},
    "ecdsa_secp256r1_sha256_p1363_test.json": {},
    "rsa_pss_4096_sha512_mgf1_64_test.json": {},
    "rsa_pss_2048_sha256_mgf1_32_test.json": {},
    "rsa_signature_2048_sha256_test.json": {},
    "rsa_pkcs1_2048_sig_gen_test.json": {"sha": "SHA-256"},
}
"""File to what a group of it must have."""
_KEYS: Final = ("publicKeyPem", "privateKeyPem")
_TEST: Final = ("key", "msg", "sig", "tag", "result", "flags")


def main() -> None:
    """Writes the vectors."""
    root = Path(sys.argv[1]) / "testvectors_v1"
    kept: dict[str, list[dict[str, Any]]] = {}
    for name, wanted in FILES.items():
        raw = (root / name).read_bytes()
        print(name, hashlib.sha256(raw).hexdigest())
        kept[name] = [
            {
                **{key: group[key] for key in _KEYS if key in group},
                "tests": [
                    {"tcId": test["tcId"], **{key: test[key] for key in _TEST if key in test}}
                    for test in group["tests"]
                ],
            }
            for group in json.loads(raw)["testGroups"]
            if all(group[key] == value for key, value in wanted.items())
        ]
    text = json.dumps(kept, indent=None, separators=(",", ":")).replace('{"tcId"', '\n{"tcId"') + "\n"
    OUT.write_text(text)
    print(OUT.name, hashlib.sha256(text.encode()).hexdigest())


if __name__ == "__main__":
    main()
