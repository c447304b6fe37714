"""One call of each provider's SDK, as its page shows it; the keys are the preset's placeholders from the environment.

`python providers.py NAME` prints one word of the answer. What an SDK has to be told of proxy and roots, since it reads no
variable, stands in its function.
"""

from __future__ import annotations

import os
import sys

MODEL = [{"role": "user", "content": "hi"}]


def _proxy() -> dict[str, object]:
    """For clients on bare urllib3: it reads no variable, and takes no user name from the address of a proxy."""
    import urllib3

    url = urllib3.util.parse_url(os.environ["HTTPS_PROXY"])
    return {"proxy": url.url, "proxy_headers": urllib3.make_headers(proxy_basic_auth=url.auth)}


def airtable() -> object:
    import pyairtable

    return pyairtable.Api(os.environ["AIRTABLE_API_KEY"]).table("app1", "Table").all()[0]["fields"]["word"]


def aws_bedrock() -> object:
    import boto3

    client = boto3.client("bedrock-runtime", region_name="eu-west-1")
    answer = client.converse(modelId="amazon.nova-lite", messages=[{"role": "user", "content": [{"text": "hi"}]}])
    return answer["output"]["message"]["content"][0]["text"]


def aws_dynamodb() -> object:
    import boto3

    return boto3.client("dynamodb", region_name="eu-west-1").list_tables()["TableNames"][0]


def aws_s3() -> object:
    import boto3

    return boto3.client("s3", region_name="eu-west-1").get_object(Bucket="reports", Key="k")["Body"].read().decode()


def aws_sqs() -> object:
    import boto3

    return boto3.client("sqs", region_name="eu-west-1").list_queues()["QueueUrls"][0]


def azure_openai() -> object:
    import openai

    client = openai.AzureOpenAI(azure_endpoint="https://acme.openai.azure.com", api_version="2024-10-21")
    return client.chat.completions.create(model="m", messages=MODEL).choices[0].message.content


def cloudflare() -> object:
    import cloudflare

    return next(iter(cloudflare.Cloudflare().zones.list())).name


def cohere() -> object:
    import cohere
    import httpx

    return cohere.ClientV2(httpx_client=httpx.Client()).chat(model="m", messages=MODEL).message.content[0].text


def confluence() -> object:
    from atlassian import Confluence

    client = Confluence(
        "https://acme.atlassian.net",
        username="jdoe@example.com",
        password=os.environ["CONFLUENCE_API_TOKEN"],
        cloud=True,
    )
    return client.get("wiki/rest/api/content/1")["title"]


def databricks() -> object:
    from databricks.sdk import WorkspaceClient

    return WorkspaceClient(host="https://dbc-1.cloud.databricks.com").current_user.me().user_name


def datadog() -> object:
    from datadog_api_client import ApiClient, Configuration
    from datadog_api_client.v1.api.authentication_api import AuthenticationApi

    configuration = Configuration()
    configuration.ssl_ca_cert = os.environ["SSL_CERT_FILE"]
    configuration.proxy, configuration.proxy_headers = _proxy().values()
    with ApiClient(configuration) as client:
        return AuthenticationApi(client).validate().valid


def _compatible(base: str, variable: str) -> object:
    """The openai package, which these providers' pages name as the client."""
    import openai

    client = openai.OpenAI(base_url=base, api_key=os.environ[variable])
    return client.chat.completions.create(model="m", messages=MODEL).choices[0].message.content


def deepseek() -> object:
    return _compatible("https://api.deepseek.com", "DEEPSEEK_API_KEY")


def discord() -> object:
    import asyncio

    import aiohttp
    import discord
    import urllib3

    url = urllib3.util.parse_url(os.environ["HTTPS_PROXY"])
    name, _, password = (url.auth or "").partition(":")

    async def who() -> str:
        client = discord.Client(
            intents=discord.Intents.none(), proxy=f"{url.scheme}://{url.netloc}",
            proxy_auth=aiohttp.BasicAuth(name, password),
        )  # fmt: skip
        async with client:
            await client.login(os.environ["DISCORD_TOKEN"])
            return client.user.name

    return asyncio.run(who())


def elastic() -> object:
    from elasticsearch import Elasticsearch

    client = Elasticsearch(
        "https://acme.es.eu-west-1.aws.elastic.cloud:443", api_key=os.environ["ELASTIC_API_KEY"],
        node_class="requests", ca_certs=os.environ["SSL_CERT_FILE"],
    )  # fmt: skip
    return client.info()["name"]


def github() -> object:
    from github import Auth, Github

    return Github(auth=Auth.Token(os.environ["GITHUB_TOKEN"])).get_repo("octocat/Hello-World").description


def gitlab() -> object:
    import gitlab

    return gitlab.Gitlab("https://gitlab.com", private_token=os.environ["GITLAB_PRIVATE_TOKEN"]).projects.get(7).name


def groq() -> object:
    import groq

    return groq.Groq().chat.completions.create(model="m", messages=MODEL).choices[0].message.content


def foursapi() -> object:
    return _compatible("https://4sapi.com/v1", "FOURSAPI_API_KEY")


def holysheep() -> object:
    return _compatible("https://api.holysheep.ai/v1", "HOLYSHEEP_API_KEY")


def hubspot() -> object:
    import hubspot

    client = hubspot.Client.create(access_token=os.environ["HUBSPOT_ACCESS_TOKEN"])
    client.config.update(ssl_ca_cert=os.environ["SSL_CERT_FILE"], **_proxy())
    return client.crm.contacts.basic_api.get_page(limit=1).results[0].id


def huggingface() -> object:
    import huggingface_hub

    return huggingface_hub.HfApi().model_info("acme/model").id


def jira() -> object:
    from atlassian import Jira

    client = Jira(
        "https://acme.atlassian.net", username="jdoe@example.com", password=os.environ["JIRA_API_TOKEN"], cloud=True
    )
    return client.issue("PAY-1")["key"]


def mistral() -> object:
    from mistralai.client import Mistral

    client = Mistral(api_key=os.environ["MISTRAL_API_KEY"])
    return client.chat.complete(model="m", messages=MODEL).choices[0].message.content


def openai() -> object:
    return _compatible("https://api.openai.com/v1", "OPENAI_API_KEY")


def notion() -> object:
    import notion_client

    return notion_client.Client(auth=os.environ["NOTION_TOKEN"]).users.me()["name"]


def openrouter() -> object:
    return _compatible("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY")


def pagerduty() -> object:
    import pagerduty

    return pagerduty.RestApiV2Client(os.environ["PAGERDUTY_API_KEY"]).rget("/users/PU1")["name"]


def pypi() -> object:
    import subprocess

    done = subprocess.run(
        [sys.executable, "-m", "twine", "upload", "--non-interactive", "--disable-progress-bar", "keyless-1.0.tar.gz"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return "uploaded"


def sendgrid() -> object:
    import sendgrid

    client = sendgrid.SendGridAPIClient(os.environ["SENDGRID_API_KEY"])
    return client.client.scopes.get().to_dict["scopes"][0]


def sentry() -> object:
    import subprocess
    from pathlib import Path

    command = [str(Path(sys.executable).parent / "sentry-cli"), "organizations", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return next(word for word in done.stdout.split() if word.startswith("hel"))


def shopify() -> object:
    import shopify

    shopify.ShopifyResource.activate_session(
        shopify.Session("acme.myshopify.com", "2025-07", os.environ["SHOPIFY_ACCESS_TOKEN"])
    )
    return shopify.Shop.current().name


def slack() -> object:
    import slack_sdk

    return slack_sdk.WebClient(token=os.environ["SLACK_BOT_TOKEN"]).chat_postMessage(channel="C1", text="hi")["ts"]


def twilio() -> object:
    from twilio.rest import Client

    return Client().messages.create(to="+15550001", from_="+15550002", body="hi").sid


def xai() -> object:
    return _compatible("https://api.x.ai/v1", "XAI_API_KEY")


def zendesk() -> object:
    from zenpy import Zenpy

    client = Zenpy(subdomain="acme", email="jdoe@example.com", token=os.environ["ZENDESK_API_TOKEN"])
    return client.users.me().name


if __name__ == "__main__":
    print(globals()[sys.argv[1].replace("-", "_")]())
