"""Starts processes in milliseconds: imports once what they need, then forks one for each request.

They are processes like any others, to be ended by any signal, and they end as Python ends a program; only the seconds
of importing torch and LAVIS are saved. A request is a line of JSON on standard input, and so is its answer on standard
output: ``{"code": …, "argv": …, "env": …, "cwd": …, "output": …}`` starts a program and gives its ``pid``;
``{"pid": …}`` gives its exit code, null while it runs.
"""

import contextlib
import json
import os
import signal
import sys
from typing import Any

_running: set[int] = set()


def _preload() -> None:
    import lavis_peft

    lavis_peft.register()
    import lavis.tasks  # noqa: F401
    import transformers
    from peft import AdaLoraConfig  # noqa: F401
    from torch.nn.parallel import DistributedDataParallel  # noqa: F401

    from lavis_peft.cli import running, train  # noqa: F401
    from lavis_peft.datasets import BUILDERS  # noqa: F401
    from lavis_peft.runners import RUNNERS, SCHEDULES, hooks  # noqa: F401

    _ = transformers.T5ForConditionalGeneration, transformers.BertTokenizerFast


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    pid, status = os.waitpid(request["pid"], os.WNOHANG)
    if pid:
        _running.discard(pid)
    return {"code": os.waitstatus_to_exitcode(status) if pid else None}


def _become(request: dict[str, Any]) -> str:
    """In a forked child: what a new process would find; gives the program to run."""
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for handle, number in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(handle, number)
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = request["argv"]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return request["code"]


def serve() -> str | None:
    """Answer requests until the tests end; returns in each child too, with its program."""
    for line in sys.stdin:
        request = json.loads(line)
        if "code" in request:
            pid = os.fork()
            if not pid:
                return _become(request)
            _running.add(pid)
            reply: dict[str, Any] = {"pid": pid}
        else:
            reply = _answer(request)
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()
    for pid in _running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return None


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _preload()
    sys.stdout.write("{}\n")
    sys.stdout.flush()
    if (program := serve()) is not None:
        exec(compile(program, "program", "exec"), {"__name__": "__main__"})
