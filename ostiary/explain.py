"""What would come of one request, and why: the answer of `ostiary explain`.

Nothing is judged here. The proxy's own parts are asked in the proxy's order: the strict edge for the grammar, the
authority reader, the compiled policy for the decision. A near miss is the same policy with one route alone, asked the
same question, so it can never give another reason than the proxy would. No network is touched and no secret is read.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Any, Final

from addons.authority import connect_authority, plain_authority, read_authority
from addons.edge import HeadLimits, judge_head
from addons.exchange import Authority
from addons.head import RequestHead
from addons.refusal import Refusal
from addons.reverse import authority_of, is_own
from ostiary.listeners import reverse_of
from ostiary.settings.model import Limits, Settings
from policies import Denial, Grant, Policy, Question
from policies.derive import Derivation
from policies.faults import nearest
from policies.model import (
    BasicInjector,
    BearerInjector,
    CookieInjector,
    FormInjector,
    HeaderInjector,
    Injector,
    JsonInjector,
    PathInjector,
    QueryInjector,
    Route,
    SecretSpec,
    SwapInjector,
)
from policies.pointer import pointer_text
from policies.sign import (
    Acs3Signer,
    AwsSigV4Signer,
    DpopSigner,
    EdgeGridSigner,
    HmacSigner,
    HttpMessageSigner,
    Signer,
    Tc3Signer,
    transit_use,
)
from policies.verify import (
    HmacVerifier,
    MessageVerifier,
    SnsVerifier,
    Verifier,
    WebhookVerifier,
    references_of_verifier,
    verifying_use,
)

_URL: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<target>[^#]*)(?:#.*)?", re.DOTALL
)
MAX_MISSES: Final = 50
"""Near misses that are told; a host with more routes says how many were left out."""


class NoUrl(ValueError):
    """The text is no absolute URL."""


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A route for this host that did not take the request."""

    route: str
    place: str
    code: str
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The decision. `grant` is there when the request would be granted; `code` and `message` when it would not."""

    workload: str
    method: str
    url: str
    """Without the query: it may hold a key."""
    grant: Grant | None
    code: str | None
    message: str | None
    route: Route | None
    rule: str | None
    misses: tuple[NearMiss, ...]
    left_out: int
    nearest_host: str | None
    passage: str | None = None
    """The policy's default that lets the tunnel by unopened, where no route names the authority."""
    cleartext: bool = False
    """Whether it would go over plain http: then the credential goes along only where the route allows it."""
    listener: str | None = None
    """The reverse listener that it would be sent to."""


def explain(
    settings: Settings, policy: Policy, workload: str, method: str, url: str, listener: str | None = None
) -> Explanation:
    """Asks the parts of the proxy what would come of a request.

    Args:
        settings: of the process; their caps apply to the head.
        policy: loaded.
        workload: who asks, already proven.
        method: as the client would send it.
        url: absolute; a fragment is dropped, as clients do.
        listener: the reverse listener that it is sent to, where the URL does not name it.

    Raises:
        NoUrl: it is no absolute URL, so no client could send it.
    """
    split = _URL.fullmatch(url)
    if split is None:
        raise NoUrl(f"{url.partition('?')[0]!r} is no absolute URL; write https://host/path")
    target = split["target"] if split["target"].startswith("/") else f"/{split['target']}"
    shown = f"{split['scheme'].lower()}://{split['authority'].rpartition('@')[2]}{target.partition('?')[0]}"
    if listener is None:
        listener = _called(settings, split["scheme"].lower(), split["authority"])
    try:
        if listener is None:
            authority, head = _read(split["scheme"].lower(), split["authority"], method, target, settings.limits)
        else:
            authority, head = None, _read_reverse(method, target, settings.limits)
    except Refusal as refusal:
        return Explanation(
            workload,
            method,
            shown,
            None,
            refusal.code.value,
            refusal.message,
            None,
            None,
            (),
            0,
            None,
            listener=listener,
        )
    host, port = (authority.host, authority.port) if authority is not None else ("", 0)
    question = Question(workload, host, port, head.method, head.path, listener)
    answer = policy.decide(question)
    passage = None if authority is None or authority.cleartext else policy.passage(host, port)
    if passage is not None:
        return Explanation(
            workload, method, shown, None, None, None, None, passage.rule, (), 0, None, passage=passage.action
        )
    chosen = answer.route.name if isinstance(answer, Grant) else answer.route if answer.rule else None
    misses = _near_misses(policy, question, chosen)
    return Explanation(
        workload,
        method,
        shown,
        answer if isinstance(answer, Grant) else None,
        answer.code if isinstance(answer, Denial) else None,
        answer.message if isinstance(answer, Denial) else None,
        answer.route if isinstance(answer, Grant) else policy.routes.get(answer.route) if answer.route else None,
        answer.rule,
        misses[:MAX_MISSES],
        max(len(misses) - MAX_MISSES, 0),
        None if isinstance(answer, Grant) or misses or authority is None else _nearest_host(policy, host),
        cleartext=authority.cleartext if authority is not None else _leads_to_cleartext(answer),
        listener=listener,
    )


def _called(settings: Settings, scheme: str, named: str) -> str | None:
    """The reverse listener that a URL names, if it does."""
    for one in settings.listen:
        if one.mode != "reverse" or one.bind.path is not None or not one.bind.port:
            continue
        try:
            reverse = reverse_of(one, _address(one.bind.host), one.bind.port)
            authority = read_authority(named, default_port=reverse.default_port)
        except (Refusal, OSError):
            continue
        if scheme == reverse.scheme and is_own(reverse, authority):
            return one.name
    return None


def _address(host: str) -> str:
    """The address that a listener of this name or address would be bound to; only local names are looked up."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        raise OSError from None


def _leads_to_cleartext(answer: Grant | Denial) -> bool:
    return isinstance(answer, Grant) and answer.route.upstream is not None and answer.route.upstream.cleartext


def _read_reverse(method: str, target: str, limits: Limits) -> RequestHead:
    """The one request, judged as the proxy judges its bytes."""
    caps = HeadLimits(limits.request_line, limits.header_bytes, limits.header_count)
    judge_head(b"%b %b HTTP/1.1\r\nHost: a\r\n\r\n" % (method.encode(), target.encode()), tunnelled=True, limits=caps)
    return RequestHead(method, target.encode(), (), http2=False)


def _read(scheme: str, named: str, method: str, target: str, limits: Limits) -> tuple[Authority, RequestHead]:
    """CONNECT and the request inside it, or the one plain request, judged as the proxy judges their bytes."""
    caps = HeadLimits(limits.request_line, limits.header_bytes, limits.header_count)
    verb, path = method.encode(), target.encode()
    if scheme != "https":
        # As the client sends it: absolute-form, without a tunnel.
        named = named if named.isascii() else str(read_authority(named, default_port=80))
        whole = b"%b://%b%b" % (scheme.encode(), named.encode(), path)
        judge_head(b"%b %b HTTP/1.1\r\n\r\n" % (verb, whole), tunnelled=False, limits=caps)
        head = RequestHead(method, path, (), http2=False)
        return plain_authority(scheme.encode(), named, head), head
    if re.search(r":[0-9]*\Z", named) is None:
        named = f"{named}:443"
    elif named.endswith(":"):
        named = f"{named}443"
    if not named.isascii():
        # What a client does with an international name before it sends CONNECT.
        named = str(read_authority(named, default_port=443))
    raw = named.encode()
    judge_head(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (raw, raw), tunnelled=False, limits=caps)
    authority = connect_authority(raw, RequestHead("CONNECT", raw, (), http2=False))
    fields = ((b"Host", authority.host_header),)
    judge_head(b"%b %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (verb, path, authority.host_header), tunnelled=True, limits=caps)
    return authority, RequestHead(method, path, fields, http2=False)


def _near_misses(policy: Policy, question: Question, chosen: str | None) -> tuple[NearMiss, ...]:
    """Routes of this host that did not take the request, each with its own reason."""
    found: list[NearMiss] = []
    for route in policy.routes.values():
        if route.name == chosen:
            continue
        alone = Policy(policy.version, policy.workloads, {route.name: route})
        place = str(route.place)
        if question.listener is not None:
            if question.listener not in route.listeners:
                continue
        elif not alone.serves(question.host, question.port):
            if alone.serves(question.host, route.port):
                found.append(
                    NearMiss(route.name, place, "route_denied", f"it serves port {route.port}, not {question.port}")
                )
            continue
        answer = alone.decide(question)
        if isinstance(answer, Grant):
            found.append(NearMiss(route.name, place, "", "it would grant this, but a more specific route is chosen"))
        else:
            found.append(NearMiss(route.name, place, answer.code, _why(answer, route, question)))
    return tuple(found)


def _why(answer: Denial, route: Route, question: Question) -> str:
    """The denial in a few words, with what would have been right."""
    if answer.rule:
        return f"its {answer.rule} says no: {answer.message}"
    match answer.code:
        case "route_denied":
            named = sorted(frozenset().union(*(entry.workloads for entry in route.allow)))
            return f"it does not name workload {question.workload} (it allows {', '.join(named)})"
        case "method_denied":
            methods = ", ".join(sorted(route.methods)) if route.methods is not None else "all but CONNECT and TRACE"
            return f"its methods are {methods}"
        case "path_denied":
            paths = ", ".join(str(pattern) for pattern in route.paths or ())
            return f"its paths are {paths}" if paths else "the path can be read in two ways"
        case _:
            return answer.message


def _nearest_host(policy: Policy, host: str) -> str | None:
    return nearest(host, dict.fromkeys(known.text for route in policy.routes.values() for known in route.hosts))


# --- as data ---


def as_json(found: Explanation, settings: Settings) -> dict[str, Any]:
    """The stable form of `--json` (docs/reference/cli.md). What does not apply is absent."""
    shown: dict[str, Any] = {
        "allowed": found.grant is not None or found.passage is not None,
        "workload": found.workload,
        "method": found.method,
        "url": found.url,
    }
    if found.code is not None:
        shown |= {"code": found.code, "message": found.message}
    if found.route is not None:
        shown |= {"route": found.route.name, "place": str(found.route.place)}
    if found.rule is not None:
        shown["rule"] = found.rule
    presets = found.route.presets if found.route is not None else None
    if presets is not None:
        shown["presets"] = {
            name: [key for key, origin in presets.keys.items() if origin == name] for name in presets.names
        }
    if found.passage is not None:
        shown["passage"] = found.passage
    if found.cleartext:
        shown["cleartext"] = True
    if found.listener is not None:
        shown["listener"] = found.listener
        if found.grant is not None:
            shown["upstream"] = str(authority_of(found.grant.route))
    if found.grant is not None:
        route = found.grant.route
        # Over plain http only where the route says so; whether the address may have it is seen when it is resolved.
        credential = found.grant.credential if not found.cleartext or route.allow_cleartext else None
        # A key to verify with stays here, so the way to the upstream has no say in it.
        read = credential or (found.grant.credential if references_of_verifier(route.verify) else None)
        if read is not None:
            shown["credential"] = read.name
            shown["secrets"] = [_secret(name, secret) for name, secret in read.secrets.items()]
        if credential is not None and credential.derive is not None:
            shown["derive"] = _derive(credential.derive)
        shown["inject"] = [puts(injector) for injector in route.inject] if credential is not None else []
        if route.verify is not None:
            shown["verify"] = verifies(route.verify)
        if route.sign:
            shown["sign"] = [signs(signer) for signer in route.sign] if credential is not None else []
        shown["caller_credentials"] = route.caller_credentials
        shown["mode"] = route.mode
        if route.tls is not None and route.tls.pins:
            shown["pins"] = len(route.tls.pins)
        if credential is not None:
            shown["scrub"] = route.scrub
        if route.http2 != "auto":
            shown["http2"] = route.http2
        shown["timeouts"] = _timeouts(route, settings.limits)
    shown["near_misses"] = [
        {"route": miss.route, "place": miss.place, **({"code": miss.code} if miss.code else {}), "why": miss.why}
        for miss in found.misses
    ]
    if found.left_out:
        shown["near_misses_left_out"] = found.left_out
    if found.nearest_host is not None:
        shown["nearest_host"] = found.nearest_host
    return shown


def puts(injector: Injector) -> str:
    """Where an injector puts the credential."""
    match injector:
        case HeaderInjector(name=name):
            return f"header {name}"
        case BearerInjector():
            return "header Authorization (Bearer)"
        case BasicInjector():
            return "header Authorization (Basic)"
        case QueryInjector(name=name):
            return f"query parameter {name}"
        case PathInjector(pattern=pattern):
            return f"path {pattern.text}"
        case CookieInjector(name=name):
            return f"cookie {name}"
        case JsonInjector(pointer=pointer):
            return f"JSON body {pointer_text(pointer)}"
        case FormInjector(name=name):
            return f"form field {name}"
        case SwapInjector(headers=headers, parameters=parameters, pointers=pointers):
            places = [*headers, *(f"query parameter {name}" for name in parameters)]
            places += [f"JSON body {pointer_text(pointer)}" for pointer in pointers]
            return f"in place of the placeholder, where {' or '.join(places)} holds it"


def signs(signer: Signer) -> str:
    """What a signer does, in a few words."""
    use = transit_use(signer)
    return _signs(signer) + (f", with key {use.key.mount}/keys/{use.key.key} of Vault" if use is not None else "")


def _signs(signer: Signer) -> str:
    match signer:
        case HmacSigner(signature=signature, algorithm=algorithm):
            place = f"header {signature.name}" if signature.place == "header" else f"query parameter {signature.name}"
            return f"hmac ({algorithm}) in {place}"
        case AwsSigV4Signer(regions=regions, services=services):
            version = "aws_sigv4 (4A)" if signer.asymmetric else "aws_sigv4"
            return f"{version} for {', '.join(services)} in {', '.join(regions)}"
        case HttpMessageSigner(label=label, algorithm=algorithm):
            return f"http_message ({algorithm}) as {label}"
        case EdgeGridSigner():
            return "edgegrid in header Authorization"
        case Acs3Signer():
            return "acs3 in header Authorization"
        case Tc3Signer(services=services):
            return f"tc3 for {', '.join(services)} in header Authorization"
        case DpopSigner(algorithm=algorithm):
            return f"dpop ({algorithm}) in header DPoP"


def verifies(verifier: Verifier) -> str:
    """What must be signed, in a few words."""
    match verifier:
        case HmacVerifier(form=form, keys=keys):
            use = verifying_use(verifier)
            held = _keys(len(keys)) if use is None else f"key {use.key.mount}/keys/{use.key.key} of Vault"
            once = "each nonce once" if form.nonce is not None else "no nonce"
            place = f"{'header' if form.signature.place == 'header' else 'query parameter'} {form.signature.name}"
            return f"hmac ({form.algorithm}) in {place}, {held}, {once}, within {verifier.max_skew_s:g} s"
        case MessageVerifier(algorithm=algorithm, keys=named):
            return f"http_message ({algorithm}), {_keys(len(named))}, within {verifier.max_skew_s:g} s"
        case WebhookVerifier(scheme=scheme, keys=keys, max_skew_s=skew_s):
            return f"{scheme}, {_keys(len(keys))}" + (
                f", within {skew_s:g} s" if scheme not in {"github", "twilio"} else ""
            )
        case SnsVerifier(topics=topics, max_skew_s=skew_s):
            return f"sns of {', '.join(topics)}, within {skew_s:g} s"


def _keys(count: int) -> str:
    return f"{count} key{'s' if count > 1 else ''}"


def _derive(derive: Derivation) -> dict[str, Any]:
    endpoint = derive.endpoint
    asked = {"host": endpoint.host, "port": endpoint.port, "path": endpoint.target} if endpoint is not None else {}
    return {"grant": derive.word, **asked, **({"per": "workload"} if derive.per_workload else {})}


def _secret(name: str, secret: SecretSpec) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": name, "path": secret.path}
    for key in ("field", "mount", "namespace", "version"):
        if (value := getattr(secret, key)) is not None:
            shown[key] = value
    if secret.issue is not None:
        life = {} if secret.issue.ttl_s is None else {"ttl_s": secret.issue.ttl_s}
        return {**shown, "common_name": secret.issue.common_name, "uri_sans": list(secret.issue.uri_sans), **life}
    if secret.is_lent:
        return {**shown, "engine": secret.engine}
    watched = {"watch_s": secret.watch_s} if secret.watch_s else {}
    return {**shown, "ttl_s": secret.ttl_s, "max_stale_s": secret.max_stale_s, **watched}


def _timeouts(route: Route, limits: Limits) -> dict[str, float]:
    """Seconds, those of the route before those of `limits:`; 0 means none."""
    own = route.timeouts
    pairs = {
        "connect_s": (own.connect_s, limits.connect_timeout),
        "first_byte_s": (own.first_byte_s, limits.first_byte_timeout),
        "idle_s": (own.idle_s, limits.idle_timeout),
        "total_s": (own.total_s, limits.total_timeout),
    }
    return {name: chosen if chosen is not None else default for name, (chosen, default) in pairs.items()}
