"""Clients that take a token, run without one: `python token_callers.py NAME` prints one word of the answer."""

from __future__ import annotations

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


if __name__ == "__main__":
    print({"google": google, "github": github, "aws": aws}[sys.argv[1]]())
