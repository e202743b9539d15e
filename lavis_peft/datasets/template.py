"""Prompt and target templates: text with named fields in braces."""

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from lavis_peft.checks import listing, suggestion
from lavis_peft.errors import ConfigError


@dataclass(frozen=True)
class Template:
    """A checked template.

    Args:
        text: The template as the user wrote it.
        parts: Literal text and the field that follows it, in order; no field at the end.
    """

    text: str
    parts: tuple[tuple[str, str | None], ...]

    @cached_property
    def fields(self) -> frozenset[str]:
        """The names of the fields it uses."""
        return frozenset(field for _, field in self.parts if field is not None)

    def render(self, values: Mapping[str, str]) -> str:
        """The text with each field's value in its place; braces inside values are left alone."""
        return "".join(literal + (values[field] if field is not None else "") for literal, field in self.parts)


def parse_template(text: str, allowed: Iterable[str], where: str) -> Template:
    """Check a template; literal braces are written double.

    Args:
        text: For example ``Question: {question} Options: {options} Short answer:``.
        allowed: The fields that exist.
        where: The key, for messages.

    Raises:
        ConfigError: Unbalanced braces, unknown fields, or a format after a field's name.
    """
    known = list(allowed)
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ConfigError(f"{where}: {error} in {text!r}; write a literal brace double, {{{{ or }}}}") from None
    problems = []
    for _, field, spec, conversion in pieces:
        if field is None:
            continue
        if field not in known:
            problems.append(
                f"{where}: unknown field '{{{field}}}'{suggestion(field, known)}; allowed: {listing(known)}; "
                "write a literal brace double, {{ or }}"
            )
        if spec or conversion:
            problems.append(f"{where}: '{{{field}}}' takes no format, found {text!r}")
    if problems:
        raise ConfigError(problems)
    return Template(text, tuple((literal, field) for literal, field, _, _ in pieces))


def letter(index: int) -> str:
    """The letter of an option: a … z, then aa, ab and so on."""
    head, last = divmod(index, 26)
    return (letter(head - 1) if head else "") + string.ascii_lowercase[last]


def options(choices: Sequence[str], separator: str = " ") -> str:
    """The choices as ``(a) first (b) second``, with the separator between them."""
    return separator.join(f"({letter(index)}) {choice}" for index, choice in enumerate(choices))
