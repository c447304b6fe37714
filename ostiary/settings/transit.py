"""What only a Vault can do asks of the settings: a Vault."""

from __future__ import annotations

from typing import Literal

from policies import Policy
from policies.faults import Faults
from policies.verify import verifying_use


def judge_keys(store: Literal["vault", "sealed"], policy: Policy, faults: Faults) -> None:
    """Adds a fault for each route that signs or verifies with a key of Vault, or uses what Vault makes, where secrets come
    from another store.
    """
    if store == "vault":
        return
    for name, use in policy.transit_uses():
        word, instead = ("verifies", "keys") if verifying_use(policy.routes[name].verify) == use else ("signs", "key")
        faults.add(
            policy.routes[name].place,
            f"route {name} {word} with the key {use.key.key} of Vault's Transit engine, and the settings have no Vault",
            f"add vault: to the settings, or store the key and write {instead}: in the place of transit:",
        )
    for name, secret in policy.secret_refs():
        if secret.issue is not None:
            faults.add(
                policy.routes[name].place,
                f"route {name} shows a certificate of Vault's PKI engine, and the settings have no Vault",
                "add vault: to the settings, or store the certificate and write path: in the place of pki:",
            )
        if secret.is_lent:
            faults.add(
                policy.routes[name].place,
                f"route {name} uses what Vault's {secret.engine} engine lends, and the settings have no Vault",
                "add vault: to the settings, or store the credential and remove engine:",
            )
