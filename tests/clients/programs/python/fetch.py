"""httpx as it comes: proxy, key and roots from the environment."""

import os

import httpx

answer = httpx.post(
    "https://api.example.com/v1",
    headers={"Authorization": f"Bearer {os.environ['API_KEY']}"},
    json={"question": "python"},
)
print(answer.status_code, answer.text)
