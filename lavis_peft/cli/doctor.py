"""`lavis-peft doctor`: what is installed, what was patched, what is wrong and how to mend it."""

import contextlib
import json
import sys
import warnings

import click

from lavis_peft.cli.diagnosis import Diagnosis, diagnose


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(as_json: bool) -> None:
    """Show which LAVIS, libraries and devices were found, what was patched, and what is wrong with its remedy.

    Exit code 0 if the plugin can work, 1 if it can't.
    """
    # What libraries say while they are imported is not the answer, and would spoil the JSON.
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = diagnose()
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else describe(found))
    sys.exit(0 if found.ok else 1)


def describe(found: Diagnosis) -> str:
    """The diagnosis as text, a section for each kind of finding."""
    sections = [_installed(found), _patches(found), _optional(found), _problems(found)]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _installed(found: Diagnosis) -> list[str]:
    rows = [("lavis-peft", f"{found.plugin['version']}  ({found.plugin['location']})"), ("LAVIS", _lavis(found))]
    rows += [(name, version or "not installed") for name, version in found.versions.items()]
    rows.append(("devices", ", ".join(found.devices) or "CPU only"))
    if found.autoload is not None:
        rows.append(("autoload", "enabled" if found.autoload else "not enabled"))
    width = max(len(name) for name, _ in rows)
    return [f"{name.ljust(width)}  {value}" for name, value in rows]


def _lavis(found: Diagnosis) -> str:
    if found.lavis is None:
        return "not installed"
    name = f"{found.lavis['distribution']} {found.lavis['version']}" if found.lavis["distribution"] else "a checkout"
    line = "LAVIS main, with InstructBLIP" if found.lavis["line"] == "main" else "LAVIS 1.0.2"
    script = found.lavis["train_script"] or "no train.py: use `lavis-peft train`"
    return f"{name}: {line}; {script}  ({found.lavis['location']})"


def _patches(found: Diagnosis) -> list[str]:
    if not found.patches:
        return []
    lines = [f"Patched, {len(found.patches)}:"]
    for patch in found.patches:
        lines += [f"  {patch['name']}", f"    {patch['broke']}", f"    since {patch['since']}"]
    return lines


def _optional(found: Diagnosis) -> list[str]:
    lines = [f"  {extra['remedy']}  {extra['brings']} (no {', '.join(extra['absent'])})" for extra in found.extras]
    if lines:
        lines.insert(0, "Optional, not installed:")
    if found.standins:
        lines += ["LAVIS imports these, and got stand-ins that fail only when they are used:"]
        lines += [f"  {reason}: {', '.join(names)}" for reason, names in _by_reason(found.standins).items()]
    return lines


def _by_reason(standins: dict[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for name in sorted(standins):
        reasons.setdefault(standins[name], []).append(name)
    return reasons


def _problems(found: Diagnosis) -> list[str]:
    if not found.problems:
        return ["Nothing is wrong."]
    lines = []
    for problem in sorted(found.problems, key=lambda problem: not problem.fatal):
        lines += [f"{'Error' if problem.fatal else 'Note'}: {problem.what}", f"  {problem.remedy}"]
    return [*lines, "", "The plugin works." if found.ok else "The plugin can't work until the errors are mended."]
