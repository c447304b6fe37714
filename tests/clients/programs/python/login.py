"""PyGithub: who the token belongs to."""

import os

import github

print(github.Github(auth=github.Auth.Token(os.environ["GITHUB_TOKEN"])).get_user().login)
