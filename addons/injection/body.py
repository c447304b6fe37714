"""The body of one request as a place for a credential: what of it a route's injectors concern, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from addons.credentials import Credential
from addons.head import RequestHead
from addons.injection.content import JsonBody, form_names, is_json, judge_content, judge_form, kind_of, with_fields
from addons.injection.places import Plan, is_dummy
from addons.injection.render import holds_placeholder, plain_value, swapped_text
from addons.refusal import Code, Refusal
from policies.model import FormInjector, Injector, JsonInjector, SwapInjector
from policies.pointer import Pointer, pointer_text


def reads_body(plan: Plan, head: RequestHead) -> bool:
    """Whether the body has to be whole before this request may leave.

    Raises:
        Refusal: `bad_request`; a body of this kind has no place for the credential.
    """
    if not plan.body:
        return False
    if any(isinstance(injector, JsonInjector | FormInjector) for injector in plan.body):
        judge_content(head.fields, form=isinstance(plan.body[0], FormInjector))
        return True
    # A placeholder that may stand in a JSON body: another kind of body has none.
    if not is_json(kind_of(head.fields)):
        return False
    judge_content(head.fields, form=False)
    return True


@final
class Content:
    """A body, taken apart. Without a secret at hand, so that this may happen anywhere.

    Args:
        plan: of the route.
        body: all of it.

    Raises:
        Refusal: `bad_request`.
    """

    __slots__ = ("_body", "_forms", "_injectors", "_json", "_plan")

    def __init__(self, plan: Plan, body: bytes) -> None:
        self._plan = plan
        self._body = body
        self._injectors: list[JsonInjector | SwapInjector] = []
        pointers: list[Pointer] = []
        for injector in plan.body:
            if not isinstance(injector, FormInjector):
                here = (injector.pointer,) if isinstance(injector, JsonInjector) else injector.pointers
                pointers += here
                self._injectors += [injector] * len(here)
        self._json = JsonBody(body, pointers) if pointers else None
        self._forms = [injector.name for injector in plan.body if isinstance(injector, FormInjector)]
        if self._forms:
            judge_form(body, self._forms)

    def found(self, swap: SwapInjector) -> bool:
        """Whether the placeholder stands in the body."""
        members = self._json.members if self._json is not None else ()
        return any(
            injector is swap and _placeholder_in(member.value, swap)
            for injector, member in zip(self._injectors, members, strict=True)
        )

    def brought(self) -> str | None:
        """The first place in which the caller sent a credential of its own, as `addons.injection.places.brought` tells it."""
        members = self._json.members if self._json is not None else ()
        for injector, member in zip(self._injectors, members, strict=True):
            value = member.value
            if not member.there or value is None or value == "":
                continue
            dummy = isinstance(value, str) and is_dummy(value.encode("utf-8", "replace"))
            if not dummy and not (isinstance(injector, SwapInjector) and _placeholder_in(value, injector)):
                return f"json:{pointer_text(member.pointer)}"
        names = form_names(self._body) if self._forms else []
        return next((f"form:{name}" for name in self._forms if name.encode() in names), None)

    def reject(self) -> None:
        """Refuses a caller that sends a credential of its own, where the route says so.

        Raises:
            Refusal: `caller_credentials`, naming the place, never the value.
        """
        place = self.brought() if self._plan.reject else None
        if place is not None:
            raise Refusal(
                Code.CALLER_CREDENTIALS,
                f"This route wants no credential from the caller; remove {place} from the body.",
            )

    def stripped(self) -> bytes:
        """The body without what the caller sent where a credential belongs, for a request that gets none."""
        if self._json is None:
            return self._body
        return self._json.put([None] * len(self._injectors))

    def put(self, injectors: Sequence[Injector], credential: Credential) -> bytes:
        """The body with its credential.

        Raises:
            Refusal: `secret_malformed`, `secret_missing`, or `bad_request`.
        """
        if self._json is None:
            return with_fields(
                self._body,
                [(one.name, plain_value(one.value, credential)) for one in injectors if isinstance(one, FormInjector)],
            )
        values: list[str | None] = []
        for injector, member in zip(self._injectors, self._json.members, strict=True):
            if isinstance(injector, JsonInjector):
                values.append(plain_value(injector.value, credential))
            elif _placeholder_in(member.value, injector):
                values.append(swapped_text(member.value, injector.placeholder, injector.value, credential))
            else:
                values.append(None)
        return self._json.put(values)

    def __repr__(self) -> str:
        return "Content(…)"


def _placeholder_in(value: Any, swap: SwapInjector) -> bool:
    return isinstance(value, str) and holds_placeholder(value.encode("utf-8", "replace"), swap.placeholder)
