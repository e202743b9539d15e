"""``python -m lavis_peft SCRIPT [ARGS]``: any script of LAVIS, unmodified, with the plugin loaded."""

import os
import runpy
import sys

from lavis_peft.errors import UserError

USAGE = """usage: python -m lavis_peft SCRIPT [ARGS ...]

Runs SCRIPT (LAVIS's train.py or evaluate.py, or one of your own) as Python would,
with LAVIS made to run on the installed libraries and the plugin's names registered.

  python -m lavis_peft train.py --cfg-path run.yaml --options run.max_epoch=3
  torchrun --nproc_per_node=8 -m lavis_peft train.py --cfg-path run.yaml

Without a LAVIS checkout: lavis-peft train --cfg-path run.yaml
"""


def run_script(argv: list[str]) -> None:
    """Run a script with the plugin loaded.

    Args:
        argv: The script's path and its arguments.

    Raises:
        UserError: The script can't be found, or what it read is wrong.
    """
    script = argv[0]
    if not os.path.isfile(script):
        raise UserError(f"{script}: {'is a directory' if os.path.isdir(script) else 'no such script'}")
    _check_config_file(argv[1:])
    import lavis_peft
    from lavis_peft.runners import distributed, hooks

    # As Python does for a script: LAVIS's projects import modules beside it.
    sys.argv = argv
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    lavis_peft.register()
    hooks.install()
    runpy.run_path(script, run_name="__main__")
    # Not after an error: leaving the group would wait for processes that wait for this one.
    distributed.shutdown()


def _check_config_file(arguments: list[str]) -> None:
    # A misspelt file name should not cost the seconds that importing LAVIS takes. What is in the file is checked when
    # the script makes its Config: a script of one's own may read something else than a run config.
    for number, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag == "--cfg-path" and (equals or number + 1 < len(arguments)):
            from lavis_peft.runners.config_file import load_yaml

            load_yaml(value if equals else arguments[number + 1])


def main() -> int:
    """Entry point; returns the exit code."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if len(sys.argv) > 1 else 2
    try:
        run_script(sys.argv[1:])
    except UserError as error:
        return _end_with(error, error.exit_code, f"{error.heading}: {error}\n")
    except KeyboardInterrupt as interrupt:
        return _end_with(interrupt, 130, "")
    return 0


def _end_with(error: BaseException, code: int, text: str) -> int:
    from lavis_peft.runners import peers

    peers.end_with(error, code, lambda: sys.stderr.write(text))
    return code


if __name__ == "__main__":
    sys.exit(main())
