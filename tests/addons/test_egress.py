"""The egress guard: every spelling of an inside address, pinning, and what is never allowed."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import pytest

from addons.egress import Destination, EgressRules, Forbidden, destination, is_public, networks, vet
from addons.exchange import Authority
from addons.refusal import Code, Refusal
from policies.model import EgressSpec

PUBLIC = "93.184.216.34"


class Scripted:
    """A resolver with a script: each call takes the next answer."""

    def __init__(self, *answers: Sequence[str] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def known(self, host: str) -> tuple[str, ...] | None:
        return None

    async def resolve(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "192.0.0.192",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "64:ff9b::a00:1",
        "64:ff9b:1::a00:1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2001:0:4136:e378:8000:63bf:5601:5601",
        "::127.0.0.1",
        "2001:db8::1",
    ],
)
def test_inside_addresses_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    with pytest.raises(Refusal) as refused:
        vet([address], 443, allow=(), forbidden=Forbidden())
    assert refused.value.code is Code.EGRESS_DENIED


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_pass(address: str) -> None:
    assert vet([address], 443, allow=(), forbidden=Forbidden()) == ((address, 443),)


def test_allow_opens_just_what_it_lists() -> None:
    allow = networks(["10.1.0.0/16", "fd00::/8"])
    assert vet(["10.1.2.3", "::ffff:10.1.2.3", "fd00::5"], 443, allow=allow, forbidden=Forbidden())
    for address in ("10.2.0.1", "64:ff9b::a01:203", "2002:a01:203::"):
        with pytest.raises(Refusal):
            vet([address], 443, allow=allow, forbidden=Forbidden())


def test_a_mixed_answer_is_refused_whole() -> None:
    with pytest.raises(Refusal):
        vet([PUBLIC, "10.0.0.1"], 443, allow=(), forbidden=Forbidden())


def test_own_sockets_are_never_dialled() -> None:
    allow = networks(["0.0.0.0/0", "::/0"])
    forbidden = Forbidden(sockets=frozenset({("127.0.0.1", 8080), (None, 9901)}), local=frozenset({"10.0.0.5"}))
    for address, port in (
        ("127.0.0.1", 8080),
        ("::ffff:127.0.0.1", 8080),
        ("127.9.9.9", 9901),
        ("10.0.0.5", 9901),
        ("::1", 9901),
        ("0.0.0.0", 9901),
        # They lead to this machine, and so to what is bound to one of its addresses.
        ("0.0.0.0", 8080),
        ("::", 8080),
        ("::ffff:0.0.0.0", 8080),
    ):
        with pytest.raises(Refusal) as refused:
            vet([address], port, allow=allow, forbidden=forbidden)
        assert refused.value.code is Code.EGRESS_DENIED
    assert vet(["127.0.0.1"], 8081, allow=allow, forbidden=forbidden)
    assert vet(["0.0.0.0"], 8081, allow=allow, forbidden=forbidden)
    assert vet(["10.0.0.6"], 9901, allow=allow, forbidden=forbidden)


async def resolved(
    resolver: Scripted, rules: EgressRules | None = None, route: EgressSpec | None = None, host: str = "api.test"
) -> Destination:
    rules = rules or EgressRules()
    return await destination(Authority(host, 443), rules, route, rules.allow, resolver, {}, deadline_s=0.2)


async def test_names_are_resolved_once_and_pinned() -> None:
    resolver = Scripted([PUBLIC], ["127.0.0.1"])
    assert (await resolved(resolver)).addresses == ((PUBLIC, 443),)
    assert resolver.asked == ["api.test"]
    with pytest.raises(Refusal):
        await resolved(resolver)


async def test_fixed_targets_are_not_resolved_but_vetted() -> None:
    rules = EgressRules(allow=networks(["127.0.0.0/8"]), resolve={"api.test:443": ("127.0.0.1", 9443)})
    assert (await resolved(Scripted(), rules)).addresses == (("127.0.0.1", 9443),)
    route = EgressSpec(resolve={"api.test:443": ("127.0.0.2", 1)})
    assert (await resolved(Scripted(), rules, route)).addresses == (("127.0.0.2", 1),)
    with pytest.raises(Refusal) as refused:
        await resolved(Scripted(), EgressRules(resolve={"api.test:443": ("127.0.0.1", 9443)}))
    assert refused.value.code is Code.EGRESS_DENIED


async def test_literals_are_vetted_without_a_resolver() -> None:
    assert (await resolved(Scripted(), host=PUBLIC)).addresses == ((PUBLIC, 443),)


@pytest.mark.parametrize(
    ("answer", "code"), [(OSError("nxdomain"), Code.UPSTREAM_UNREACHABLE), ([], Code.UPSTREAM_UNREACHABLE)]
)
async def test_a_name_without_address_is_unreachable(answer: Sequence[str] | Exception, code: Code) -> None:
    with pytest.raises(Refusal) as refused:
        await resolved(Scripted(answer))
    assert refused.value.code is code


async def test_forbidden_names_are_not_even_resolved() -> None:
    resolver = Scripted([PUBLIC])
    with pytest.raises(Refusal):
        await resolved(resolver, EgressRules(forbidden=Forbidden(hosts=frozenset({("api.test", 443)}))))
    assert resolver.asked == []
