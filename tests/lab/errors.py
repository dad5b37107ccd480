"""What can go wrong in the lab, as opposed to in what it tests."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


class LabError(Exception):
    """The lab itself failed: a host that did not boot, a connection that broke, a deadline that passed."""


class Unsupported(LabError):
    """This machine cannot run the lab; the text is the exact reason, fit for a skipped test."""


class CommandFailed(LabError):
    """A command in a host or in the cell ended with a status that its caller did not accept."""

    def __init__(self, where: str, argv: Sequence[str], status: int, stdout: str, stderr: str) -> None:
        self.where, self.argv, self.status = where, list(argv), status
        self.stdout, self.stderr = stdout, stderr
        ended = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        text = f"on {where}: {shlex.join(argv)}\n{ended}"
        for name, output in (("stderr", stderr), ("stdout", stdout)):
            if output.strip():
                text += f"\n--- {name}\n{output.rstrip()[-4000:]}"
        super().__init__(text)
