"""The type that holds a secret shows it to nobody."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251 - to see it fail
import traceback

import pytest

from vault.secret import Secret
from vault.store import SealedSecret, SecretMissing, SecretVersion, WrongOpening

VALUE = "cnry-very-secret"


def test_no_way_of_printing_shows_it() -> None:
    secret = Secret(VALUE)
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>40}",
        f"{[secret]}",
        f"{ {'a': secret} }",
    ]
    assert all(VALUE not in text for text in shown)
    assert not hasattr(secret, "__dict__")


def test_it_is_neither_compared_hashed_copied_nor_pickled() -> None:
    secret = Secret(VALUE)
    for attempt in (
        lambda: secret == Secret(VALUE),
        lambda: hash(secret),
        lambda: copy.copy(secret),
        lambda: copy.deepcopy(secret),
        lambda: pickle.dumps(secret),
    ):
        with pytest.raises(TypeError):
            attempt()


def test_reveal_is_the_way_out() -> None:
    assert Secret(VALUE).reveal() == VALUE
    assert Secret(b"\xff").reveal_bytes() == b"\xff"
    raw = VALUE.encode() + b"\xff"
    with pytest.raises(UnicodeDecodeError) as error:
        Secret(raw).reveal()
    assert VALUE not in "".join(traceback.format_exception(error.value))
    assert error.value.object == b""


class Opened:
    def __init__(self, secret: str, version: str) -> None:
        self.secret = secret
        self.secret_version = version


def test_a_sealed_secret_opens_for_its_own_record_only() -> None:
    sealed = SealedSecret("secret/a", SecretVersion({"key": Secret(VALUE)}, "3"), cache="miss", age_s=0.0)
    assert VALUE not in repr(sealed)
    for record in (Opened("secret/b", "3"), Opened("secret/a", "2")):
        with pytest.raises(WrongOpening):
            sealed.unseal(record)
    assert sealed.unseal(Opened("secret/a", "3"))["key"].reveal() == VALUE
    sealed.require("key")
    with pytest.raises(SecretMissing):
        sealed.require("other")
