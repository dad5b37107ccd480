"""Runs inside a host of the lab: Python programs of tests, one after the other in one process. Standard library only.

An interpreter's start, and storkit's import, is a second here, and most of what a short program costs. A request is a
JSON line {"code", "argv", "files"}; its answer is a line with the exit status. What a program leaves in its process is
taken back where the next one could see it: its variables, descriptors and locks with them, environment, directory,
signal handlers. Modules stay imported, so a program that changes one runs in an interpreter of its own.
"""

import atexit
import gc
import json
import os
import signal
import sys
import threading
import traceback
import types
from typing import Any

_at_exit: list[tuple[Any, Any, Any]] = []
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGALRM, signal.SIGCHLD)


def register(function: Any, *args: Any, **named: Any) -> Any:
    """As atexit's: for the end of each program, since the module that registers stays imported."""
    _at_exit.append((function, args, named))
    return function


def serve() -> None:
    atexit.register = register  # type: ignore[assignment]
    sys.path[0] = ""  # as of a program that is read from standard input
    asked, told = os.fdopen(os.dup(0)), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    while line := asked.readline():
        os.write(told, f"{run(**json.loads(line))}\n".encode())


def run(code: str, argv: list[str], files: list[str]) -> int:
    own = os.getpid()
    before = dict(os.environ), list(sys.path), [signal.getsignal(number) for number in SIGNALS], os.umask(0o22)
    for descriptor, file in enumerate(files, 1):
        opened = os.open(file, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    main, sys.argv = sys.modules["__main__"], ["-", *argv]
    program = sys.modules["__main__"] = types.ModuleType("__main__")
    status = carried_out(code, program)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if os.getpid() != own:  # a child that the program forked
        os._exit(status)
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    for function, args, named in reversed(_at_exit):
        function(*args, **named)
    program.__dict__.clear()
    sys.modules["__main__"] = main
    os.environ.clear()
    os.environ.update(before[0])
    sys.path[:] = before[1]
    for number, handler in zip(SIGNALS, before[2], strict=True):
        signal.signal(number, handler)
    os.umask(before[3])
    os.chdir("/root")
    gc.collect()
    return status


def carried_out(code: str, program: types.ModuleType) -> int:
    try:
        exec(compile(code, "<stdin>", "exec"), program.__dict__)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve()
