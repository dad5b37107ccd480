"""`python -m tests.e2e.killed_agent COUNT ADDRESS`: storkit agent, killed at its COUNTth change.

Only the agent that sshd reached at ADDRESS dies; the others work as ever.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from storkit.hosts.remote.agent import Agent, serve

LOOKS = ("find", "find_exports", "find_attachments", "check", "fingerprint", "evidence")


def arm(count: int) -> None:
    answer = Agent.answer
    seen = 0

    def counted(self: Agent, request: dict[str, Any]) -> None:
        nonlocal seen
        if request.get("do") == "call" and request.get("verb") not in LOOKS:
            seen += 1
            if seen == count:
                # Every other time the work is done and only its answer is lost.
                if count % 2 == 0:
                    self._do(request)
                os.kill(os.getpid(), signal.SIGKILL)
        answer(self, request)

    Agent.answer = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    if os.environ.get("SSH_CONNECTION", "").split()[2:3] == [sys.argv[2]]:
        arm(int(sys.argv[1]))
    sys.exit(serve())
