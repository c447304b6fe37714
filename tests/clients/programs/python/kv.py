"""hvac: one secret of a Vault behind the proxy."""

import hvac

client = hvac.Client(url="https://vault.example.com", token="ostiary-placeholder")
print(client.secrets.kv.v2.read_secret_version(path="app", raise_on_deleted_version=True)["data"]["data"]["greeting"])
