"""The order of the checks, and walking it: what stands on a failed check is skipped and says so."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ostiary.doctor import admin, client, files, listeners, routes, state, store, upstream
from ostiary.doctor.finding import Check, Finding, Setup, counted
from policies.faults import FaultError

CHECK_DEADLINE_S: Final = 60.0
"""For a whole check over many routes; each wait inside has a shorter one."""


async def _none(_: Setup) -> list[Finding]:
    return []


CHAIN: Final = (
    Check("settings.load", "Do settings and policies load?", _none, ()),
    Check("files.modes", "Are private files private?", files.modes),
    Check("ca.usable", "Can the CA sign, and for how long?", files.ca_usable),
    Check("listeners.tls", "Will callers accept the certificates of listeners?", listeners.certificates),
    Check("env.proxy", "Does HTTPS_PROXY lead a client of this environment to a listener?", client.variables),
    Check("env.no_proxy", "Does NO_PROXY leave routed hosts to the proxy?", client.no_proxy),
    Check(
        "env.ca_trusted",
        "Do the CA variables of this environment hold our CA?",
        client.trusted,
        ("settings.load", "ca.usable"),
    ),
    Check("proxy.reachable", "Does Ostiary answer at the proxy's address?", client.reachable),
    Check("proxy.caller", "Does the proxy know the caller?", client.caller, ("settings.load", "proxy.reachable")),
    Check("policy.reachable", "Can every route grant a request?", routes.reachable),
    Check("policy.tests", "Do the examples in the policies hold?", routes.examples),
    Check("store.reachable", "Is the secret store there and open?", store.reachable),
    Check("store.login", "Does Vault take the login?", store.login, ("settings.load", "store.reachable")),
    Check(
        "store.secrets",
        "Is every secret there with its field?",
        store.secrets,
        ("settings.load", "store.reachable", "store.login"),
    ),
    Check("clock.skew", "Do this clock and Vault's agree?", store.clock, ("settings.load", "store.reachable")),
    Check("state.reachable", "Can the shared state be read and written?", state.reachable),
    Check("upstream.tls", "Can every upstream be dialled, and does it prove its name?", upstream.upstreams),
    Check("audit.writable", "Can audit records be written?", files.audit),
    Check("admin.api", "Is the admin API the owner's alone?", admin.api),
    Check("limits.descriptors", "Are there descriptors enough?", files.descriptors),
)
PARTS_OF: Final[Mapping[str, tuple[str, ...]]] = {"upstream.tls": ("upstream.dns", "upstream.egress", "upstream.tcp")}
"""Ids that a check gives besides its own, for what breaks before it."""


async def walk(path: Path, environ: Mapping[str, str], *, deadline_s: float = 5.0) -> tuple[Finding, ...]:
    """Walks the chain.

    Args:
        path: of the settings file.
        environ: of the client, and of the process for `${ENV}` in settings.
        deadline_s: for each wait on a network.
    """
    setup = Setup(environ, deadline_s=deadline_s)
    found = _load(setup, path)
    broken = {finding.id for finding in found if finding.state == "fail"}
    try:
        for check in CHAIN[1:]:
            standing = next((name for name in check.needs if name in broken), None)
            if standing is not None:
                found.append(Finding(check.id, "skip", f"{standing} failed"))
                broken.add(check.id)
                continue
            findings = await _run(check, setup)
            found += findings
            if any(finding.state == "fail" for finding in findings):
                broken.add(check.id)
    finally:
        if setup.store is not None:
            await setup.store.close()
    return tuple(found)


def _load(setup: Setup, path: Path) -> list[Finding]:
    from ostiary.settings import load_all

    try:
        setup.settings, setup.policy = load_all(path, setup.environ)
    except FaultError as error:
        return [
            Finding("settings.load", "fail", f"{fault.place}: {fault.message}", fault.mend or f"see {fault.place}")
            for fault in error.faults
        ]
    return [Finding("settings.load", "ok", f"{path}: {counted(len(setup.policy.routes), 'route')}")]


async def _run(check: Check, setup: Setup) -> list[Finding]:
    """One check; whatever goes wrong in it is a finding, told by its type, since its text may hold anything."""
    try:
        async with asyncio.timeout(CHECK_DEADLINE_S):
            return await check.run(setup)
    except Exception as error:  # noqa: BLE001 - a check that breaks is a broken link, and the walk goes on
        mend = "try again; if it stays, the log of ostiary run may say more"
        return [Finding(check.id, "fail", f"the check could not be made ({type(error).__name__})", mend)]
