"""HashiCorp Vault and OpenBao as a secret store. The only package that imports hvac.

`config` says how to reach one, `client` makes calls with a deadline, `login` keeps a token, `kv` reads secrets,
`store.VaultStore` puts them together behind `vault.store.SecretStore`. Nothing is imported here: the settings need
`config` alone, and hvac costs a fifth of a second.
"""
