"""Templates: literal text with references to secrets, as `inject` writes them.

Grammar: `{secret}`, `{secret.NAME}`, `{ENTRY}` and `{ENTRY.NAME}` (ENTRY a name under `secrets:`); `{{` and `}}` are
braces; any other brace is a fault. Templates only insert values. Rendering happens in `addons/injection`, where the
values are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FieldRef:
    """A reference to one field: `entry` names the secret, `field` the field (None: the `field` of that secret)."""

    entry: str
    field: str | None = None


@dataclass(frozen=True, slots=True)
class Template:
    """Literal text and references, in order."""

    parts: tuple[str | FieldRef, ...]
    single: FieldRef | None = field(init=False, repr=False, compare=False)
    """The one reference, where there is one alone: with `before` and `behind` it is all of the template."""
    before: str = field(init=False, repr=False, compare=False)
    behind: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        places = [place for place, part in enumerate(self.parts) if isinstance(part, FieldRef)]
        at = places[0] if len(places) == 1 else len(self.parts)
        one = self.parts[at] if len(places) == 1 else None
        object.__setattr__(self, "single", one)
        object.__setattr__(self, "before", "".join(map(str, self.parts[:at])))
        object.__setattr__(self, "behind", "".join(map(str, self.parts[at + 1 :])))

    @property
    def references(self) -> tuple[FieldRef, ...]:
        return tuple(part for part in self.parts if isinstance(part, FieldRef))

    @property
    def literal(self) -> bool:
        """Whether no secret is referred to."""
        return not self.references


class TemplateError(ValueError):
    """The text is no template; the message says what and at which character (`offset`, from 0)."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_REFERENCE = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)(?:\.([A-Za-z0-9_-][A-Za-z0-9_.-]*))?")


def parse_template(text: str) -> Template:
    """Parses template text.

    Raises:
        TemplateError: an unbalanced brace or something that is no reference between braces.
    """
    parts: list[str | FieldRef] = []
    literal = ""
    end = 0
    for token in _TOKEN.finditer(text):
        literal += text[end : token.start()]
        end = token.end()
        found = token.group()
        if found in {"{{", "}}"}:
            literal += found[0]
            continue
        if token.group(1) is None:
            raise TemplateError(f"a lone {found!r}; write {found * 2!r} for the character itself", token.start())
        reference = _REFERENCE.fullmatch(token.group(1))
        if reference is None:
            raise TemplateError(
                f"{found!r} is no reference; templates know {{secret}}, {{secret.NAME}} and {{NAME}} of secrets:",
                token.start(),
            )
        if literal:
            parts.append(literal)
            literal = ""
        parts.append(FieldRef(reference.group(1), reference.group(2)))
    literal += text[end:]
    if literal or not parts:
        parts.append(literal)
    return Template(tuple(parts))
