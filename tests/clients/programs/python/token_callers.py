"""Clients that take a token, run without one: `python token_callers.py NAME` prints one word of the answer."""

from __future__ import annotations

import os
import sys


def google() -> object:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    client = storage.Client(project="corp", credentials=AnonymousCredentials())
    return next(iter(client.list_blobs("reports"))).name


def github() -> object:
    import github

    client = github.Github(auth=github.Auth.Token("ostiary-placeholder"), retry=0)
    return client.get_repo("corp/one").get_issue(7).title


def aws() -> object:
    import boto3

    client = boto3.client("s3", region_name="eu-west-1")
    return client.get_object(Bucket="reports", Key="may.csv")["Body"].read().decode()


def vertex() -> object:
    from google import genai
    from google.oauth2.credentials import Credentials

    # It refreshes what has no token, and Google's anonymous credentials have none.
    held = Credentials(token="ostiary-placeholder")
    client = genai.Client(vertexai=True, project="corp", location="us-central1", credentials=held)
    return client.models.generate_content(model="gemini-3.5-flash", contents="hi").text


def salesforce() -> object:
    from simple_salesforce import Salesforce

    # The session is the preset's placeholder, as `exec` sets it.
    client = Salesforce(instance="acme.my.salesforce.com", session_id=os.environ["SALESFORCE_ACCESS_TOKEN"])
    return client.query("SELECT Name FROM Account")["records"][0]["Name"]


if __name__ == "__main__":
    print({one.__name__: one for one in (google, github, aws, vertex, salesforce)}[sys.argv[1]]())
