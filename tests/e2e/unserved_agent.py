"""`python -m tests.e2e.unserved_agent ADDRESS`: storkit agent, on a machine to which the servers' data port is closed.

Only the agent that sshd reached at ADDRESS is cut off; what it says is what its real NBD client met.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from storkit.core.model import Attachment, Offer
from storkit.hosts.remote.agent import serve
from storkit.nbd import Nbd

CLOSED = 9
"""The discard port: nobody has it."""


def cut_off() -> None:
    attach = Nbd.attach

    def elsewhere(self: Nbd, offers: list[Offer]) -> list[Attachment]:
        return attach(self, [replace(offer, port=CLOSED) for offer in offers])

    Nbd.attach = elsewhere  # type: ignore[method-assign]


if __name__ == "__main__":
    if os.environ.get("SSH_CONNECTION", "").split()[2:3] == [sys.argv[1]]:
        cut_off()
    sys.exit(serve())
