"""What a container engine does to pull an image, step by step, with the standard library alone.

Asks the registry, is sent to the token endpoint, takes the manifest with the token it got there, and follows a blob to
another host, without the token.
"""

import hashlib
import json
import re
import sys
import urllib.error
import urllib.request
from email.message import Message


class Unfollowed(urllib.request.HTTPRedirectHandler):
    """Redirects come back as answers: the engine decides what the next host may see."""

    def redirect_request(self, *_args: object, **_named: object) -> None:
        return None


OPENER = urllib.request.build_opener(Unfollowed)


def get(url: str, authorization: str | None = None) -> tuple[int, Message, bytes]:
    """Status, headers and body of an answer, whatever its status."""
    request = urllib.request.Request(url, headers={"Authorization": authorization} if authorization else {})
    try:
        answer = OPENER.open(request, timeout=20)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.headers, answer.read()


registry, image, tag, placeholder = sys.argv[1:]
status, headers, body = get(f"https://{registry}/v2/")
assert status == 401, status
challenge = dict(re.findall(r'(\w+)="([^"]*)"', headers["WWW-Authenticate"].removeprefix("Bearer ")))
scope = f"repository:{image}:pull"
status, headers, body = get(
    f"{challenge['realm']}?service={challenge['service']}&scope={scope}", f"Basic {placeholder}"
)
assert status == 200, status
bearer = f"Bearer {json.loads(body)['token']}"
status, headers, body = get(f"https://{registry}/v2/{image}/manifests/{tag}", bearer)
assert status == 200, status
for layer in json.loads(body)["layers"]:
    status, headers, _ = get(f"https://{registry}/v2/{image}/blobs/{layer['digest']}", bearer)
    assert status == 307, status
    status, headers, blob = get(headers["Location"])
    assert status == 200, status
    assert layer["digest"] == f"sha256:{hashlib.sha256(blob).hexdigest()}"
    print(layer["digest"], len(blob))
