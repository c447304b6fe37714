"""Pulls a layer from Docker Hub: its registry sends to its token service, which is asked with user name and password."""

import os
import sys

from dxf import DXF

image, tag, layer = sys.argv[1:]
registry = DXF(
    "registry-1.docker.io",
    image,
    lambda client, answer: client.authenticate(
        os.environ["DOCKER_USERNAME"], os.environ["DOCKER_PASSWORD"], response=answer
    ),
)
assert registry.get_alias(tag) == [layer]
print(sum(len(part) for part in registry.pull_blob(layer)))
