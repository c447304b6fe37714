"""The websockets package: one message there and back."""

import os

from websockets.sync.client import connect

with connect("wss://api.example.com/v1/live", additional_headers={"Authorization": os.environ["API_KEY"]}) as live:
    live.send("ping")
    print(live.recv())
