"""A manager's agent that is killed by SIGKILL: `python -m tests.e2e.killed_manager agent ...`, as `storkit agent ...`.

KILLED_AGENT is `before:N` or `after:N`: before, or after, the Nth verb that it carries out here. KILLED_MARK is a file
that it makes then: without it, the agent came to its end.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from storkit.cli.main import main
from storkit.hosts.site import Performer


def arm(point: str, mark: Path) -> None:
    when, _, given = point.partition(":")
    count, perform = 0, Performer.perform

    def die() -> None:
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(self: Performer, *args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        mine = str(count) == given
        if mine and when == "before":
            die()
        result = perform(self, *args, **more)
        if mine:
            die()
        return result

    Performer.perform = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    arm(os.environ["KILLED_AGENT"], Path(os.environ["KILLED_MARK"]))
    sys.exit(main())
