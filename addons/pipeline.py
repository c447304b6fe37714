"""The way of a request, top to bottom, in one place.

Each stage is a mitmproxy addon (`addons/stages`); hooks of the request side run in this order, hooks of the answer in
reverse. A stage that raises ends the request: the ones below it do not run, and nothing is sent.
"""

from __future__ import annotations

from addons.parts import Parts
from addons.stages.authority import AuthorityStage
from addons.stages.authorization import AuthorizationStage
from addons.stages.begin import BeginStage
from addons.stages.credentials import CredentialStage
from addons.stages.egress import EgressStage
from addons.stages.identity import IdentityStage, TunnelStage
from addons.stages.plans import Plans
from addons.stages.record import RecordStage
from addons.stages.registry import Registry
from addons.stages.rejected import RejectedStage
from addons.stages.reply import ReplyStage
from addons.stages.scrub import ScrubStage
from addons.stages.user_addons import UserAddons, UserReplyStage, UserRequestStage


def stages(parts: Parts, registry: Registry) -> tuple[object, ...]:
    """The stages in their one order. Those of users' addons are there only where the settings name one."""
    plans = Plans(parts)
    common = UserAddons(parts, registry) if parts.user_addons else None
    return (
        # First, so that whatever fails later has an exchange to be recorded on.
        BeginStage(parts, registry),
        # Before identity: a request that names two hosts is nobody's request, and its proof is not worth reading.
        AuthorityStage(registry),
        # Before the policy, which answers workloads by name.
        IdentityStage(parts, registry),
        # Before anything leaves this process: a denied request never resolves, never dials, never reads a secret.
        AuthorizationStage(registry),
        # After the yes and before the secret: a destination that may not be dialled must not cost a read, nor open a
        # record.
        EgressStage(parts, registry, plans),
        # Behind every check and before the secret: an addon sees granted requests alone, and never a credential. What it
        # adds to the head is the caller's, and is treated so below.
        *((UserRequestStage(common),) if common else ()),
        # Last: sealed secret, open record, credential, head. What fails here has sent nothing.
        CredentialStage(parts, registry, plans),
        # Has a hook of its own, before any of an answer: a rejected credential is perhaps an old one.
        RejectedStage(parts, registry, plans),
        # Behind every refusal: a body starts to stream only when the head that leaves is ready.
        ReplyStage(parts, registry),
        # Behind every check of CONNECT: only a proven, admitted tunnel binds the requests inside it.
        TunnelStage(registry),
        # Settles what the others began.
        RecordStage(parts, registry),
        # First of the answer's side: what an addon leaves in an answer is cleaned by ours, and what it fails at is
        # recorded.
        *((UserReplyStage(common),) if common else ()),
        # Before even that: what an upstream echoes is a credential, and no addon is shown one.
        ScrubStage(registry),
    )
