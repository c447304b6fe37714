"""What only settings and policy together can show, asked at the start and again of each policy that is to be loaded."""

from __future__ import annotations

from ostiary.settings.listen import judge_routes
from ostiary.settings.model import Settings
from policies import Policy
from policies.faults import Faults
from policies.verify import VERIFIED


def judge_policy(settings: Settings, policy: Policy, faults: Faults) -> None:
    """Listeners that routes name, and what routes that verify signatures need."""
    judge_routes(settings.listen, policy, faults)
    own = {one.name: one.workload for one in settings.listen if one.workload is not None}
    for route in policy.routes.values():
        if route.verify is not None and route.verify.needs_state and settings.workers > 1 and settings.state is None:
            faults.add(
                route.place,
                f"route {route.name!r} wants each nonce once, and {settings.workers} workers share no state",
                "add state: {url: ...} to the settings (sqlite:////var/lib/ostiary/state.db, or a server), or run one worker",
            )
        if not any(VERIFIED in entry.workloads for entry in route.allow):
            continue
        for name in route.listeners:
            if name in own:
                faults.add(
                    route.place,
                    f"route {route.name!r} allows whoever signed the request, and its listener {name!r} takes all callers for workload {own[name]!r}",
                    "remove workload from that listener, or name another",
                )
