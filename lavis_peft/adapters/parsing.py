"""The checks behind `spec.parse_adapters`: one sentence per problem, none of them stopping the others."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lavis_peft.adapters.method_table import METHODS, UNSUPPORTED
from lavis_peft.adapters.methods import config_keys, known_peft_types, option_defaults, trial_problem
from lavis_peft.adapters.sublayers import allowed_words
from lavis_peft.checks import listing, suggestion

_WORDS = ("full", "frozen")
_OWN_KEYS = ("peft_type", "sublayers", "target_modules")
BUDGETS = ("separate", "shared")
UNITS = ("rank", "parameters")
# What parts that share a budget must have in common: one pool falls by one schedule, and is ranked by one measure.
_POOLED = ("tinit", "tfinal", "deltaT", "beta1", "beta2")


def section_problems(section: Mapping[Any, Any], allowed: Sequence[str], where: str) -> list[str]:
    """Keys of the section that name nothing."""
    return [
        f"{where}.{key}: unknown part{suggestion(key, allowed)}; allowed: {', '.join(allowed)}"
        for key in section
        if key not in allowed
    ]


def part(value: object, family: str, where: str) -> tuple[dict[str, Any], list[str]]:
    """One part of the section.

    Args:
        value: A mapping, or a word.
        family: Whose sub-layer words it may use.
        where: The part's full key.

    Returns:
        The fields of an `AdapterSpec`, and the problems found.
    """
    if not isinstance(value, Mapping):
        return _word(value, where)
    peft_type, found = _peft_type(value, where)
    norms = peft_type is not None and METHODS[peft_type].norms
    problems = _where_problems(value, allowed_words(family, norms), where, needed=not norms)
    options = {key: item for key, item in value.items() if key not in _OWN_KEYS}
    if peft_type:
        found += _option_problems(peft_type, options, where)
    problems += found or trial_problem(str(peft_type), value.get("target_modules"), options, where)
    if problems:
        return {}, problems
    words, patterns = value.get("sublayers") or [], value.get("target_modules")
    fields = {
        "mode": "adapter",
        "peft_type": peft_type,
        "sublayers": tuple(word for word in allowed_words(family, norms) if word in words),
        "target_modules": patterns if isinstance(patterns, str) or patterns is None else tuple(patterns),
        "options": options,
    }
    return fields, []


def train(value: object, allowed: Sequence[str], where: str) -> tuple[tuple[str, ...], list[str]]:
    """The list of modules that train besides the parts; an empty list is a choice, nothing at all is a mistake."""
    if not isinstance(value, (list, tuple)):
        return (), [f"{where}: found {value!r}; give a list of any of {', '.join(allowed)}, or [] for none"]
    problems = _name_problems(value, allowed, where)
    return tuple(name for name in allowed if name in value), problems


def budget(section: Mapping[Any, Any], parts: Mapping[str, Mapping[str, Any]], where: str) -> list[str]:
    """What is wrong with `budget` and `budget_unit`.

    Args:
        section: The whole adapters section.
        parts: The fields of each part that was given and is right.
        where: The section's name.
    """
    problems = [
        f"{where}.{key}: found {section[key]!r}; allowed: {', '.join(allowed)}"
        for key, allowed in (("budget", BUDGETS), ("budget_unit", UNITS))
        if key in section and section[key] not in allowed
    ]
    adaptive = {name: part for name, part in parts.items() if part.get("peft_type") == "ADALORA"}
    if problems:
        return problems
    if section.get("budget") == "shared" and len(adaptive) < 2:
        return [f"{where}.budget: shared needs `peft_type: ADALORA` on qformer and on llm, to share between"]
    if section.get("budget_unit") == "parameters" and not adaptive:
        return [f"{where}.budget_unit: is for `peft_type: ADALORA`, which no part has"]
    return _pool_problems(adaptive, where) if section.get("budget") == "shared" else []


def _pool_problems(parts: Mapping[str, Mapping[str, Any]], where: str) -> list[str]:
    options = [{**option_defaults("ADALORA"), **part["options"]} for part in parts.values()]
    return [
        f"{where}.budget: shared needs the same {key} in all parts; found "
        + ", ".join(f"{name}.{key}={each[key]}" for name, each in zip(parts, options, strict=True))
        for key in _POOLED
        if any(each[key] != options[0][key] for each in options)
    ]


def _word(value: object, where: str) -> tuple[dict[str, Any], list[str]]:
    if value in _WORDS:
        return {"mode": value}, []
    hint = suggestion(value, _WORDS)
    if isinstance(value, str) and value.upper() in known_peft_types():
        hint = f" (did you mean 'peft_type: {value.upper()}' in a mapping?)"
    found = "nothing" if value is None else repr(value)
    return {}, [f"{where}: found {found}{hint}; allowed: full, frozen, or a mapping with peft_type"]


def _where_problems(section: Mapping[Any, Any], allowed: Sequence[str], where: str, needed: bool) -> list[str]:
    words, patterns = section.get("sublayers"), section.get("target_modules")
    given = [key for key in ("sublayers", "target_modules") if key in section]
    if len(given) == 2:
        return [f"{where}: both sublayers and target_modules are given; give one"]
    if not given:
        message = f"{where}: neither sublayers nor target_modules is given; sublayers: {listing(allowed)}"
        return [message] if needed else []
    if given == ["sublayers"]:
        if not isinstance(words, (list, tuple)) or not words:
            return [f"{where}.sublayers: found {words!r}; give a list of one or more of {listing(allowed)}"]
        return _name_problems(words, allowed, f"{where}.sublayers")
    return _pattern_problems(patterns, f"{where}.target_modules")


def _name_problems(names: Sequence[object], allowed: Sequence[str], where: str) -> list[str]:
    problems = [
        f"{where}: unknown name {name!r}{suggestion(name, allowed)}; allowed: {', '.join(allowed)}"
        for name in names
        if name not in allowed
    ]
    return problems + [f"{where}: '{name}' is given {count} times" for name, count in _repeated(names)]


def _repeated(names: Sequence[object]) -> list[tuple[object, int]]:
    # Not a Counter: a list from a YAML may hold what can't be hashed.
    seen = [name for position, name in enumerate(names) if name not in names[:position]]
    return [(name, names.count(name)) for name in seen if names.count(name) > 1]


def _pattern_problems(patterns: object, where: str) -> list[str]:
    allowed = "a regular expression over full layer names, or a list of name endings"
    if isinstance(patterns, str) and patterns:
        try:
            re.compile(patterns)
        except re.error as error:
            return [f"{where}: found {patterns!r}, which is no regular expression ({error}); give {allowed}"]
        return []
    if isinstance(patterns, (list, tuple)) and patterns and all(isinstance(each, str) and each for each in patterns):
        return [f"{where}: '{name}' is given {count} times" for name, count in _repeated(patterns)]
    return [f"{where}: found {patterns!r}; give {allowed}"]


def _peft_type(section: Mapping[Any, Any], where: str) -> tuple[str | None, list[str]]:
    """The method meant, so that the other keys can be checked even where its name is misspelt, and what is wrong."""
    found, supported = section.get("peft_type"), ", ".join(METHODS)
    if "peft_type" not in section:
        return None, [f"{where}.peft_type: missing; supported: {supported}"]
    if isinstance(found, str) and found in METHODS:
        return (found, []) if found in known_peft_types() else (None, [f"{where}.peft_type: {_too_new(found)}"])
    if isinstance(found, str) and (found in UNSUPPORTED or found in known_peft_types()):
        reason = UNSUPPORTED.get(found, "it is not supported yet")
        return None, [f"{where}.peft_type: {found} can't be used here: {reason}; supported: {supported}"]
    known = dict.fromkeys([*METHODS, *known_peft_types()])
    hint = suggestion(str(found).upper(), known)
    meant = next((name for name in METHODS if f"'{name}'" in hint), None)
    return meant, [f"{where}.peft_type: found {found!r}{hint}; supported: {supported}"]


def _too_new(peft_type: str) -> str:
    import peft

    return f"the installed peft {peft.__version__} has no {peft_type}; a newer one has"


def _option_problems(peft_type: str, options: Mapping[Any, Any], where: str) -> list[str]:
    method, problems = METHODS[peft_type], []
    for key, value in options.items():
        if key in method.refused:
            problems.append(f"{where}.{key}: can't be set here: {method.refused[key]}")
        elif key not in config_keys(peft_type):
            problems.append(_unknown_key(key, peft_type, where))
        elif key == "exclude_modules":
            problems += _pattern_problems(value, f"{where}.{key}")
        elif (check := method.checks.get(key)) and (allowed := check(value)):
            problems.append(f"{where}.{key}: found {value!r}; give {allowed}")
    if not problems and method.together:
        problems = method.together({**option_defaults(peft_type), **options}, where)
    return problems


def _unknown_key(key: object, peft_type: str, where: str) -> str:
    import peft

    known: Iterable[str] = config_keys(peft_type)
    hint = suggestion(key, [*_OWN_KEYS, *known])
    return (
        f"{where}.{key}: unknown key{hint}; allowed: {', '.join(_OWN_KEYS)}, and those of peft {peft.__version__} "
        f"for {peft_type}: {listing(known)}"
    )
