"""Several processes on the same ports: a supervisor that opens the sockets and answers the admin API, and workers that
serve. docs/adr/0008-workers.md tells why it is made like this.

The two speak over a private socket pair (`channel.py`). Of secrets, only the token of the one login
to Vault crosses it (`login.py`).
"""
