"""Certificates signed by a real PKI engine, and answers that are none."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import urllib.error
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from addons.clock import SystemClock
from tests.harness.openbao import OpenBao
from tests.harness.pki import Pki
from vault.hashicorp import pki
from vault.hashicorp.config import TokenAuth, VaultConfig
from vault.hashicorp.store import VaultStore
from vault.issued import Issuance, IssuedRef
from vault.secret import Secret
from vault.store import SecretDenied

MAY = """
path "pki/sign/egress" { capabilities = ["update"] }
path "pki/sign/none" { capabilities = ["update"] }
path "sys/capabilities-self" { capabilities = ["update"] }
path "auth/token/*" { capabilities = ["read", "update"] }
"""


@pytest.fixture(scope="module")
def ca(openbao: OpenBao) -> OpenBao:
    with contextlib.suppress(urllib.error.HTTPError):
        openbao.api("POST", "sys/mounts/pki", {"type": "pki"})
    openbao.api(
        "POST",
        "pki/root/generate/internal",
        {"common_name": "Vault CA", "ttl": "24h", "key_type": "ec", "key_bits": 256},
    )
    role = {
        "allowed_domains": "billing",
        "allow_bare_domains": True,
        "allowed_uri_sans": "spiffe://corp/*",
        "key_type": "ec",
        "max_ttl": "1h",
        "client_flag": True,
        "enforce_hostnames": False,
    }
    openbao.api("POST", "pki/roles/egress", role)
    openbao.policy("issues", MAY)
    return openbao


async def test_what_vault_signs_and_what_it_does_not(ca: OpenBao) -> None:
    store = VaultStore(VaultConfig((ca.address,), TokenAuth(Secret(ca.new_token("issues")))))

    def ref(name: str = "billing", role: str = "egress", **more: Any) -> IssuedRef:
        return IssuedRef(f"sign/{role}", mount="pki", kv=1, common_name=name, **more)

    try:
        issued = await store.issue(ref(uri_sans=("spiffe://corp/billing",), life_s=600.0))
        chain = x509.load_pem_x509_certificates(issued.version.fields["certificate"].reveal_bytes())
        key = serialization.load_pem_private_key(issued.version.fields["private_key"].reveal_bytes(), None)
        leaf = chain[0]
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert isinstance(key.curve, ec.SECP256R1)
        assert leaf.public_key() == key.public_key()
        assert len(chain) == 1, "the root is not shown"
        assert [one.value for one in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["billing"]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://corp/billing"]
        assert 0 < issued.ends_s - dt.datetime.now(dt.UTC).timestamp() <= 600
        assert issued.version.version == f"{leaf.serial_number:x}"
        assert issued.version.control.expires_at_s == issued.ends_s
        again = await store.issue(ref())
        assert again.version.version != issued.version.version
        assert again.version.fields["private_key"].reveal() != issued.version.fields["private_key"].reveal()
        for refused in (ref("reports"), ref(uri_sans=("https://elsewhere/x",)), ref(role="none")):
            with pytest.raises(SecretDenied):
                await store.issue(refused)
        with pytest.raises(SecretDenied, match="denies update on pki/sign/other"):
            await store.issue(ref(role="other"))
        told = await store.capabilities(["pki/sign/egress", "pki/sign/other"])
        assert (told["pki/sign/egress"], told["pki/sign/other"]) == (("update",), ("deny",))
    finally:
        await store.close()


async def test_a_short_life_is_renewed_in_time(ca: OpenBao) -> None:
    """Against the clocks of this machine and of a real Vault: at every moment there is one that is good."""
    ca.api("POST", "pki/roles/short", {"allow_any_name": True, "key_type": "ec", "ttl": "4s", "max_ttl": "4s"})
    store = VaultStore(VaultConfig((ca.address,), TokenAuth(Secret(ca.token))))
    loop = asyncio.get_running_loop()
    clock = SystemClock()
    issuance = Issuance(cast("Any", None), store, loop.time, clock.wall_s)
    ref = IssuedRef("sign/short", mount="pki", kv=1, common_name="quick.test")
    try:
        serials = [(await issuance.read(ref, ttl_s=0, max_stale_s=0)).version]
        async with asyncio.timeout(20):
            while len(serials) < 2:
                found = await issuance.read(ref, ttl_s=0, max_stale_s=0)
                known = issuance.known(ref)
                assert known is not None
                assert (known.control.expires_at_s or 0) > clock.wall_s()
                if found.version != serials[-1]:
                    serials.append(found.version)
                await asyncio.sleep(0.02)
        final = issuance.known(ref)
        assert final is not None
        assert final.before == serials[0]
    finally:
        await store.close()


def test_answers_that_are_no_certificate_for_the_key(vault_pki: Pki) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    stranger, _ = vault_pki.client("stranger")
    good = {"certificate": stranger, "issuing_ca": vault_pki.ca_file.read_text()}
    for told in (
        good,  # for another key
        {**good, "certificate": "-----BEGIN nothing"},
        {**good, "certificate": None},
        {"certificate": stranger},
        {**good, "certificate": stranger * 200},
    ):
        with pytest.raises((KeyError, TypeError, ValueError)):
            pki._read(told, key)
