"""What each route compiles to, remembered for as long as its policy is in force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from addons import client_certificate
from addons.credentials import Credential, Needs, TokenSource
from addons.deriving.asking import Way
from addons.egress import Network, Vetted, networks
from addons.exchange import Exchange
from addons.head import HeadersToSend
from addons.injection import Plan, plan_for, references
from addons.parts import Parts
from addons.reply.scrub import Scrub, Scrubs, basics_of
from addons.signing.apply import Signing
from addons.verifying.apply import Verifying
from policies import Policy
from policies.derive import CLIENT_CERT
from policies.model import CredentialSpec, Injector, Route
from policies.sign import references_of_signers
from policies.tls import ClientCertSpec
from vault.store import SecretSource

type TokensOf = Callable[[CredentialSpec], TokenSource]


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """The compiled route: how heads are built and which networks may be dialled."""

    plan: Plan
    allow: tuple[Network, ...]
    source: SecretSource
    """Who is asked for its secrets."""
    scrubs: Scrubs | None = None
    """What its answers are searched for; None where they pass as they are."""
    signing: Signing | None = None
    """None for a route that does not sign."""
    verifying: Verifying | None = None
    """None for a route that wants nothing signed."""
    client_cert: ClientCertSpec | None = None
    """None for a route that shows its upstream no certificate."""
    always: bool = False
    """Whether its requests need the credential, whatever is put into them."""
    vetted: Vetted = field(default_factory=dict)
    """Destinations vetted before."""
    vetted_certificates: Vetted = field(default_factory=dict)
    """The same, of hosts of signing certificates."""
    tokens: TokensOf | None = None
    """What its credentials derive."""
    route: str = ""
    """Its name: what is lent, is lent to it."""
    bare: bool = field(init=False)
    """Whether the head alone decides, and fields are all that is put: nothing is signed, verified or shown, and neither path nor
    body gets anything."""
    whole: dict[int, Needs] = field(default_factory=dict)
    """What all injectors together, and the signers, need, by the identity of the credential, which lives as long as its policy."""

    def __post_init__(self) -> None:
        special = self.signing, self.verifying, self.client_cert, self.plan.path
        object.__setattr__(self, "bare", not self.plan.body and not self.always and special == (None,) * len(special))

    def watch(self, exchange: Exchange, credential: Credential, ready: HeadersToSend) -> None:
        """Says what the answer to this request is searched for: what it carries, and what it carried when it was sent before."""
        if self.scrubs is not None:
            secrets = credential.confidential()
            if not secrets and self.signing is None and self.client_cert is not None:
                return  # nothing was sent that an answer could show
            if self.signing is not None:
                secrets = (*secrets, *self.signing.shown(credential))
            scrub = self.scrubs.of(credential.name, secrets, basics_of(ready.fields))
            before = exchange.forget(Scrub)
            exchange.put(scrub if before is None else scrub.also(before))

    def needs(self, spec: CredentialSpec, injectors: tuple[Injector, ...]) -> Needs:
        """What these injectors need of a credential of this route."""
        if injectors is self.plan.injectors and (known := self.whole.get(id(spec))) is not None:
            return known
        signers = self.signing.signers if self.signing is not None else ()
        wanted = (
            *references(injectors),
            *references_of_signers(signers),
            *client_certificate.references(self.client_cert),
        )
        token = self.tokens(spec) if spec.derive is not None and self.tokens is not None else None
        found = Needs.of(spec, tuple(dict.fromkeys(wanted)), token, self.route)
        if injectors is self.plan.injectors:
            self.whole[id(spec)] = found
        return found


class Plans:
    """Route plans of the newest policy seen; requests that still run under an older one compile theirs again."""

    def __init__(self, parts: Parts) -> None:
        self._global_allow = parts.egress.allow
        self._deriving = parts.deriving
        self._secrets, self._made = parts.secrets, parts.made or parts.secrets
        self._chunk_bytes = parts.buffered_body_bytes
        self._policy: Policy | None = None
        self._plans: dict[str, RoutePlan] = {}

    def of(self, policy: Policy, route: Route) -> RoutePlan:
        if policy is not self._policy:
            self._policy, self._plans = policy, {}
        found = self._plans.get(route.name)
        if found is None:
            client_cert = None if route.tls is None else route.tls.client_cert
            extra = networks(route.egress.allow) if route.egress is not None else ()
            allow = self._global_allow + extra
            found = self._plans[route.name] = RoutePlan(
                plan_for(route),
                allow,
                self._made if any(secret.is_made for secret in route.secrets()) else self._secrets,
                Scrubs(route.scrub) if route.scrub != "none" else None,
                Signing(route.sign, self._chunk_bytes) if route.sign else None,
                None if route.verify is None else Verifying(route.verify),
                client_cert,
                bool(route.sign or client_cert),
                tokens=self._tokens_of(
                    Way(allow, route.egress, route.ca_file, "" if route.tls is None else route.tls.roots)
                ),
                route=route.name,
            )
        return found

    def _tokens_of(self, way: Way) -> TokensOf | None:
        deriving, secrets, made = self._deriving, self._secrets, self._made
        if deriving is None:
            return None

        def of(spec: CredentialSpec) -> TokenSource:
            shown = spec.secrets.get(CLIENT_CERT)
            return deriving.of(spec, way, made if shown is not None and shown.is_made else secrets)

        return of
