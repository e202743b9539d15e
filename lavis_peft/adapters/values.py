"""Checks of single option values: each takes the value found and says what is allowed where it is wrong."""

import math
import re
from collections.abc import Callable, Mapping

# A check takes the value found and returns what is allowed instead, or None where the value is right.
Check = Callable[[object], str | None]


def positive_int(value: object) -> str | None:
    """Passes 1, 2, …; not True, which YAML's `yes` becomes."""
    right = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return None if right else "a whole number above 0"


def positive_number(value: object) -> str | None:
    """Passes finite numbers above 0."""
    return None if _number(value) > 0 else "a number above 0"


def whole_number(value: object) -> str | None:
    """Passes 0, 1, 2, …; not False."""
    right = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return None if right else "a whole number, 0 or above"


def not_negative(value: object) -> str | None:
    """Passes finite numbers from 0 on."""
    return None if _number(value) >= 0 else "a number, 0 or above"


def between_0_and_1(value: object) -> str | None:
    """Passes numbers above 0 and below 1."""
    return None if 0 < _number(value) < 1 else "a number above 0 and below 1"


def steps_or_fraction(value: object) -> str | None:
    """Passes whole numbers of steps, 0 among them, and fractions from 0 up to, but without, 1."""
    right = not whole_number(value) or (isinstance(value, float) and 0 <= value < 1)
    return None if right else "a whole number of steps, or a fraction of all steps from 0 up to, but not including, 1"


def probability(value: object) -> str | None:
    """Passes numbers from 0 up to, but without, 1."""
    return None if 0 <= _number(value) < 1 else "a number from 0 up to, but not including, 1"


def share(value: object) -> str | None:
    """Passes numbers from 0 to 1, both included."""
    return None if 0 <= _number(value) <= 1 else "a number from 0 to 1"


def text(value: object) -> str | None:
    """Passes text that isn't empty."""
    return None if isinstance(value, str) and value else "a name"


def either(first: Check, second: Check) -> Check:
    """Passes what one of two checks passes."""

    def check_either(value: object) -> str | None:
        wrong = first(value)
        return f"{wrong}, or {other}" if wrong and (other := second(value)) else None

    return check_either


def flag(value: object) -> str | None:
    """Passes true and false."""
    return None if isinstance(value, bool) else "true or false"


def pattern_of(check: Check) -> Check:
    """A mapping from layer names (or regular expressions over them) to values that pass `check`."""

    def check_pattern(value: object) -> str | None:
        if not isinstance(value, Mapping):
            return "a mapping of layer names to values"
        for name, number in value.items():
            if not isinstance(name, str) or not _compiles(name):
                return f"names or regular expressions of layers; '{name}' is neither"
            if wrong := check(number):
                return f"{wrong} for each layer name; '{name}' has {number!r}"
        return None

    return check_pattern


def layer_numbers(value: object) -> str | None:
    """Passes a layer's number, counted from 0, or a list of them."""
    numbers = value if isinstance(value, (list, tuple)) else [value]
    right = bool(numbers) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers)
    return None if right else "a layer's number, counted from 0, or a list of them"


def one_of(*allowed: object) -> Check:
    """Passes exactly the values given; 1 isn't True."""

    names = ", ".join(str(each).lower() if isinstance(each, bool) else str(each) for each in allowed)

    def check_one(value: object) -> str | None:
        right = any(type(value) is type(each) and value == each for each in allowed)
        return None if right else f"one of {names}"

    return check_one


def _number(value: object) -> float:
    # NaN fails every comparison, so the checks above need no case of their own for what is no number.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return math.nan
    return float(value)


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True
