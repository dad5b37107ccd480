"""Python for hosts of the lab that kills a storkit verb between any two of its steps."""

from __future__ import annotations

KILLED = """\
import os, signal, sys
EVENTS = ("open", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.remove", "os.rename", "os.chown", "os.chmod",
          "os.fork")
def killed(verb, at, places):
    '''Run `verb` in a process that is killed at its `at`-th change of a file whose path has one of `places` in it, or
    before a program is started. False: it ended before.'''
    child = os.fork()
    if child == 0:
        left = [at]
        def hook(event, args):
            if event not in EVENTS or not (event == "os.fork" or any(place in str(args[0]) for place in places)):
                return
            if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR):
                return
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        verb()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
"""
