"""Reads one section of a run config, collecting every problem on the way."""

from collections.abc import Mapping, Sequence
from typing import Any


class SectionReader:
    """Typed access to a section's keys.

    Each method returns the value, or the default where the key is absent or wrong; what was wrong is added to
    ``problems``, so that one run shows everything there is to mend.

    Args:
        section: The section as plain containers.
        where: Its dotted name in messages.
        problems: The list to add to.
    """

    def __init__(self, section: Mapping[str, Any], where: str, problems: list[str]) -> None:
        self._section = section
        self._where = where
        self.problems = problems

    def _add(self, key: str, wanted: str, value: Any) -> None:
        # YAML reads a bare yes, no, on or off as a truth value; the likeliest place to meet that is an answer list.
        listed = isinstance(value, list) and any(isinstance(entry, bool) for entry in value)
        hint = " (quote 'yes' and 'no': YAML reads them bare as true and false)" if listed else ""
        self.problems.append(f"{self._where}.{key}: expected {wanted}, found {value!r}{hint}")

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self._section.get(key, default)
        if isinstance(value, bool):
            return value
        self._add(key, "true or false", value)
        return default

    def count(self, key: str, default: int, least: int = 0) -> int:
        """A whole number."""
        value = self._section.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and value >= least:
            return value
        self._add(key, f"a whole number of at least {least}", value)
        return default

    def text(self, key: str, default: str | None = None, blank: bool = False) -> str | None:
        """A text; one of spaces only if it may be ``blank``."""
        value = self._section.get(key)
        if value is None:
            return default
        if isinstance(value, str) and (blank or value.strip()):
            return value
        self._add(key, "a text", value)
        return default

    def choice(self, key: str, allowed: Sequence[str]) -> str:
        """One of some words; the first where the key is absent."""
        value = self._section.get(key, allowed[0])
        if value in allowed:
            return value
        self._add(key, f"one of {', '.join(allowed)}", value)
        return allowed[0]

    def texts(self, key: str) -> tuple[str, ...]:
        """A text or a list of texts; nothing where the key is absent."""
        value = self._section.get(key)
        entries = [] if value is None else value if isinstance(value, list) else [value]
        if all(isinstance(entry, str) and entry.strip() for entry in entries):
            return tuple(entries)
        self._add(key, "a list of texts", value)
        return ()

    def mapping(self, key: str) -> dict[str, Any]:
        """A mapping; empty where the key is absent."""
        value = self._section.get(key)
        if value is None or isinstance(value, Mapping):
            return dict(value or {})
        self._add(key, "a mapping", value)
        return {}

    def inner(self, key: str) -> "SectionReader":
        """A reader for the mapping under a key, with the same list of problems."""
        return SectionReader(self.mapping(key), f"{self._where}.{key}", self.problems)
