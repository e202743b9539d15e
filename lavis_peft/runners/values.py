"""What the values of a `run` section may be: each function gives the value, or says in a ValueError what it must be."""

from collections.abc import Callable
from dataclasses import field
from typing import Any


def key(
    default: Any, meaning: str, convert: Callable[[Any], Any], fits: Callable[[Any], bool] | None = None, must: str = ""
) -> Any:
    """A field of a run section: its default and meaning, how a value is read, and what it must fulfil besides."""
    return field(default=default, metadata={"meaning": meaning, "convert": convert, "fits": fits, "must": must})


def integer(value: Any) -> int:
    """A whole number."""
    # LAVIS takes int("3") and would cut 3.7 to 3; the first is kind, the second hides a mistake.
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError("a whole number")
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError("a whole number") from None


def number(value: Any) -> float:
    """A number."""
    if isinstance(value, bool):
        raise ValueError("a number")
    try:
        return float(value)  # LAVIS's own YAMLs write 1e-5, which YAML 1.1 reads as text
    except (TypeError, ValueError):
        raise ValueError("a number") from None


def switch(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def text(value: Any) -> str:
    """Text."""
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise ValueError("text")
    return str(value)


def choice(*names: str) -> Callable[[Any], str]:
    """One of these words."""

    def convert(value: Any) -> str:
        if value not in names:
            raise ValueError(" or ".join(names))
        return str(value)

    return convert


def key_names(value: Any) -> tuple[str, ...]:
    """Dotted names of keys; one alone needs no list."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, (list, tuple)) or not all(isinstance(name, str) for name in listed):
        raise ValueError("a list of keys, e.g. [run.max_epoch]")
    return tuple(listed)


def splits(value: Any) -> tuple[str, ...]:
    """Names of splits."""
    # A bare string would be walked letter by letter.
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise ValueError("a list of split names, e.g. [val]")
    return tuple(value)


def switch_or_auto(value: Any) -> bool | str:
    """True, false or ``auto``."""
    if value == "auto":
        return "auto"
    try:
        return switch(value)
    except ValueError:
        raise ValueError("true, false or auto") from None


def device(value: Any) -> str:
    """A device's name."""
    kind, _, number = value.partition(":") if isinstance(value, str) else ("", "", "")
    if value not in ("auto", "cpu", "cuda") and not (kind == "cuda" and number.isdigit()):
        raise ValueError("auto, cpu, cuda or cuda:N")
    return str(value)


def positive(value: float) -> bool:
    """Above 0."""
    return value > 0


def not_negative(value: float) -> bool:
    """At least 0."""
    return value >= 0
