"""`ostiary preset`: the presets there are, what one says, and a new one to fill in. No settings, no network."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Final

from ostiary.cli.common import CommandFailed

NEW: Final = """\
# Rules: a preset says nothing of who may call. A route names it under use: {name}.
presets:
  {name}:
    docs: https://docs.{host}/      # the page that tells how the API is called
    checked: untested               # a date, once somebody has looked at it
    match: {{host: {host}}}
    deny: [{{paths: ["/oauth/**"]}}]  # what mints or shows credentials; a route cannot take it away
    secret: {{path: secret/egress/{name}, field: api_key}}
    inject: {{bearer: "{{secret}}"}}
    placeholder: {{{variable}: ostiary-placeholder}}
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "preset",
        help="list and show provider presets, begin a new one",
        description="Shows the built-in provider presets that routes name under use, and begins a new one.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser(
        "list",
        help="list the built-in presets",
        description="Lists the built-in presets: name, hosts, parameters, and when its documentation was last looked at.",
    )
    listing.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    listing.set_defaults(command=_list)
    show = actions.add_parser("show", help="print a built-in preset", description="Prints a built-in preset as it is.")
    show.add_argument("--json", action="store_true", help="print one JSON object instead of the file")
    show.add_argument("name", metavar="NAME", help="as ostiary preset list prints it")
    show.set_defaults(command=_show)
    new = actions.add_parser(
        "new",
        help="print a preset to fill in",
        description="Prints the text of a new preset, to be saved into a policy file and filled in.",
    )
    new.add_argument("--host", metavar="HOST", default="api.example.com", help="the API's host (api.example.com)")
    new.add_argument("name", metavar="NAME", help="of the new preset")
    new.set_defaults(command=_new)


def _list(options: argparse.Namespace) -> int:
    from policies.preset import built_in, built_in_names, hosts_of

    presets = [built_in(name) for name in built_in_names()]
    if options.json:
        print(json.dumps({"presets": [_summary(preset) for preset in presets]}))
        return 0
    width = max(len(preset.name) for preset in presets)
    for preset in presets:
        needs = f"  needs {', '.join(preset.parameters)}" if preset.parameters else ""
        known = preset.driven or preset.checked
        print(f"{preset.name:{width}}  {', '.join(hosts_of(preset))}{needs}  ({known})")
    return 0


def _show(options: argparse.Namespace) -> int:
    from policies import nearest
    from policies.preset import built_in, built_in_names, built_in_text

    if options.name not in built_in_names():
        near = nearest(options.name, built_in_names())
        mend = f"did you mean {near}?" if near else "ostiary preset list shows those there are"
        raise CommandFailed(f"there is no built-in preset {options.name!r}; {mend}", 64)
    text = built_in_text(options.name).decode()
    if options.json:
        print(json.dumps({**_summary(built_in(options.name)), "text": text}))
    else:
        sys.stdout.write(text)
    return 0


def _new(options: argparse.Namespace) -> int:
    from policies import FaultError, nearest
    from policies.preset import built_in_names, read_new

    if options.name in built_in_names():
        raise CommandFailed(f"{options.name!r} is a built-in preset; give yours another name", 64)
    variable = "".join(char if char.isalnum() else "_" for char in options.name.upper()) + "_API_KEY"
    text = NEW.format(name=options.name, host=options.host, variable=variable)
    try:
        read_new(options.name, text)
    except FaultError:
        near = nearest(options.name, built_in_names())
        more = f"; did you want ostiary preset show {near}?" if near else ""
        raise CommandFailed(
            f"{options.name!r} with host {options.host!r} makes no preset: a name has letters, digits and dashes, "
            f"a host is a host name{more}",
            64,
        ) from None
    sys.stdout.write(text)
    return 0


def _summary(preset: Any) -> dict[str, Any]:
    from policies.preset import hosts_of

    return {
        "name": preset.name,
        "hosts": list(hosts_of(preset)),
        "parameters": dict(preset.parameters),
        "docs": preset.docs,
        "checked": preset.checked,
        "driven": preset.driven,
        "placeholder": dict(preset.placeholder),
        "sdk": dict(preset.sdk),
    }
