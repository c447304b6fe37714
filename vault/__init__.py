"""Where secrets live: HashiCorp Vault or OpenBao, or a sealed file, behind one interface and one cache.

`hashicorp` is the only package that imports hvac; it is imported when a Vault is configured, not before.
"""

from vault.cache import SecretCache
from vault.secret import Secret
from vault.store import SealedSecret, SecretRef, SecretSource, SecretStore

__all__ = ["SealedSecret", "Secret", "SecretCache", "SecretRef", "SecretSource", "SecretStore"]
