"""`ostiary explain`: what would come of a request, and why. No network, no secret."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any, Final

from ostiary.cli.common import CommandFailed, add_config, config_of

_SHOWN_TO: Final = {
    "tls.client_cert": ", a certificate shown to the upstream",
    "derive.client_cert": ", a certificate shown to the token endpoint",
}
"""By the names that certificates have among the secrets of a credential."""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "explain",
        help="say what would come of a request, and why",
        description="Says which route, grant and injectors would apply to a request, or which refusal and why, with the routes that nearly matched. Touches no network. Exit 0 when it would be granted, 1 when refused, 78 with faults.",
    )
    add_config(parser)
    parser.add_argument(
        "--workload",
        metavar="W",
        help="who asks (may be left out where the policy has but one workload); verified: whoever signed the request",
    )
    parser.add_argument(
        "--listener", metavar="NAME", help="the reverse listener it is sent to (left out where URL is that of one)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("method", metavar="METHOD", help="as a client would send it: GET, POST, …")
    parser.add_argument("url", metavar="URL", help="https://host/path")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace) -> int:
    from ostiary.explain import NoUrl, as_json, explain
    from ostiary.settings import load_all
    from policies.verify import VERIFIED

    settings, policy = load_all(config_of(options), os.environ)
    workload = options.workload
    if workload is None:
        if not policy.workloads:
            workload = VERIFIED
        elif len(policy.workloads) != 1:
            raise CommandFailed(
                f"the policy has several workloads; say which with --workload: {', '.join(policy.workloads)}", 64
            )
        else:
            workload = next(iter(policy.workloads))
    elif workload not in policy.workloads and workload != VERIFIED:
        raise CommandFailed(f"no policy defines workload {workload!r}; there are {', '.join(policy.workloads)}", 64)
    names = [one.name for one in settings.listen if one.mode == "reverse"]
    if options.listener is not None and options.listener not in names:
        raise CommandFailed(
            f"there is no reverse listener {options.listener!r}; there are {', '.join(names) or 'none'}", 64
        )
    try:
        found = explain(settings, policy, workload, options.method, options.url, options.listener)
    except NoUrl as error:
        raise CommandFailed(str(error), 64) from None
    shown = as_json(found, settings)
    if options.json:
        print(json.dumps(shown))
    else:
        for line in _lines(shown):
            print(line)
    return 0 if shown["allowed"] else 1


def _secret(secret: dict[str, Any]) -> str:
    """One secret, how long it serves, and who is shown it, where it is a certificate."""
    field = f" field {secret['field']}" if "field" in secret else ""
    version = f" version {secret['version']}" if "version" in secret else ""
    if "common_name" in secret:
        life = f"issued for {secret['common_name']}"
    elif "engine" in secret:
        life = f"lent by {secret['engine']}"
    else:
        life = f"ttl {secret['ttl_s']:g} s, max_stale {secret['max_stale_s']:g} s"
    mount = f"{secret['mount']}/" if "mount" in secret else ""
    return f"{mount}{secret['path']}{field}{version} ({life}){_SHOWN_TO.get(secret['name'], '')}"


def _lines(shown: dict[str, Any]) -> list[str]:
    """The same for people."""
    asked = f"{shown['method']} {shown['url']} by {shown['workload']}"
    lines = [f"granted: {asked}"] if shown["allowed"] else [f"refused: {asked}", f"  code      {shown['code']}"]
    if not shown["allowed"]:
        lines.append(f"  why       {shown['message']}")
    if "route" in shown:
        lines.append(f"  route     {shown['route']} ({shown['place']})")
    if "rule" in shown:
        origin = next((name for name, keys in shown.get("presets", {}).items() if shown["rule"] in keys), None)
        lines.append(f"  rule      {shown['rule']}{f' of preset {origin}' if origin else ''}")
    lines.extend(f"  preset    {name}: {', '.join(keys)}" for name, keys in shown.get("presets", {}).items())
    if "listener" in shown:
        lines.append(
            f"  listener  {shown['listener']}{' leads to ' + shown['upstream'] if 'upstream' in shown else ''}"
        )
    lines.extend(f"  secret    {_secret(secret)}" for secret in shown.get("secrets", ()))
    if "derive" in shown:
        derive = shown["derive"]
        asked = f" at {derive['host']}:{derive['port']}" if "host" in derive else ", signed here"
        lines.append(f"  derive    {derive['grant']}{asked}{', one for each workload' if 'per' in derive else ''}")
    if "passage" in shown:
        lines.append("  unopened  passed on as it is; nothing in it is read and no credential is put")
    elif shown["allowed"]:
        if shown.get("sign") == []:
            lines.append("  cleartext plain http is refused: what this route signs needs TLS (allow_cleartext)")
        elif "cleartext" in shown and not shown["inject"] and "verify" not in shown:
            lines.append("  cleartext plain http is forwarded without the credential (allow_cleartext)")
        if "verify" in shown:
            lines.append(f"  verify    {shown['verify']}")
        lines.extend(f"  inject    {place}" for place in shown["inject"] or ["nothing"])
        lines.extend(f"  sign      {what}" for what in shown.get("sign", ()))
        lines.append(f"  caller's  {shown['caller_credentials']}")
        if "http2" in shown:
            lines.append(f"  http2     {shown['http2']}")
        times = ", ".join(
            f"{name.removesuffix('_s')} {f'{value:g} s' if value else 'none'}"
            for name, value in shown["timeouts"].items()
        )
        lines.append(f"  timeouts  {times}")
    lines.extend(f"  near miss {miss['route']} ({miss['place']}): {miss['why']}" for miss in shown["near_misses"])
    if "near_misses_left_out" in shown:
        lines.append(f"  and {shown['near_misses_left_out']} more routes of this host")
    if "nearest_host" in shown:
        lines.append(f"  did you mean {shown['nearest_host']}?")
    return lines
