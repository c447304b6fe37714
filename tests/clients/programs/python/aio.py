"""aiohttp reads the proxy variables where it is told to trust the environment."""

import asyncio
import os

import aiohttp


async def main() -> None:
    headers = {"Authorization": f"Bearer {os.environ['API_KEY']}"}
    async with (
        aiohttp.ClientSession(trust_env=True) as session,
        session.post("https://api.example.com/v1", headers=headers, json={"question": "aiohttp"}) as answer,
    ):
        print(answer.status, await answer.text())


asyncio.run(main())
