"""`python -m tools.presets`: docs/reference/presets.md from the files of policies/presets/. tests/docs/test_presets_page.py
holds the page against them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from ostiary.explain import puts, signs
from policies import load_texts
from policies.document import Mapping as MappingNode
from policies.document import Scalar, Sequence
from policies.faults import Place
from policies.model import Route
from policies.preset import UNTESTED, Preset, built_in, built_in_names, hosts_of
from policies.sources import PolicyText, Source

TARGET = Path(__file__).parents[1] / "docs" / "reference" / "presets.md"
HEAD = """\
# Presets

Written by `python -m tools.presets` from `policies/presets/`: change those files, not this page. What `use:` does: [policies](policy.md#presets).

`checked` is the day on which the provider's page, in a stored copy, was read for the host and the place of the credential. `driven` is the SDK or tool that a test runs under `ostiary exec` with nothing but `use:`, against a server that takes the right credential alone ([which against which](#which-sdk-was-driven-against-which-server)); what such a client must be told of proxy and roots stands in `tests/clients/programs/python/providers.py`. `untested`: neither. No provider was called: every example request below is run through the policy and the injectors or signers by a test. The denied paths are those known to mint or show credentials; they are no complete list of what a key can do, and a provider that reads paths without regard to case would read others too. A secret's path is `secret/egress/NAME` unless the route says otherwise.

Where a preset says `token`, it [derives](deriving.md) one of the secret; a grant of another kind beside `use` takes its place. Missing: usage meters, models and rate limits of a provider. AWS presets take keys without a session token. `snowflake` is held against its documentation alone: Snowflake's own clients log in under other paths and with a password, which this preset does not let through. An AWS service that has no preset is written as a route with `sign`.
"""

SDKS: Final = "tests/slow/test_provider_sdks.py"
TOOLS: Final = "tests/slow/test_provider_tools.py"
DERIVED: Final = "tests/slow/test_derived_elsewhere.py"
PRESET_SDKS: Final = "tests/clients/test_preset_sdks.py"
COMPARES: Final = "a scripted server that compares the credential"
RECOMPUTES: Final = "a scripted server that recomputes the signature with botocore"
AGAINST: Final[Mapping[str, tuple[str, str]]] = {
    **dict.fromkeys(("aws-bedrock", "aws-dynamodb", "aws-s3", "aws-sqs"), (RECOMPUTES, SDKS)),
    **dict.fromkeys(("anthropic", "gemini", "openai"), ("a scripted server with streams; it compares the credential", PRESET_SDKS)),
    "docker-hub": ("a scripted registry with its token service and blob store, by the docker command too", TOOLS),
    "github-git": ("git's own `git http-backend`: clone and push", TOOLS),
    "linear": (COMPARES, TOOLS),
    "salesforce": ("an issuer that judges the assertion with PyJWT, and takes its own token alone", DERIVED),
    "vertex": ("an issuer that judges the assertion with google-auth, and takes its own token alone", DERIVED),
    "npm": ("a scripted registry: install and publish", TOOLS),
    "stripe": (f"{COMPARES}; stripe-mock (`tests/clients/test_stripe_mock.py`, without the preset)", PRESET_SDKS),
}  # fmt: skip
"""What stood behind a driven preset, and the test; every other one: `COMPARES`, `SDKS`."""
DRIVEN: Final = """\
## Which SDK was driven against which server

Each in the version of its lock file (`requirements/sdks.txt`, `requirements/clients.txt`, `package-lock.json`); git is the machine's. SDKs of what has no preset: [signers](signing.md#what-was-driven-against-what), [webhooks](verifying.md#what-was-driven-against-what), [clients](../guides/clients.md).

| SDK or tool | preset | server | test |
|---|---|---|---|"""


def main() -> int:
    """Writes the page."""
    TARGET.write_text(render())
    return 0


def render() -> str:
    """The page."""
    presets = [built_in(name) for name in built_in_names()]
    parts = [HEAD, "| preset | hosts | parameters | checked, driven |", "|---|---|---|---|"]
    parts += [
        f"| [`{one.name}`](#{one.name}) | {_codes(hosts_of(one))} | {_codes(one.parameters) or '-'} | {_known(one)} |"
        for one in presets
    ]
    parts += ["", DRIVEN, *map(_driven, sorted((one for one in presets if one.driven), key=lambda one: one.driven))]
    for one in presets:
        parts += ["", *_section(one)]
    return "\n".join(parts) + "\n"


def _driven(preset: Preset) -> str:
    server, test = AGAINST.get(preset.name, (COMPARES, SDKS))
    return f"| {preset.driven} | `{preset.name}` | {server} | `{test}` |"


def _section(preset: Preset) -> list[str]:
    route = _route(preset)
    use = preset.name
    if preset.parameters:
        use = "{preset: " + ", ".join([preset.name, *(f"{name}: …" for name in preset.parameters)]) + "}"
    fields = dict.fromkeys(
        reference
        for spec in (route.credential.secrets.values() if route.credential else ())
        for reference in [spec.field]
    )
    example = preset.example
    names = [*(example.fields if example else ()), *(name for name in fields if name)]
    lines = [f"## {preset.name}", "", f"`use: {use}`. [The provider's page]({preset.docs}), {_known(preset)}."]
    comment = [line[2:] for line in preset.raw.decode().splitlines() if line.startswith("# ")]
    lines += ["", *comment] if comment else []
    lines += ["", f"- credential: {'; '.join([*map(puts, route.inject), *map(signs, route.sign)])}"]
    if route.credential is not None and (derive := route.credential.derive) is not None:
        at = f" at `{derive.endpoint.host}`" if derive.endpoint is not None else ""
        lines.append(f"- token: `{derive.word}`{at}")
    lines.append(f"- fields of the secret: {_codes(dict.fromkeys(names))}")
    if route.deny:
        lines.append(f"- denied: {'; '.join(_denied(preset))}")
    if preset.parameters:
        lines.append("- parameters: " + "; ".join(f"`{name}`, {told}" for name, told in preset.parameters.items()))
    if preset.placeholder:
        lines.append(f"- placeholders: {_codes(f'{name}={value}' for name, value in preset.placeholder.items())}")
    lines += [f"- {sdk}, at a reverse listener: `{how}`" for sdk, how in preset.sdk.items()]
    if example is not None:
        lines.append(f"- example: `{example.method} {example.url}`")
    return lines


def _known(preset: Preset) -> str:
    """What its credential and host were held against."""
    found = [preset.checked] if preset.checked != UNTESTED else []
    return ", ".join([*found, *([preset.driven] if preset.driven else [])]) or UNTESTED


def _denied(preset: Preset) -> list[str]:
    found: list[str] = []
    deny = preset.route.get("deny")
    for item in deny.value.items if deny is not None and isinstance(deny.value, Sequence) else ():
        texts = {entry.key: _texts(entry.value) for entry in item} if isinstance(item, MappingNode) else {}
        methods = f"{' '.join(texts['methods'])} " if "methods" in texts else ""
        found += [f"`{methods}{path}`" for path in texts.get("paths", ())]
    return found


def _texts(node: object) -> list[str]:
    items = node.items if isinstance(node, Sequence) else (node,)
    return [item.text for item in items if isinstance(item, Scalar)]


def _route(preset: Preset) -> Route:
    values = {"tenant": "acme", "region": "eu-west-1", "cloud": "aws"}
    use = ", ".join([f"preset: {preset.name}", *(f"{name}: {values[name]}" for name in preset.parameters)])
    text = f"workloads: {{w: {{proofs: [{{any: true}}]}}}}\nroutes: {{r: {{use: {{{use}}}, allow: w}}}}\n"
    source = Source("page.yaml", Path(), Place("page"))
    return load_texts([PolicyText(Path("page.yaml"), text, 0)], [source]).routes["r"]


def _codes(texts: Iterable[str]) -> str:
    return ", ".join(f"`{text}`" for text in texts)


if __name__ == "__main__":
    sys.exit(main())
